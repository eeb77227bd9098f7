"""Disks and pools: physical capacity cut into regions, and who uses which.

Owns: the disk files, the numbering of regions in a pool, the free list.
Never: knows what a region holds, or writes data.

A pool's regions are numbered from 1 through all its disks in the order they were
added; 0 means "not allocated". Every free region reads as zeros: it was never
written, or was zeroed before it came back to the free list, so that a volume may
write part of a new region and the rest of it is zeros (VC ¶68: free areas).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controllerd.model.errors import BadOrder, NoSpace
from controllerd.storage.io import File

MIN_REGION_SIZE: Final = 4096
MAX_REGION_SIZE: Final = 16 << 20
_HINT_RUN: Final = 64
_SHORT_SHIFT: Final = 5
"""A pool is short of space when less than 1/32 of it is free."""


@dataclass(slots=True)
class Disk:
    """A file or raw block device that gives capacity. ``failed``: why it is not used now."""

    name: str
    path: str
    size: int
    file: File
    failed: str | None = None


class Pool:
    """Disks cut into regions of one size, and the free list over them."""

    def __init__(self, name: str, region_size: int, disks: list[Disk]) -> None:
        if region_size & (region_size - 1) or not MIN_REGION_SIZE <= region_size <= MAX_REGION_SIZE:
            raise BadOrder(
                f"region size {region_size} must be a power of two from {MIN_REGION_SIZE} to {MAX_REGION_SIZE} bytes"
            )
        self.name = name
        self.region_size = region_size
        self.shift = region_size.bit_length() - 1
        self.disks: list[Disk] = []
        self._starts: list[int] = []
        self._used = bytearray(b"\1")  # region 0 is never given out
        self.free = 0
        self.on_full: Callable[[Pool], None] = _nobody
        """Called whenever a region is wanted and none is free."""
        self._cursor = 1
        for disk in disks:
            self.add_disk(disk)

    def add_disk(self, disk: Disk) -> None:
        """Append a disk's regions to the pool.

        Raises:
            BadOrder: the disk is smaller than one region.
        """
        count = self.regions_of(disk)
        self._starts.append(len(self._used))
        self.disks.append(disk)
        self._used.extend(bytes(count))
        self.free += count

    def regions_of(self, disk: Disk) -> int:
        """How many regions of the pool a disk has room for.

        Raises:
            BadOrder: not for one.
        """
        count = disk.size >> self.shift
        if count == 0:
            raise BadOrder(f"disk {disk.name} ({disk.size} bytes) is smaller than one region of {self.region_size}")
        return count

    @property
    def regions(self) -> int:
        """Regions in the pool, free or not."""
        return len(self._used) - 1

    @property
    def short(self) -> bool:
        """Whether so little is free that trimmed regions should come back at once."""
        return self.free <= self.regions >> _SHORT_SHIFT

    def locate(self, region: int) -> tuple[Disk, int]:
        """Return the disk a region lies on and its offset there in bytes."""
        index = bisect_right(self._starts, region) - 1
        return self.disks[index], (region - self._starts[index]) << self.shift

    def neighbour(self, region: int) -> bool:
        """Whether ``region + 1`` directly follows ``region`` on the same disk."""
        return region + 1 not in self._starts and region + 1 < len(self._used)

    def mark_used(self, region: int) -> None:
        """Take a region that a loaded map names.

        Raises:
            BadOrder: it does not exist or is already taken (two maps name one region).
        """
        if not 0 < region < len(self._used) or self._used[region]:
            raise BadOrder(f"pool {self.name}: region {region} does not exist or is used twice")
        self._used[region] = 1
        self.free -= 1

    def allocate(self, hint: int) -> int:
        """Take a free region, ``hint`` itself if it is free.

        Raises:
            NoSpace: every region of the pool is used.
        """
        used = self._used
        if not 0 < hint < len(used) or used[hint]:
            hint = self._find_free()
        used[hint] = 1
        self.free -= 1
        return hint

    def start_run(self) -> int:
        """Return the start of a stretch of free regions, for a new part of a volume."""
        used = self._used
        found = used.find(bytes(_HINT_RUN), self._cursor)
        if found < 0:
            found = used.find(bytes(_HINT_RUN))
        if found < 0:
            return self._find_free() if self.free else 0
        self._cursor = found + _HINT_RUN
        return found

    def _find_free(self) -> int:
        found = self._used.find(0, self._cursor)
        if found < 0:
            found = self._used.find(0)
        if found < 0:
            self.on_full(self)
            raise NoSpace(f"pool {self.name} has no free region left ({self.regions} of {self.region_size} bytes used)")
        return found

    def zero(self, regions: list[int]) -> None:
        """Zero regions on their disks. May run in a thread: nobody else uses regions that wait for `release`."""
        for start, count in _runs(sorted(regions)):
            disk, offset = self.locate(start)
            last_disk, _ = self.locate(start + count - 1)
            if last_disk is disk:
                disk.file.zero(offset, count << self.shift)
            else:
                for region in range(start, start + count):
                    disk, offset = self.locate(region)
                    disk.file.zero(offset, self.region_size)

    def release(self, regions: list[int]) -> None:
        """Put regions that were zeroed back on the free list."""
        for start, count in _runs(sorted(regions)):
            self._used[start : start + count] = bytes(count)
            self.free += count

    def zero_free(self) -> list[tuple[Disk, OSError]]:
        """Zero every free region: after a crash some may hold data that was destaged and never checkpointed.

        Returns the disks where that failed, which then must not be used.
        """
        failed: list[tuple[Disk, OSError]] = []
        for disk in self.disks:
            try:
                if disk.failed is None:
                    self.zero_free_on(disk)
            except OSError as error:
                failed.append((disk, error))
        return failed

    def zero_free_on(self, disk: Disk) -> None:
        """`zero_free` for one disk of the pool.

        Raises:
            OSError: the disk refuses.
        """
        index = self.disks.index(disk)
        position = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._used)
        while (position := self._used.find(0, position, end)) >= 0:
            stop = self._used.find(1, position, end)
            stop = end if stop < 0 else stop
            disk.file.zero((position - self._starts[index]) << self.shift, (stop - position) << self.shift)
            position = stop


def _nobody(pool: Pool) -> None:
    """Nobody wants to know."""


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs
