"""Group journal: an append-only log in preallocated, recycled segments.

Owns: the append order, the durable position, which segments are kept, and where in them
a record is.
Never: assigns sequence numbers, talks to peers, syncs again after a sync failed, or makes
files (segment_files.py does).

An append is in the page cache when it returns; it is durable when a sync that began
after it has ended. Segments come back for reuse when the checkpoint and every
consumer have passed them, newest first, so that their pages are still in memory and
a partly written page need not be read (architecture §4).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from typing_extensions import Buffer

from controllerd.model.errors import DiskFailed, JournalFailed, Trimmed, WouldBlock
from controllerd.model.records import HEADER_SIZE, MAX_DATA, Record, decode_untrusted
from controllerd.storage.io import CALL_BYTES, IOV_MAX, ZEROES, File, Files
from controllerd.storage.journal_format import DATA_START, SegmentHeader
from controllerd.storage.journal_ranges import TAIL_BATCH, JournalRange, JournalTail, cut_range
from controllerd.storage.segment_files import SegmentFiles

INDEX_STEP: Final = 256 << 10
WRITE_AHEAD: Final = 1 << 20
"""Zeros written in one go in front of the records, where a segment was never written before."""
READ_BATCH: Final = 1 << 20
"""So many bytes of records are read back at once to be made visible."""
PIECE_MAX: Final = TAIL_BATCH + MAX_DATA + 3 * HEADER_SIZE
"""Longest run of records that is appended in one piece; so much of a segment may stay unused at its end."""


@dataclass(slots=True)
class Segment:
    """One segment file in the chain. ``end`` is where the next record goes; ``last`` < ``first`` when empty.

    ``begun``: its header is durable, so that recovery finds it without the segment before. ``written``: up to where the
    file was written before, if only with zeros or by an earlier segment.
    """

    ordinal: int
    first: int
    file: File
    end: int = DATA_START
    last: int = 0
    begun: bool = False
    written: int = 0
    sequences: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def note_position(self, sequence: int, position: int) -> None:
        """Extend the sparse index from sequence number to byte position."""
        positions = self.positions
        if not positions or position - positions[-1] >= INDEX_STEP:
            self.sequences.append(sequence)
            positions.append(position)


class Journal:
    """The journal of one group, in ``directory``.

    Args:
        segment_bytes: size of a segment file.
        segments_max: most segment files; the journal is full when all are kept.
        tail_bytes: how much of the newest part is kept in memory for peers.
    """

    def __init__(
        self,
        files: Files,
        directory: str,
        *,
        group_id: int,
        segment_bytes: int,
        segments_max: int,
        tail_bytes: int,
    ) -> None:
        self.directory = directory
        self.group_id = group_id
        self.segment_bytes = segment_bytes
        self._usable_end = segment_bytes - PIECE_MAX
        self.segments_max = max(2, segments_max)
        self.chain: deque[Segment] = deque()
        self.segment_files = SegmentFiles(files, directory, segment_bytes=segment_bytes, count_max=self.segments_max)
        self.spares = self.segment_files.spares
        self.last = 0
        self.durable = 0
        self.failed: JournalFailed | None = None
        self._unsynced: list[Segment] = []
        self._retired: list[Segment] = []
        self._resets = 0
        self.keep_tail = False
        tail = self._tail = JournalTail(tail_bytes)
        self._keep, self._keep_range, self.trim_tail = tail.keep, tail.keep_range, tail.trim
        self.next_ordinal = 1
        self.incarnation = 1
        """The group's present run, for segment headers."""
        self.rolled = False
        """Set when a segment was begun; whoever reacts clears it."""

    # ---- space -------------------------------------------------------------

    def adopt(self, chain: list[Segment], spares: list[File], last: int, next_ordinal: int) -> None:
        """Take what recovery found; everything in ``chain`` is durable."""
        self.chain.extend(chain)
        self.segment_files.adopt(len(chain), spares)
        self.last = self.durable = last
        self.next_ordinal = next_ordinal

    @property
    def room(self) -> int:
        """Bytes that can be appended for sure, without another segment file being made."""
        room = len(self.spares) * (self._usable_end - DATA_START)
        if self.chain and (rest := self._usable_end - self.chain[-1].end) > 0:
            room += rest
        return room

    @property
    def half_full(self) -> bool:
        """Whether a checkpoint should free segments soon."""
        return 2 * len(self.chain) > self.segments_max

    @property
    def used_bytes(self) -> int:
        """Bytes of records that are kept."""
        return sum(segment.end - DATA_START for segment in self.chain)

    def prepare(self, wanted: int) -> bool:
        """Make spare segment files until ``room`` reaches ``wanted`` bytes or the limit is met.

        Returns False when there is no room to make more (limit, or the file system is full).
        """
        while self.room < wanted:
            if self.segment_files.full or not self.segment_files.make_now():
                return False
        return True

    @property
    def wants_spare(self) -> bool:
        """Whether a spare should be made now: writes have come far enough to need one before long."""
        if not self.chain or self.spares or self.failed is not None or self.half_full:
            return False
        filled = len(self.chain) > 1 and self.chain[-2].end >= self.segment_bytes >> 1
        return (filled or self.chain[-1].end >= self.segment_bytes >> 3) and not self.segment_files.full

    # ---- appending ---------------------------------------------------------

    def append(self, buffers: list[Buffer], size: int, first: int, last: int, *, pairs: bool = True) -> None:
        """Append records ``first``..``last``: ``size`` bytes in ``buffers``.

        With ``pairs``, buffers alternate header and data (data may be empty), so that they
        may be cut anywhere between records; else they are one piece, the first buffer a NOTE.

        Raises:
            JournalFailed: the write failed; the journal takes nothing more.
        """
        if self.failed is not None:
            raise self.failed
        segment = self.chain[-1] if self.chain else None
        try:
            if segment is not None and size <= self.segment_bytes - segment.end and len(buffers) <= IOV_MAX:
                self._put(segment, buffers, size, first, last, pairs=pairs)
            elif pairs:
                self._append_split(buffers, first)
            else:
                segment = self._next_segment(first)
                self._put(segment, buffers, size, first, last, pairs=False)
        except OSError as error:
            self.fail(f"journal write failed: {error}")
        if self.keep_tail:
            if pairs:
                self._keep(buffers, size, first, last)
            else:  # all but the NOTE, which is for this journal only
                self._keep_range(JournalRange(first, last, buffers[1:], size - HEADER_SIZE))

    def _append_split(self, buffers: list[Buffer], first: int) -> None:
        segment = self.chain[-1] if self.chain else self._next_segment(first)
        start, size, sequence = 0, 0, first
        for index in range(0, len(buffers), 2):
            record = len(memoryview(buffers[index])) + len(memoryview(buffers[index + 1]))
            full = size + record > self.segment_bytes - segment.end
            if full or index - start + 2 > IOV_MAX:
                if size:
                    self._put(segment, buffers[start:index], size, sequence, first + index // 2 - 1)
                start, size, sequence = index, 0, first + index // 2
                if record > self.segment_bytes - segment.end:
                    segment = self._next_segment(sequence)
            size += record
        if size:
            self._put(segment, buffers[start:], size, sequence, first + len(buffers) // 2 - 1)

    def _put(
        self, segment: Segment, buffers: list[Buffer], size: int, first: int, last: int, *, pairs: bool = True
    ) -> None:
        segment.file.write_vector(buffers, size, segment.end)
        segment.note_position(first, segment.end)
        if pairs and size > INDEX_STEP:
            position = segment.end
            for index in range(0, len(buffers), 2):
                segment.note_position(first + index // 2, position)
                position += len(memoryview(buffers[index])) + len(memoryview(buffers[index + 1]))
        segment.end += size
        segment.last = self.last = last
        if not self._unsynced or self._unsynced[-1] is not segment:
            self._unsynced.append(segment)

    def _next_segment(self, first: int, *, beyond_limit: bool = False) -> Segment:
        files = self.segment_files
        if not self.spares and ((files.full and not beyond_limit) or not files.make_now()):
            self.fail("journal has no segment left")
        file, written = files.pop()
        segment = Segment(self.next_ordinal, first, file, last=first - 1, written=written)
        header = SegmentHeader(
            self.group_id, segment.ordinal, first, self.durable, self.incarnation, segment.file.size()
        )
        segment.file.write(header.encode(), 0)
        self.next_ordinal += 1
        self.chain.append(segment)
        self._unsynced.append(segment)
        self.rolled = True
        return segment

    def begin_segment(self) -> None:
        """Go on in a new segment: recovery never writes behind what it found, even if the journal is full.

        Raises:
            JournalFailed: there is no room for one.
        """
        if self.failed is None:
            try:
                self._next_segment(self.last + 1, beyond_limit=True)
            except OSError as error:
                self.fail(f"journal write failed: {error}")

    def sync_now(self) -> None:
        """A sync that holds up the loop, for rare orders.

        Raises:
            JournalFailed: it failed; it is never tried again (F13).
        """
        segments, self._unsynced = self._unsynced, []
        try:
            for segment in segments:
                segment.file.sync_now()
                segment.begun = True
        except OSError as error:
            self.fail(f"journal sync failed: {error}")
        self.durable = self.last

    def fail(self, reason: str) -> None:
        """Take nothing more, for ever (I4: what a failed write or sync left behind is unknown).

        Raises:
            JournalFailed: always.
        """
        raise self._failure(reason)

    def _failure(self, reason: str) -> JournalFailed:
        if self.failed is None:
            self.failed = JournalFailed(reason)
        return self.failed

    def begin_sync(self, done: Callable[[int, JournalFailed | None], None]) -> None:
        """Begin to make durable what was appended before the call.

        ``done`` gets the last sequence number of it, and the error if a sync failed; that is never tried again (F13).
        """
        target, resets = self.last, self._resets
        if self.failed is not None:
            done(target, self.failed)
            return
        try:
            self._write_ahead()
        except OSError as error:
            done(target, self._failure(f"journal write failed: {error}"))
            return
        segments, self._unsynced = self._unsynced, []
        rest = iter(segments)
        current: Segment | None = None

        def go_on(error: OSError | None) -> None:
            nonlocal current
            if error is not None:
                done(target, self._failure(f"journal sync failed: {error}"))
                return
            if current is not None:
                current.begun = True
            current = next(rest, None)
            if current is not None:
                current.file.begin_sync(go_on)
                return
            if resets == self._resets:  # else the number is that of a journal before
                self.durable = max(self.durable, target)
            done(target, None)

        go_on(None)

    def _write_ahead(self) -> None:
        """Fill what the next records take with zeros: one sync for all of them changes the file's extents (spares.py).

        Raises:
            OSError: the write failed.
        """
        segment = self.chain[-1] if self.chain else None
        if segment is not None and segment.end + WRITE_AHEAD // 2 > segment.written:
            start = max(segment.written, segment.end)
            end = segment.written = min(start + WRITE_AHEAD, self.segment_bytes)
            for position in range(start, end, CALL_BYTES):
                segment.file.write(ZEROES[: end - position], position)

    # ---- freeing -----------------------------------------------------------

    def free_through(self, sequence: int) -> int:
        """Recycle segments all of whose records are <= ``sequence``; return how many."""
        freed = 0
        chain = self.chain
        while len(chain) > 1 and chain[1].begun and chain[1].first <= sequence + 1 and chain[0].last <= sequence:
            segment = chain.popleft()
            if segment in self._unsynced:
                self._unsynced.remove(segment)
            self._recycle(segment)
            freed += 1
        return freed

    def _recycle(self, segment: Segment) -> None:
        self.segment_files.recycle(segment.file, max(segment.written, segment.end))

    def reset(self, last: int, incarnation: int) -> int:
        """Forget every record; the next one is ``last + 1``. Returns the ordinal the new chain begins with.

        The new chain's first header is durable on return. The files of the old chain stay as
        they are until `release_retired`: a crash before the catalogue has the new chain needs them.

        Raises:
            JournalFailed: there is no room for a segment; nothing was changed.
        """
        if self.failed is not None:
            raise self.failed
        if not self.spares and not self.segment_files.make_now():
            raise JournalFailed(f"no room for a journal segment in {self.directory}")
        self._retired += self.chain
        self.chain.clear()
        self._resets += 1
        self._unsynced.clear()
        self._tail.clear()
        self.last = self.durable = last
        self.incarnation = incarnation
        self.begin_segment()
        self.sync_now()
        return self.chain[0].ordinal

    def release_retired(self) -> None:
        """Recycle the files of the chain before `reset`: the catalogue has the new one."""
        for segment in self._retired:
            self._recycle(segment)
        self._retired.clear()

    # ---- reading -----------------------------------------------------------

    @property
    def first(self) -> int:
        """Lowest sequence number that can be read."""
        return self.chain[0].first if self.chain else self.last + 1

    def read(self, first: int, max_bytes: int, *, wait: bool = False) -> JournalRange | None:
        """Return whole records from ``first`` on, about ``max_bytes``, at least one; None beyond the end.

        Raises:
            Trimmed: ``first`` is no longer kept.
            WouldBlock: the segment is not in the page cache and ``wait`` is false.
            DiskFailed: the disk returned an error; another time it may not.
            Corrupt: what is on the disk is not what was written.
        """
        if first > self.last:
            return None
        found = self._tail.read(first, max_bytes)
        if found is not None:
            return found
        return self._read_segment(first, max_bytes, wait)

    def find(self, sequence: int) -> tuple[Segment, int]:
        """Return the segment that holds an appended record, and where in it that record or a near one before it begins.

        Raises:
            Trimmed: the record is no longer kept.
        """
        if sequence < self.first:
            raise Trimmed(self.first)
        segment = next(segment for segment in reversed(self.chain) if segment.first <= sequence)
        return segment, segment.positions[bisect_right(segment.sequences, sequence) - 1]

    def _read_segment(self, first: int, max_bytes: int, wait: bool) -> JournalRange:
        segment, position = self.find(first)
        view = memoryview(bytearray(min(segment.end - position, max_bytes + INDEX_STEP + PIECE_MAX)))
        if wait:
            try:
                segment.file.read_now(view, position)
            except OSError as error:
                raise DiskFailed(f"journal segment {segment.file.path}: reading failed: {error}") from error
        elif not segment.file.read_nowait(view, position):
            raise WouldBlock("journal segment is not in memory")
        return cut_range(view, first, max_bytes)

    def records(self, first: int, last: int) -> list[Record]:
        """Decode records ``first``..``last`` (some of them when they are many), waiting for the disk.

        Raises: as `read`.
        """
        found = self.read(first, READ_BATCH, wait=True)
        assert found is not None
        view = memoryview(b"".join(found.buffers))
        position = 0
        result: list[Record] = []
        while position < len(view):
            record = decode_untrusted(view, position)
            position += record.size
            if record.sequence > last:
                break
            result.append(record)
        return result

    def close(self) -> None:
        """Close the files; nothing is synced."""
        self.segment_files.close()
        for segment in (*self.chain, *self._retired):
            segment.file.close()
