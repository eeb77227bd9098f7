"""Checkpoint: sync the disks, then remember in one transaction how far they are.

Owns: the order that makes a crash at any point harmless: destage, sync the disks,
commit maps and positions, and only then free journal segments and regions.
Never: syncs a disk again after its sync failed (I4); the journal keeps everything
since the last good checkpoint and recovery redoes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from controllerd.model.errors import DiskFailed, JournalFailed, RemoteCopyError
from controllerd.storage.background import Background
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.pools import Pool

if TYPE_CHECKING:
    from controllerd.storage.group import Group
    from controllerd.storage.system import StorageSystem


class Checkpointer:
    """Takes checkpoints of a storage system every ``interval_s``, or when asked."""

    def __init__(
        self,
        system: StorageSystem,
        catalogue: Catalogue,
        *,
        interval_s: float,
        run_blocking: Callable[..., Awaitable[Any]],
    ) -> None:
        self._system = system
        self._catalogue = catalogue
        self._interval_s = interval_s
        self.run_blocking = run_blocking
        self._background = Background(interval_s, self._turn)
        self.start = self._background.start
        self.stop = self._background.stop
        self.lock = asyncio.Lock()
        """Held while a checkpoint is taken; whoever forgets groups or volumes holds it meanwhile."""
        self._freed: list[tuple[Pool, int]] = []
        self.unzeroed = False
        """Whether regions that no map has may hold old data: only a start that zeroes them may give them out."""
        self.count = 0

    def freed(self, pool: Pool, region: int) -> None:
        """A region left a map; it comes back to the free list with the next checkpoint."""
        self._freed.append((pool, region))

    def request(self) -> None:
        """Take a checkpoint soon."""
        self._background.poke()

    async def _turn(self) -> None:
        try:
            await self.checkpoint()
        except (RemoteCopyError, OSError) as error:
            self._system.report("checkpoint-failed", {"error": str(error)})
            await asyncio.sleep(min(1.0, self._interval_s))
        self._system.check_overflow()

    async def checkpoint(self, change: Callable[[], Sequence[Group]] | None = None) -> None:
        """Bring the disks and the catalogue up to what is visible now.

        ``change`` is called just before the documents are taken: it changes groups (role,
        a new journal) and returns them, and that becomes durable together with the checkpoint.

        Raises:
            DiskFailed: a disk could not be synced; nothing was freed.
        """
        async with self.lock:
            groups = list(self._system.groups.values())
            for group in groups:
                with contextlib.suppress(JournalFailed):  # that group stays behind, the others go on
                    await self._system.destagers[group.name].destage()
            freed, self._freed = self._freed, []
            marks = {group.name: group.destaged_mark for group in groups}
            volumes = [volume for group in groups for volume in group.volumes.values()]
            pages = [page for volume in volumes for page in volume.take_dirty_pages()]
            try:
                await self.sync_disks()
                if change is not None:
                    marks.update({group.name: group.destaged_mark for group in change()})
                documents = [("group", group.name, group.document(marks[group.name])) for group in groups]
                await self.run_blocking(self._catalogue.checkpoint, pages, documents)
            except BaseException:
                for volume_id, page, _ in pages:
                    for volume in volumes:
                        if volume.volume_id == volume_id:
                            volume.dirty_pages.add(page)
                self._freed = freed + self._freed
                raise
            await self._release(freed)
            for group, (_, _, document) in zip(groups, documents, strict=True):
                group.checkpointed(marks[group.name], document["retained"])
            self.count += 1

    async def _release(self, freed: list[tuple[Pool, int]]) -> None:
        by_pool: dict[str, tuple[Pool, list[int]]] = {}
        for pool, region in freed:
            by_pool.setdefault(pool.name, (pool, []))[1].append(region)
        for pool, regions in by_pool.values():
            try:
                await self.run_blocking(pool.zero, regions)
            except OSError as error:  # not zeroed, so not free: until the next start, which zeroes what no map has
                self.unzeroed = True
                self._system.report("release-failed", {"pool": pool.name, "error": str(error)})
            except BaseException:  # cancelled: the next checkpoint does it
                self._freed += [(pool, region) for pool, waiting in by_pool.values() for region in waiting]
                raise
            else:
                pool.release(regions)
                regions.clear()

    async def sync_disks(self) -> None:
        """Return when everything written to the disks so far survives power loss.

        Raises:
            DiskFailed: a sync failed, now or before.
        """
        for disk in self._system.disks.values():
            if disk.failed is not None:
                raise DiskFailed(disk.failed)
            try:
                await disk.file.sync()
            except OSError as error:
                disk.failed = f"disk {disk.name}: sync failed: {error}; restart the controller once the disk works"
                self._system.fail_disk(disk)
                raise DiskFailed(disk.failed) from error
