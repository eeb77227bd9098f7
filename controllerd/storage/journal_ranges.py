"""Ranges of journal records for peers: the newest ones in memory, and those cut out of what a segment holds.

Owns: how much of the newest part of a journal stays in memory, in which pieces.
Never: reads files, or knows which peer has what.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from controllerd.model.errors import Corrupt
from controllerd.model.records import Kind, RecordError, decode_untrusted

TAIL_BATCH: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class JournalRange:
    """Whole records ``first`` to ``last`` as they are on disk, ``nbytes`` together."""

    first: int
    last: int
    buffers: Sequence[Buffer]
    nbytes: int


class JournalTail:
    """What was appended last, at most ``limit`` bytes of it and a piece."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranges: deque[JournalRange] = deque()
        self._by_first: dict[int, JournalRange] = {}
        self._size = 0

    def keep(self, buffers: list[Buffer], size: int, first: int, last: int) -> None:
        """Keep records ``first`` to ``last``, ``size`` bytes in ``buffers``, of which each record has two."""
        if size > TAIL_BATCH:
            start, part, sequence = 0, 0, first
            for index in range(0, len(buffers), 2):
                part += len(memoryview(buffers[index])) + len(memoryview(buffers[index + 1]))
                if part >= TAIL_BATCH or index + 2 == len(buffers):
                    end = first + index // 2
                    self.keep_range(JournalRange(sequence, end, buffers[start : index + 2], part))
                    start, part, sequence = index + 2, 0, end + 1
        else:
            self.keep_range(JournalRange(first, last, buffers, size))

    def keep_range(self, entry: JournalRange) -> None:
        """Keep one piece, and as many before it as the limit allows."""
        self._ranges.append(entry)
        self._by_first[entry.first] = entry
        self._size += entry.nbytes
        while self._size > self._limit and len(self._ranges) > 1:
            oldest = self._ranges.popleft()
            self._size -= oldest.nbytes
            del self._by_first[oldest.first]

    def trim(self, sequence: int) -> None:
        """Drop from memory what every consumer has (<= ``sequence``)."""
        ranges = self._ranges
        while ranges and ranges[0].last <= sequence:
            oldest = ranges.popleft()
            self._size -= oldest.nbytes
            del self._by_first[oldest.first]

    def clear(self) -> None:
        """Keep nothing of what was appended before."""
        self._ranges.clear()
        self._by_first.clear()
        self._size = 0

    def read(self, first: int, max_bytes: int) -> JournalRange | None:
        """Return what begins with ``first``, about ``max_bytes``; None if it is not in memory."""
        entry = self._by_first.get(first)
        if entry is None or entry.nbytes >= max_bytes:
            return entry
        buffers: list[Buffer] = []
        size, last = 0, first - 1
        while entry is not None and (size == 0 or size + entry.nbytes <= max_bytes):
            buffers.extend(entry.buffers)
            size += entry.nbytes
            last = entry.last
            entry = self._by_first.get(last + 1)
        return JournalRange(first, last, buffers, size)


def cut_range(view: memoryview, first: int, max_bytes: int) -> JournalRange:
    """Find the records from ``first`` on in ``view``, which starts at some record before it."""
    position = size = 0
    buffers: list[Buffer] = []
    last = first - 1
    while position < len(view) and size < max_bytes:
        try:
            record = decode_untrusted(view, position)
        except RecordError as error:
            if size and "cut short" in error.reason:
                break
            raise Corrupt(f"journal record {last + 1} cannot be read back: {error}") from error
        if record.kind != Kind.NOTE and record.sequence >= first:
            buffers.append(view[position : position + record.size])
            size += record.size
            last = record.sequence
        position += record.size
    if not size:
        raise Corrupt(f"journal record {first} is not where the index says")
    return JournalRange(first, last, buffers, size)
