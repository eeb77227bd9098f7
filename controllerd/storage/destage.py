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
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from typing_extensions import Buffer

from controllerd.model.errors import DiskFailed, RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.storage.background import Background
from controllerd.storage.group import Group
from controllerd.storage.io import IOV_MAX
from controllerd.storage.layers import BLOCK, BLOCK_SHIFT, Layers, PartialBlock
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.volume import Volume

SLICE_WRITES: Final = 48
SLICE_BYTES: Final = 2 << 20
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
        freed: Callable[[Pool, int], None],
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
        self.windows = 0
        self.bytes_written = 0
        group.on_layer_full = self._background.poke

    async def _turn(self) -> None:
        if self._window is None and all(volume.layers.clean for volume in self._group.volumes.values()):
            return  # nothing but ticks: the next checkpoint is soon enough
        with contextlib.suppress(RemoteCopyError):  # the group itself says that its journal failed
            await self.destage()

    async def destage(self) -> None:
        """Put everything visible now on the disks (not synced); nothing of a held group, whose recovery did not end.

        Raises:
            JournalFailed: the journal could not be made durable first; nothing was written.
        """
        if self._group.read_error is not None:
            return
        async with self._lock:
            if self._window is not None:  # it was interrupted, and newer writes wait in the active layers
                await self._finish(self._window)
            group = self._group
            volumes = [volume for volume in group.volumes.values() if not volume.layers.clean]
            for volume in volumes:
                volume.layers.freeze()
            self._window = _Window(volumes, group.applied_mark, group.layer_bytes, group.facts.start_ordinal)
            group.layer_bytes = 0
            await self._finish(self._window)

    async def _finish(self, window: _Window) -> None:
        group = self._group
        volumes = window.volumes
        if window.mark[0] > group.durable_seq:  # ticks alone too: recovery will look for what the mark says
            try:
                await group.make_durable()
            except RemoteCopyError:  # these stay in memory for readers; other groups need not wait for them
                self._window = replace(window, size=0)
                group.budget.release(window.size)
                raise
        if volumes:
            if group.role is Role.SECONDARY:
                await self._announce(group, window.mark[0])
            for volume in volumes:
                await self._unmap_zeroed(volume)
            for volume in volumes:
                await self._write(volume)
            for volume in volumes:
                volume.layers.drop_frozen()
                volume.destages += 1
            self.windows += 1
        self._window = None
        if window.start_ordinal == group.facts.start_ordinal:  # else the numbers are those of a journal before
            group.destaged_mark = window.mark
        if window.size:
            group.budget.release(window.size)

    async def _unmap_zeroed(self, volume: Volume) -> None:
        """Free the regions that the window zeroed, or zero them where newer writes need the region."""
        layers = volume.layers
        for count, region in enumerate(sorted(layers.frozen_zeroed), 1):
            if not volume.map[region]:
                continue
            if _has_blocks(layers, region):
                disk, offset = volume.pool.locate(volume.map[region])
                await self._put(disk, partial(disk.file.zero, offset, volume.pool.region_size))
            else:
                self._freed(volume.pool, volume.unmap(region))
            if count % 256 == 0:
                await asyncio.sleep(0)

    async def _write(self, volume: Volume) -> None:
        writes = slice_bytes = 0
        for disk, offset, buffers, size in _runs(volume):
            if len(buffers) == 1:
                await self._put(disk, partial(disk.file.write, buffers[0], offset))
            else:
                await self._put(disk, partial(disk.file.write_vector, buffers, size, offset))
            writes += 1
            slice_bytes += size
            if writes >= SLICE_WRITES or slice_bytes >= SLICE_BYTES:
                self.bytes_written += slice_bytes
                writes = slice_bytes = 0
                await asyncio.sleep(0)
        self.bytes_written += slice_bytes

    async def _put(self, disk: Disk, write: Callable[[], None]) -> None:
        """Write once; while the disk refuses, hosts get the error and the data stays in journal and cache."""
        group = self._group
        failing: DiskFailed | None = None
        while True:
            try:
                write()
            except OSError as error:
                if failing is None:
                    failing = DiskFailed(f"disk {disk.name}: {error}", disk=disk.name)
                    self._report("destage-failed", {"group": group.name, "disk": disk.name, "error": str(error)})
                    if group.write_error is None:
                        group.refuse_writes(failing)
                await asyncio.sleep(RETRY_S)
                continue
            if failing is not None:
                self._report("destage-resumed", {"group": group.name, "disk": disk.name})
                if group.write_error is failing:  # a failed sync or a fence is not over because a write succeeded
                    group.refuse_writes(None)
            return


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
        for disk, offset, buffers, size in _runs(volume):
            disk.file.write_vector(buffers, size, offset)
        volume.layers.drop_frozen()
    group.budget.release(group.layer_bytes)
    group.layer_bytes = 0


def _has_blocks(layers: Layers, region: int) -> bool:
    per_region = layers.region_shift - BLOCK_SHIFT
    first = region << per_region
    return any(block in layers.active or block in layers.frozen for block in range(first, first + (1 << per_region)))


def _runs(volume: Volume) -> Iterator[tuple[Disk, int, list[Buffer], int]]:
    """Yield (disk, offset, buffers, size) in the volume's order, pieces that follow each other on a disk joined.

    Neighbouring logical regions have neighbouring disk regions where possible, so the
    volume's order is nearly the disk's, and sorting plain block numbers is cheap.
    """
    run: list[Buffer] = []
    where: Disk | None = None
    start = size = 0
    for disk, offset, data, length in _pieces(volume):
        if run and disk is where and offset == start + size and len(run) < IOV_MAX and size < SLICE_BYTES:
            run.append(data)
            size += length
        else:
            if run and where is not None:
                yield where, start, run, size
            where, start, run, size = disk, offset, [data], length
    if run and where is not None:
        yield where, start, run, size


def _pieces(volume: Volume) -> Iterator[tuple[Disk, int, Buffer, int]]:
    shift = volume.shift
    mask = (1 << shift) - 1
    entries = volume.map
    locate = volume.pool.locate
    frozen = volume.layers.frozen
    for block in sorted(frozen):
        content = frozen[block]
        offset = block << BLOCK_SHIFT
        disk, start = locate(entries[offset >> shift])
        start += offset & mask
        if isinstance(content, PartialBlock):
            for low, high in content.ranges:
                yield disk, start + low, memoryview(content.data)[low:high], high - low
        else:
            yield disk, start, content, BLOCK
