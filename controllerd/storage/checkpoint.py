"""Checkpoint: sync the disks, then remember in one transaction how far they are.

Owns: the order that makes a crash at any point harmless: destage, sync the disks,
commit maps and positions, and only then free journal segments and regions.
Never: syncs a disk again after its sync failed (I4); the journal keeps everything
since the last good checkpoint and recovery redoes it.

A group whose journal or disk failed stays behind: the catalogue keeps its maps and
position of its last good checkpoint, together, and the other groups go on (I7).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from controllerd.model.errors import RemoteCopyError
from controllerd.storage.background import Background
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.group_facts import group_document
from controllerd.storage.pools import Pool

if TYPE_CHECKING:
    from controllerd.storage.group import Group
    from controllerd.storage.system import StorageSystem


class _Freed(NamedTuple):
    """A disk region that left a map of ``group``."""

    group: str
    pool: Pool
    region: int


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
        self._freed: list[_Freed] = []
        self.behind: dict[str, RemoteCopyError] = {}
        """Groups that the last checkpoint left out, and why."""
        self.leaked = False
        """Whether regions are in no map and not zeroed, so that the next start has to look for them."""
        self.fault = ""
        """Why the last checkpoint failed, for people; "" once one was taken again."""
        self.count = 0

    def freed(self, group: Group, pool: Pool, region: int) -> None:
        """A region left a map of ``group``; it comes back to the free list with the group's next checkpoint."""
        self._freed.append(_Freed(group.name, pool, region))

    def request(self) -> None:
        """Take a checkpoint soon."""
        self._background.poke()

    async def _turn(self) -> None:
        try:
            await self.checkpoint()
        except (RemoteCopyError, OSError) as error:
            self.fault = f"no checkpoint can be taken ({error}): journals fill up until hosts cannot write"
            self._system.report("checkpoint-failed", {"error": str(error)})
            await asyncio.sleep(min(1.0, self._interval_s))
        self._system.check_overflow()

    async def checkpoint(
        self, change: Callable[[], Sequence[Group]] | None = None, needed: Sequence[Group] = ()
    ) -> None:
        """Bring the disks and the catalogue up to what is visible now, for every group that can be (`behind`).

        ``change`` is called just before the documents are taken: it changes groups of ``needed``
        (role, a new journal) and returns them, and that becomes durable together with the checkpoint.

        Raises:
            JournalFailed, DiskFailed: a group of ``needed`` would stay behind, or the catalogue
                could not be written; the catalogue is unchanged and nothing was freed.
        """
        async with self.lock:
            groups = list(self._system.groups.values())
            behind: dict[str, RemoteCopyError] = {}
            for group in groups:
                try:
                    await self._system.destagers[group.name].destage()
                except RemoteCopyError as error:
                    behind[group.name] = error
            marks = {group.name: group.destaged_mark for group in groups}
            freed, self._freed = self._freed, []
            pages = {volume: volume.take_dirty_pages() for group in groups for volume in group.volumes.values()}
            kept: list[Group] = []
            try:
                await self.sync_disks()
                behind = {group.name: group.read_error for group in groups if group.read_error is not None} | behind
                self._tell(behind)
                for group in needed:
                    if group.name in behind:
                        raise behind[group.name]
                if change is not None:
                    marks.update({group.name: group.destaged_mark for group in change()})
                kept = [group for group in groups if group.name not in behind]
                documents = [("group", group.name, group_document(group, marks[group.name])) for group in kept]
                entries = [page for volume, found in pages.items() if volume.group in kept for page in found]
                await self.run_blocking(self._catalogue.checkpoint, entries, documents)
            except BaseException:
                kept = []
                raise
            finally:
                for volume, found in pages.items():
                    if volume.group not in kept:
                        volume.dirty_pages.update(page for _, page, _ in found)
                names = {group.name for group in groups} - {group.name for group in kept}
                self._freed = [item for item in freed if item.group in names] + self._freed
            by_pool: dict[Pool, list[int]] = {}
            for name, pool, region in freed:
                if name not in names:
                    by_pool.setdefault(pool, []).append(region)
            try:
                for pool in list(by_pool):
                    await self.release(pool, by_pool[pool])
                    del by_pool[pool]
            except BaseException:  # cancelled: the next checkpoint does it
                self._freed += [_Freed("", pool, region) for pool, waiting in by_pool.items() for region in waiting]
                raise
            for group, (_, _, document) in zip(kept, documents, strict=True):
                group.checkpointed(marks[group.name], document["retained"])
            self.count += 1
            self.fault = ""

    def _tell(self, behind: dict[str, RemoteCopyError]) -> None:
        for name, error in behind.items():
            if name not in self.behind:
                self._system.report("checkpoint-without-group", {"group": name, "error": str(error)})
        self.behind = behind

    async def release(self, pool: Pool, regions: list[int]) -> None:
        """Give regions that no map of the catalogue has back to the pool."""
        try:
            await self.run_blocking(pool.zero, regions)
        except OSError as error:  # not zeroed, so not free: until the next start, which zeroes what no map has
            self.leaked = True
            self._system.report("release-failed", {"pool": pool.name, "error": str(error)})
        else:
            pool.release(regions)

    async def sync_disks(self) -> None:
        """Return when everything written to the disks that work survives power loss.

        The groups of a disk whose sync fails are held from then on.
        """
        for disk in list(self._system.disks.values()):
            if disk.failed is None:
                try:
                    await disk.file.sync()
                except OSError as error:
                    self._system.fail_disk(disk, f"sync failed: {error}")
