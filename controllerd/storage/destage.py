"""Destage: put cached writes on the disks, in the background, in disk order.

Owns: when a group's layers are frozen, the order and size of disk writes, giving
unmapped regions back (after the next checkpoint).
Never: writes anything whose journal part is not durable (and, at a secondary, whose
cut the catalogue does not know: recovery must get at least there again), or drops a cached write
because a disk failed.

One window at a time and group: freeze the layers, make the journal durable through
it, write in order of address with neighbours joined, drop the window. A block
overwritten within the window is written once. The work is done in slices so that the
loop stays free (architecture §2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Final

from controllerd.model.errors import DiskFailed, RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.storage.background import Background
from controllerd.storage.group import Group
from controllerd.storage.io import IOV_MAX
from controllerd.storage.layers import BLOCK_SHIFT, Blocks, Layers, pieces
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.volume import Volume

SLICE_WRITES: Final = 48
SLICE_BYTES: Final = 2 << 20
SLICE_BLOCKS: Final = 8192
RUN_BYTES: Final = 8 << 20
"""Pieces that follow each other on a disk are joined up to here; one thread's job."""
LONG_WRITE: Final = 512 << 10
"""Joined pieces of at least so many bytes are written by a thread: copying them would hold up the loop."""
RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Window:
    """One destage: what is frozen, the mark that the disks reach with it, and what it takes of the budget."""

    volumes: list[Volume]
    mark: tuple[int, int, int]
    size: int
    start_ordinal: int


class Destager:
    """Destages one group. ``age_s``: the longest a write stays in memory only."""

    def __init__(
        self,
        group: Group,
        *,
        age_s: float,
        freed: Callable[[Group, Pool, int], None],
        announce: Callable[[Group, int], Awaitable[None]],
        report: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._group = group
        self._freed = freed
        self._announce = announce
        self._report = report
        self._background = Background(age_s, self._turn)
        self.start = self._background.start
        self.stop = self._background.stop
        self._lock = asyncio.Lock()
        self._window: _Window | None = None
        self._failing: str | None = None
        """Name of the disk that refused the last window."""
        self.windows = 0
        self.bytes_written = 0
        group.on_layer_full = self._background.poke

    async def _turn(self) -> None:
        if self._window is None and all(volume.layers.clean for volume in self._group.volumes.values()):
            return  # nothing but ticks: the next checkpoint is soon enough
        try:
            await self.destage()
        except RemoteCopyError:  # the group itself says what failed
            await asyncio.sleep(RETRY_S)

    async def destage(self) -> None:
        """Put everything visible now on the disks (not synced); nothing of a held group, whose recovery did not end.

        When it raises, the data stays in journal and cache, and the next call begins with it again.

        Raises:
            JournalFailed: the journal could not be made durable first; nothing was written.
            DiskFailed: a disk refused a write; hosts are refused until it takes it.
            RemoteCopyError: the group is held.
        """
        if self._group.read_error is not None:
            return
        async with self._lock:
            group = self._group
            try:
                if group.read_error is not None:
                    raise group.read_error
                if self._window is not None:  # it was interrupted, and newer writes wait in the active layers
                    await self._finish(self._window)
                volumes = [volume for volume in group.volumes.values() if not volume.layers.clean]
                for volume in volumes:
                    volume.layers.freeze()
                self._window = _Window(volumes, group.applied_mark, group.layer_bytes, group.facts.start_ordinal)
                group.layer_bytes = 0
                await self._finish(self._window)
            except RemoteCopyError:
                size = 0
                if self._window is not None:
                    size, self._window = self._window.size, replace(self._window, size=0)
                group.release_cache(size)
                raise

    async def _finish(self, window: _Window) -> None:
        group = self._group
        volumes = window.volumes
        dropped: list[Blocks] = []
        if window.mark[0] > group.durable_seq:  # ticks alone too: recovery will look for what the mark says
            await group.make_durable()
        if volumes:
            if group.role is Role.SECONDARY:
                await self._announce(group, window.mark[0])
            for volume in volumes:
                await self._unmap_zeroed(volume)
            for volume in volumes:
                await self._write(volume)
            for volume in volumes:
                dropped.append(volume.layers.drop_frozen())
                volume.destages += 1
            self.windows += 1
        self._resume()
        self._window = None
        if window.start_ordinal == group.facts.start_ordinal:  # else the numbers are those of a journal before
            group.destaged_mark = window.mark
        try:
            for blocks in dropped:
                await _let_go(blocks)
        finally:
            if window.size:
                group.budget.release(window.size)

    async def _unmap_zeroed(self, volume: Volume) -> None:
        """Free the regions that the window zeroed, or zero them where newer writes need the region."""
        layers, shift = volume.layers, volume.shift
        for count, region in enumerate(sorted(layers.frozen_zeroed), 1):
            if not volume.map[region]:
                continue
            if _has_blocks(layers, region) or self._group.stages(volume, region << shift, region + 1 << shift):
                disk, offset = volume.pool.locate(volume.map[region])
                self._put(disk, partial(disk.file.zero, offset, volume.pool.region_size))
            else:
                self._freed(self._group, volume.pool, volume.unmap(region))
            if count % 256 == 0:
                await asyncio.sleep(0)

    async def _write(self, volume: Volume) -> None:
        writes = slice_bytes = 0
        for disk, offset, buffers, size in _runs(volume, await _in_order(volume.layers.frozen)):
            if size >= LONG_WRITE:
                await self._put_long(disk, partial(disk.file.write_long, buffers, size, offset))
                self.bytes_written += size
                continue
            try:  # random writes come here one by one: no more than the call for each
                if len(buffers) == 1:
                    disk.file.write(buffers[0], offset)
                else:
                    disk.file.write_vector(buffers, size, offset)
            except OSError:
                self._put(disk, partial(disk.file.write_vector, buffers, size, offset))
            writes += 1
            slice_bytes += size
            if writes >= SLICE_WRITES or slice_bytes >= SLICE_BYTES:
                self.bytes_written += slice_bytes
                writes = slice_bytes = 0
                await asyncio.sleep(0)
        self.bytes_written += slice_bytes

    def _put(self, disk: Disk, write: Callable[[], None]) -> None:
        """Write once.

        Raises:
            DiskFailed: it did not work, and the group says so.
        """
        try:
            write()
        except OSError as error:
            raise self._failed(disk, error) from error

    async def _put_long(self, disk: Disk, write: Callable[[], Awaitable[None]]) -> None:
        """Like `_put`, in a thread."""
        try:
            await write()
        except OSError as error:
            raise self._failed(disk, error) from error

    def _failed(self, disk: Disk, error: OSError) -> DiskFailed:
        failed = DiskFailed(f"disk {disk.name}: {error}", disk=disk.name)
        if self._failing is None:
            self._report("destage-failed", {"group": self._group.name, "disk": disk.name, "error": str(error)})
        self._failing = disk.name
        self._group.disk_failed(failed)
        return failed

    def _resume(self) -> None:
        """A whole window is on the disks."""
        if self._failing is not None:
            self._report("destage-resumed", {"group": self._group.name, "disk": self._failing})
            self._failing = None
            self._group.disk_failed(None)


def write_layers_now(group: Group) -> None:
    """Recovery: put a group's cache on the disks at once, without freeing regions (they are zeroed instead).

    The journal part was read from the disk and is synced before anything is acknowledged.
    Redoing it again after another crash gives the same content (I20).

    Raises:
        OSError: a disk failed; the group cannot be recovered now.
    """
    for volume in group.volumes.values():
        volume.layers.freeze()
        for region in volume.layers.frozen_zeroed:
            if volume.map[region]:
                disk, offset = volume.pool.locate(volume.map[region])
                disk.file.zero(offset, volume.pool.region_size)
        for disk, offset, buffers, size in _runs(volume, sorted(volume.layers.frozen)):
            disk.file.write_vector(buffers, size, offset)
        volume.layers.drop_frozen()
    group.budget.release(group.layer_bytes)
    group.layer_bytes = 0


def _has_blocks(layers: Layers, region: int) -> bool:
    per_region = layers.region_shift - BLOCK_SHIFT
    first = region << per_region
    return any(block in layers.active or block in layers.frozen for block in range(first, first + (1 << per_region)))


async def _in_order(blocks: Blocks) -> list[int]:
    """Sort a layer's block numbers, in parts between which the loop has its turns; joining sorted parts is quick."""
    numbers = iter(blocks)
    order: list[int] = []
    while part := sorted(islice(numbers, SLICE_BLOCKS)):
        order += part
        await asyncio.sleep(0)
    order.sort()
    return order


async def _let_go(blocks: Blocks) -> None:
    """Free a layer's memory; a large one takes long enough to be noticed."""
    while blocks:
        for _ in range(min(SLICE_BLOCKS, len(blocks))):
            blocks.popitem()
        await asyncio.sleep(0)


def _runs(volume: Volume, order: list[int]) -> Iterator[tuple[Disk, int, list[memoryview], int]]:
    """Yield (disk, offset, buffers, size) in the volume's order, pieces that follow each other on a disk joined.

    Neighbouring logical regions have neighbouring disk regions where possible, so the
    volume's order is nearly the disk's, and sorting plain block numbers is cheap.
    """
    shift = volume.shift
    region_size = 1 << shift
    mask = region_size - 1
    entries = volume.map
    locate = volume.pool.locate
    run: list[memoryview] = []
    where: Disk | None = None
    start = size = 0
    for offset, content in pieces(volume.layers.frozen, order):
        length = len(content)
        done = 0
        while done < length:  # a piece may lie in several regions
            disk, position = locate(entries[offset + done >> shift])
            within = offset + done & mask
            position += within
            part, count = content, length
            if done or length > region_size - within:
                part = content[done : done + region_size - within]
                count = len(part)
            done += count
            if disk is where and position == start + size and len(run) < IOV_MAX and size < RUN_BYTES:
                run.append(part)
                size += count
            else:
                if where is not None:
                    yield where, start, run, size
                where, start, run, size = disk, position, [part], count
    if where is not None:
        yield where, start, run, size
