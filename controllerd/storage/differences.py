"""Differences: which parts of a group's volumes a copy elsewhere may not have.

Owns: for each copy (the secondary of a pair), a map of what was written and is not known to be durable there.
Never: knows pairs, or decides what a copy has; replication says so.

While the copy follows, nothing is done for a write. Who asks has the journal read from the number on that the copy has,
headers only, in slices; the next time it goes on where it ended. Two maps take turns: when the copy has everything that
the older one is of, the newer one takes its place. So a part may stay marked until the copy has passed the end of the
map that it is in, which takes no longer than it is behind.

When the copy gets nothing more (`freeze`), what the journal holds for it is read once, the journal being kept
meanwhile, and from then on every commit is noted.

What a reader would get wrong: a part that is not marked is a promise (I12), a marked one is not. So in doubt everything
is marked: when nothing is known of the copy, or the journal cannot be read in time.

Source: spec §3.7, §7.3; BK ¶17; invariant I12.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from controllerd.model.bitmap import DifferenceMap, runs
from controllerd.model.errors import Corrupt, DiskFailed, RemoteCopyError
from controllerd.model.records import DATA_KINDS, HEADER_SIZE, Kind, RecordError, decode_place_untrusted
from controllerd.storage.journal import Segment
from controllerd.storage.pending import Entry

if TYPE_CHECKING:
    from controllerd.storage.group import Group
    from controllerd.storage.volume import Volume

SHIFT: Final = 16
"""A bit stands for 64 KiB: 2 MiB of memory for a map of 1 TiB."""
LEARN_S: Final = 10.0
"""Longest time for reading the journal; a GiB of 4 KiB writes takes 0.8 s of a core."""
_SLICE_BYTES: Final = 128 << 10
"""Read in one go: records without data, 1,600 of them, take about 4 ms."""
_NOTE: Final = int(Kind.NOTE)


class Differences:
    """What one copy of ``group`` may not have.

    ``has`` gives the number up to which it surely has everything, or None when nothing is known of it.
    """

    def __init__(self, group: Group, name: str, has: Callable[[], int | None]) -> None:
        self._group = group
        self._consumer = f"differences of {name}"
        self._has = has
        self._everything = False
        self._end: int | None = None
        """Frozen: up to here the journal is read, what comes behind it is noted."""
        self._older: dict[int, DifferenceMap] = {}
        self._newer: dict[int, DifferenceMap] = {}
        """By volume key. ``_older`` is of the records behind ``_from``, ``_newer`` of those behind ``_middle``."""
        self._from = self._middle = 0
        self._walked = 0
        """Number of the last record that was read."""
        self._owed = 0
        """Reading up to here failed, or has to be done again: as long as less is read, everything may differ."""
        self._lock = asyncio.Lock()
        self._finishing: asyncio.Task[None] | None = None
        group.copies.append(self)

    # ---- what the copy does ------------------------------------------------------

    def freeze(self) -> None:
        """The copy gets nothing more. The journal behind what it has is kept until it is read, or `LEARN_S`."""
        group = self._group
        if self._everything or self._end is not None:
            return
        if not self._renew():
            self.give_up()
            return
        self._end = group.last_seq
        group.fed.append(self)
        if self._walked < self._end:
            group.set_retention(self._consumer, self._walked)
            self._finishing = asyncio.get_running_loop().create_task(self._finish(self._end), name=self._consumer)

    async def _finish(self, end: int) -> None:
        try:
            async with asyncio.timeout(LEARN_S), self._lock:
                await self._read(end)
        except (RemoteCopyError, TimeoutError):
            self.give_up()
        finally:
            self._group.set_retention(self._consumer, None)

    def give_up(self) -> None:
        """From now on everything may differ: the copy may have what was never here, or hosts write to it."""
        self._everything = True
        self._older, self._newer = {}, {}
        if self in self._group.fed:
            self._group.fed.remove(self)

    def close(self) -> None:
        """There is no such copy any more, or the controller stops."""
        self.give_up()
        self._group.copies.remove(self)
        if self._finishing is not None:
            self._finishing.cancel()
        self._group.set_retention(self._consumer, None)

    def note(
        self, staged: Iterable[tuple[Volume | None, int, int, int, memoryview | None]], received: Iterable[Entry]
    ) -> None:
        """Take what the group commits, of hosts or of its own primary."""
        for volume, _, offset, length, _ in staged:
            if volume is not None:
                self._mark(volume.key, offset, length)
        for entry in received:
            if entry.kind in DATA_KINDS:
                self._mark(entry.volume, entry.offset, entry.length)

    # ---- what is asked for -------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether there is nothing to `learn`."""
        return self._everything or not self._renew() or self._walked >= self._target

    @property
    def _target(self) -> int:
        return self._group.last_seq if self._end is None else self._end

    async def learn(self) -> None:
        """Read the journal up to what is committed now. If it cannot be read in time, `part` says so."""
        target = self._target
        try:
            async with asyncio.timeout(LEARN_S), self._lock:
                await self._read(target)
        except (RemoteCopyError, TimeoutError):
            self._owed = max(self._owed, target)

    def part(self, key: int, first: int, count: int) -> int | None:
        """Return the bits (`DifferenceMap.part`) of a volume as they were learned; None: all may differ."""
        if self._everything or not self._renew() or self._walked < self._owed:
            return None
        found = 0
        for maps in (self._older, self._newer):
            if key in maps:
                found |= maps[key].part(first, count)
        return found

    # ---- inside --------------------------------------------------------------------

    def _renew(self) -> bool:
        """Forget what the copy has by now; False: nothing is known of it."""
        if self._end is not None:
            return True
        has = self._has()
        if has is None:
            return False
        if not self._from <= has < self._walked:  # it has all that was read, or less than before
            if has < self._from:
                self._owed = self._group.last_seq
            self._older, self._newer = {}, {}
            self._from = self._middle = self._walked = has
        elif has >= self._middle:
            self._older, self._newer = self._newer, {}
            self._from, self._middle = self._middle, self._walked
        return True

    async def _read(self, target: int) -> None:
        """Mark what the records up to ``target`` change that the copy may not have.

        Raises:
            Trimmed, Corrupt, DiskFailed: they are not there any more, or cannot be read.
        """
        journal = self._group.journal
        segment: Segment | None = None
        position = walked = 0
        while not self._everything and self._renew() and self._walked < target:
            if segment is None or position >= segment.end or walked != self._walked:
                segment, position = journal.find(self._walked + 1)
            walked = self._walked
            view = memoryview(bytearray(min(_SLICE_BYTES, segment.end - position)))
            try:
                if segment.file.read_nowait(view, position):
                    await asyncio.sleep(0)
                else:
                    await segment.file.read(view, position)
            except OSError as error:
                raise DiskFailed(f"journal segment {segment.file.path}: reading failed: {error}") from error
            if segment not in journal.chain:
                segment = None  # overwritten perhaps while it was read: the copy has it by now
            elif walked == self._walked and not self._everything:
                position += self._take_untrusted(view)
                walked = self._walked
                if position >= segment.end and self._walked < segment.last:
                    raise Corrupt(f"journal segment {segment.file.path} ends before record {segment.last}")

    def _take_untrusted(self, view: memoryview) -> int:
        """Mark what the records in ``view`` change; returns how far from its start the next one begins.

        Raises:
            Corrupt: these are not the next records.
        """
        position, last = 0, len(view) - HEADER_SIZE
        while position <= last:
            try:
                kind, key, offset, length, sequence, size = decode_place_untrusted(view, position)
            except RecordError as error:
                raise Corrupt(f"journal record {self._walked + 1} cannot be read back: {error}") from error
            position += size
            if kind == _NOTE or sequence <= self._walked:
                continue
            if sequence != self._walked + 1:
                raise Corrupt(f"journal has record {sequence} where {self._walked + 1} has to come")
            if kind in DATA_KINDS:
                self._mark(key, offset, length)
            self._walked = sequence
        if not position:
            raise Corrupt(f"journal record {self._walked + 1} is cut short")
        return position

    def _mark(self, key: int, offset: int, length: int) -> None:
        found = self._newer.get(key)
        if found is None:
            size = self._group.volumes[key].size
            found = self._newer[key] = DifferenceMap((size - 1 >> SHIFT) + 1)
        first = offset >> SHIFT
        found.set(first, (offset + length - 1 >> SHIFT) - first + 1)


def differing(volume: Volume, offset: int, length: int) -> list[tuple[int, bool]]:
    """Return (length, some copy may not have it) runs that cover the range exactly.

    Without a copy, nothing is known of one: everything may differ.
    """
    first = offset >> SHIFT
    count = (offset + length - 1 >> SHIFT) - first + 1
    parts = [copy.part(volume.key, first, count) for copy in volume.group.copies]
    together = 0
    for part in parts or [None]:
        if part is None:
            return [(length, True)]
        together |= part
    found: list[tuple[int, bool]] = []
    start, position = first << SHIFT, offset
    for granules, marked in runs(together, count):
        start += granules << SHIFT
        stop = min(start, offset + length)
        found.append((stop - position, marked))
        position = stop
    return found
