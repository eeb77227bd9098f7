"""Pending records: what a secondary group has journaled and not yet made visible.

Owns: their order, and the bound on the memory their data takes.
Never: decides what may be applied (model/apply_plan.py does).

Data beyond the bound is let go and read back from the journal when its turn comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from controllerd.model.records import Kind, Record

_WRITE: Final = int(Kind.WRITE)


class Entry(NamedTuple):
    """One journaled record as the apply side needs it; ``data`` is None when it was let go."""

    sequence: int
    time: int
    kind: int
    volume: int
    offset: int
    length: int
    origin: int
    data: memoryview | None


class Pending:
    """Entries in sequence order; ``memory_limit`` in bytes of data."""

    def __init__(self, memory_limit: int) -> None:
        self._limit = memory_limit
        self.entries: deque[Entry] = deque()
        self.memory = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add the next entries."""
        append, limit = self.entries.append, self._limit
        total, memory = self.bytes, self.memory
        for entry in entries:
            if entry.kind != _WRITE:
                append(entry)
                continue
            length = entry.length
            total += length
            if entry.data is None or memory >= limit:
                append(entry._replace(data=None))
            else:
                memory += length
                append(entry)
        self.bytes, self.memory = total, memory

    def append_record(self, record: Record) -> None:
        """Add a record found by recovery; its data stays in the journal."""
        entry = Entry(
            record.sequence, record.time, record.kind, record.volume,
            record.offset, record.length, record.origin, None,
        )  # fmt: skip
        self.extend((entry,))

    def pop(self) -> Entry:
        """Remove and return the oldest entry."""
        entry = self.entries.popleft()
        if entry.kind == _WRITE:
            self.bytes -= entry.length
            if entry.data is not None:
                self.memory -= entry.length
        return entry

    def clear(self) -> None:
        """Drop everything."""
        self.entries.clear()
        self.memory = self.bytes = 0
