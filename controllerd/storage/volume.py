"""Logical volume: a map from logical regions to disk regions, and reading through it.

Owns: the map (u32 per region, 0 = not allocated, reads as zeros), the choice of
disk regions, and reads that see every journaled write (spec §3.6).
Never: journals, destages, or answers a host.

Map entries change in memory at once; the checkpoint keeps the changed pages. A
region is taken from the pool when a write to it is staged, before the write is
journaled, so that a full pool is an answer to the host (architecture §4).
"""

from __future__ import annotations

import asyncio
import enum
from array import array
from typing import TYPE_CHECKING, Any, Final, Protocol

from controllerd.model.access import Client, Grant, Rules, grant
from controllerd.model.errors import BadOrder, Busy, Corrupt, DiskFailed
from controllerd.storage import differences
from controllerd.storage.layers import BLOCK_SHIFT, Layers, Run, among
from controllerd.storage.pools import Pool

if TYPE_CHECKING:
    from controllerd.storage.group import Group

MAP_PAGE_ENTRIES: Final = 1024
_READ_RETRIES: Final = 3
READ_WAIT_S: Final = 5.0
"""Longest that a read waits for a cut to be applied whole (I7)."""


class Session(Protocol):
    """One host session on a volume, kept by the target that serves it."""

    def describe(self) -> dict[str, Any]:
        """Number ("id"), peer address, protocol, access and what it did, for people."""

    def recheck(self) -> None:
        """The volume's `allow` has changed: end, unless the host may do what it could."""

    def abort(self, reason: str) -> None:
        """End at once; what was acknowledged stays."""


class Access(enum.StrEnum):
    """What an administrator allows hosts to do, apart from pair states."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"


class Volume:
    """One logical volume. ``size`` in bytes, ``key`` as in the journal's records."""

    def __init__(
        self,
        *,
        volume_id: int,
        name: str,
        key: int,
        size: int,
        pool: Pool,
        group: Group,
        block_size: int = 4096,
        description: str = "",
        access: Access = Access.READ_WRITE,
        allow: Rules = None,
    ) -> None:
        self.volume_id = volume_id
        self.name = name
        self.key = key
        self.size = size
        self.pool = pool
        self.group = group
        self.block_size = block_size
        self.description = description
        self.access = access
        self.allow = allow
        """Which hosts may open it; None: every host."""
        self.shift = pool.shift
        self.map: array[int] = array("I", bytes(4 * self._region_count(size)))
        self.dirty_pages: set[int] = set()
        self._mapped = 0
        self.layers = Layers(pool.shift)
        self.sessions: set[Session] = set()
        self.destages = 0
        """Counts ended destages; a read that waited for a disk checks it and starts again."""
        self._opening: asyncio.Event | None = None

    def _region_count(self, size: int) -> int:
        return (size + (1 << self.pool.shift) - 1) >> self.pool.shift

    # ---- state -------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether a host write would be accepted now (spec §7.5)."""
        return self.access is Access.READ_WRITE and self.group.refusal is None

    @property
    def visible(self) -> bool:
        """Whether hosts may open the volume at all."""
        return self.group.read_error is None

    def grant(self, client: Client) -> Grant:
        """Return what this host may do, apart from what the volume's state allows."""
        return grant(self.allow, client)

    @property
    def allocated(self) -> int:
        """Bytes of disk taken."""
        return self._mapped << self.shift

    @property
    def is_empty(self) -> bool:
        """Whether every byte reads as zero because nothing was ever kept."""
        pending = any(entry.volume == self.key for entry in self.group.pending)
        return self.layers.clean and not self._mapped and not pending

    # ---- copies ------------------------------------------------------------

    @property
    def copied(self) -> bool:
        """Whether there is a copy elsewhere, so that what differs from it can be asked for."""
        return bool(self.group.copies)

    @property
    def differences_known(self) -> bool:
        """Whether `differing` knows everything written so far; if not, let `learn_differences` end first."""
        return all(copy.known for copy in self.group.copies)

    async def learn_differences(self) -> None:
        """Find out, within `differences.LEARN_S`, what copies may not have of everything written before the call."""
        for copy in list(self.group.copies):
            await copy.learn()

    def differing(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return (length, some copy may not have it durably) runs that cover the range exactly."""
        return differences.differing(self, offset, length)

    # ---- map ---------------------------------------------------------------

    def load_map(self, pages: dict[int, bytes]) -> None:
        """Take the catalogue's map pages and mark their regions used.

        Raises:
            Corrupt: a page does not fit the volume or names a region twice.
        """
        for page, entries in pages.items():
            values = array("I", entries)
            start = page * MAP_PAGE_ENTRIES
            if start + len(values) > len(self.map):
                raise Corrupt(f"volume {self.name}: map page {page} lies beyond the end")
            self.map[start : start + len(values)] = values
            for region in values:
                if region:
                    try:
                        self.pool.mark_used(region)
                        self._mapped += 1
                    except BadOrder as error:
                        raise Corrupt(f"volume {self.name}: {error}") from error

    def take_dirty_pages(self) -> list[tuple[int, int, bytes]]:
        """Return (volume id, page, entries) of the changed pages, and forget that they changed."""
        pages = [
            (self.volume_id, page, self.map[page * MAP_PAGE_ENTRIES : (page + 1) * MAP_PAGE_ENTRIES].tobytes())
            for page in sorted(self.dirty_pages)
        ]
        self.dirty_pages.clear()
        return pages

    def grow(self, size: int) -> None:
        """Make the volume larger; the new part reads as zeros."""
        self.map.extend([0] * (self._region_count(size) - len(self.map)))
        self.size = size

    def reserve(self, first: int, last: int) -> None:
        """Give every logical region from ``first`` to ``last`` a disk region.

        Raises:
            NoSpace: the pool is full; regions taken so far stay (they read as zeros).
        """
        entries = self.map
        pool = self.pool
        for region in range(first, last + 1):
            if entries[region]:
                continue
            entries[region] = pool.allocate(self._hint(region))
            self._mapped += 1
            self.dirty_pages.add(region // MAP_PAGE_ENTRIES)

    def _hint(self, region: int) -> int:
        """Disk region that would keep neighbours together, so that destage can join writes."""
        entries = self.map
        low = region & ~63
        for other in (region - 1, region + 1):
            if low <= other < low + 64 and other < len(entries) and entries[other]:
                return entries[other] + region - other
        for other in range(low, min(low + 64, len(entries))):
            if entries[other]:
                return entries[other] + region - other
        start = self.pool.start_run()
        return start + (region & 63) if start else 0

    def unmap(self, region: int) -> int:
        """Take a logical region out of the map and return the disk region that is now unused (or 0)."""
        number = self.map[region]
        if number:
            self.map[region] = 0
            self._mapped -= 1
            self.dirty_pages.add(region // MAP_PAGE_ENTRIES)
        return number

    # ---- reading -----------------------------------------------------------

    def close_reads(self) -> None:
        """Let reads wait until `open_reads`, so that they see what was before or what comes after, never between.

        Those that wait longer than `READ_WAIT_S` get an error.
        """
        if self._opening is None:
            self._opening = asyncio.Event()

    def open_reads(self) -> None:
        """Let reads go on."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.set()

    async def _wait_for_opening(self) -> None:
        try:
            async with asyncio.timeout(READ_WAIT_S):
                while self._opening is not None:
                    await self._opening.wait()
        except TimeoutError:
            raise Busy(f"volume {self.name}: its image is between two states; what is applied cannot go on") from None

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from byte ``offset``; the caller has checked the range.

        Returns False, with ``buffer`` undefined, when the disk would have to be
        waited for: then `read` does it.

        Raises:
            Corrupt, DiskFailed: the group's data cannot be trusted or read.
        """
        if self.group.read_error is not None:
            raise self.group.read_error
        if self._opening is not None:
            return False
        length = len(buffer)
        layers = self.layers
        block = offset >> BLOCK_SHIFT
        if length == 4096 and not offset & 4095:  # the case that the benchmark and file systems live in
            content = layers.active.get(block)
            if content is None and not layers.zeroed:
                content = layers.frozen.get(block)
                if content is None and not layers.frozen_zeroed:
                    return self._read_disk_nowait(buffer, offset)
            if type(content) is memoryview:
                buffer[:] = content
                return True
            if type(content) is Run:
                buffer[:] = content.part(block, 1)
                return True
        if not layers.touches(block, (offset + length - 1) >> BLOCK_SHIFT):
            return self._read_disk_nowait(buffer, offset)
        if not layers.covers(offset, offset + length) and not self._read_disk_nowait(buffer, offset):
            return False
        layers.overlay(buffer, offset)
        return True

    async def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from byte ``offset``, waiting for the disk without holding up the loop.

        Raises:
            Corrupt, DiskFailed: the data cannot be trusted or read; nothing stale is returned (I9).
            Busy: a takeover keeps the volume closed for too long.
        """
        await self._wait_for_opening()
        if self.group.read_error is not None:
            raise self.group.read_error
        for _ in range(_READ_RETRIES):
            destages = self.destages
            for disk_file, disk_offset, low, high in self._pieces(offset, len(buffer)):
                if disk_file is None:
                    buffer[low:high] = bytes(high - low)
                else:
                    try:
                        await disk_file.read(buffer[low:high], disk_offset)
                    except OSError as error:
                        raise DiskFailed(f"volume {self.name}: reading failed: {error}") from error
            if self._opening is not None:
                await self._wait_for_opening()
            elif destages == self.destages:
                # No block left the cache while the disk was read, so what is not in the cache is on the disk.
                self.layers.overlay(buffer, offset)
                return
        for disk_file, disk_offset, low, high in self._pieces(offset, len(buffer)):
            if disk_file is None:
                buffer[low:high] = bytes(high - low)
            else:
                try:
                    disk_file.read_now(buffer[low:high], disk_offset)
                except OSError as error:
                    raise DiskFailed(f"volume {self.name}: reading failed: {error}") from error
        self.layers.overlay(buffer, offset)

    def _read_disk_nowait(self, buffer: memoryview, offset: int) -> bool:
        shift = self.shift
        region = offset >> shift
        end = offset + len(buffer)
        if end <= region + 1 << shift:
            number = self.map[region]
            if not number:
                buffer[:] = bytes(len(buffer))
                return True
            disk, start = self.pool.locate(number)
            return disk.file.read_nowait(buffer, start + (offset & (1 << shift) - 1))
        for disk_file, disk_offset, low, high in self._pieces(offset, len(buffer)):
            if disk_file is None:
                buffer[low:high] = bytes(high - low)
            elif not disk_file.read_nowait(buffer[low:high], disk_offset):
                return False
        return True

    def _pieces(self, offset: int, length: int) -> list[tuple[Any, int, int, int]]:
        """Split a range into (file or None for a hole, disk offset, low, high) with low..high in the buffer."""
        shift = self.shift
        pool = self.pool
        entries = self.map
        end = offset + length
        pieces: list[tuple[Any, int, int, int]] = []
        position = offset
        while position < end:
            region = position >> shift
            number = entries[region]
            stop = min(region + 1 << shift, end)
            if number:
                while stop < end and entries[region + 1] == entries[region] + 1 and pool.neighbour(entries[region]):
                    region += 1
                    stop = min(region + 1 << shift, end)
                disk, start = pool.locate(number)
                pieces.append((disk.file, start + (position & (1 << shift) - 1), position - offset, stop - offset))
            else:
                while stop < end and not entries[region + 1]:
                    region += 1
                    stop = min(region + 1 << shift, end)
                pieces.append((None, 0, position - offset, stop - offset))
            position = stop
        return pieces

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether no part of the range takes space on a disk; it reads as zeros then.

        A region that was written, but trimmed since, counts as a hole from the next destage on.
        """
        entries, shift = self.map, self.shift
        first = offset >> shift
        if entries[first] or self.group.read_error is not None:
            return False
        return not any(entries[first + 1 : (offset + length - 1 >> shift) + 1])

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return (length, reads as zeros and takes no space) runs that cover the range exactly."""
        shift = self.shift
        layers = self.layers
        per_region = shift - BLOCK_SHIFT
        runs: list[tuple[int, bool]] = []
        position = offset
        end = offset + length
        blocks = range(offset >> BLOCK_SHIFT, (end - 1 >> BLOCK_SHIFT) + 1)
        cached = {block >> per_region for block in among(layers.active, blocks)}
        frozen = {block >> per_region for block in among(layers.frozen, blocks)}
        while position < end:
            region = position >> shift
            stop = min(region + 1 << shift, end)
            if region in cached:
                hole = False
            elif region in layers.zeroed:
                hole = True
            elif region in frozen:
                hole = False
            else:
                hole = region in layers.frozen_zeroed or not self.map[region]
            if runs and runs[-1][1] == hole:
                runs[-1] = (runs[-1][0] + stop - position, hole)
            else:
                runs.append((stop - position, hole))
            position = stop
        return runs
