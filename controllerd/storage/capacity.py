"""Capacity: the orders that make disks and pools of a controller, and what is said when a pool is full.

Owns: which disks and pools are made of what, and that no disk is in two pools.
Never: opens files itself (disks.py does), or gives regions to volumes (pools.py does).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from controllerd.model.errors import BadOrder, Conflict, NotFound
from controllerd.storage.disks import check_works, take_disk
from controllerd.storage.io import Files
from controllerd.storage.names import check_new
from controllerd.storage.pools import Disk, Pool

if TYPE_CHECKING:
    from controllerd.storage.system import StorageSystem

_FULL_AGAIN_NS: Final = 1_000_000_000
"""A pool that stays full is spoken of this often."""


class Capacity:
    """Orders on the disks and pools of ``system``."""

    def __init__(self, system: StorageSystem, files: Files) -> None:
        self._system = system
        self._files = files
        self._full_since: dict[str, int] = {}

    def create_disk(self, name: str, path: str, size: int | None = None, *, erase: bool = False) -> Disk:
        """Make a disk of a file (created with ``size`` bytes if missing) or of a raw block device.

        ``erase``: take an existing file or device although it holds data, which is lost.

        Raises:
            Conflict, BadOrder, NoSpace: the name is taken, or see `take_disk`.
        """
        check_new("disk", name, self._system.disks)
        settings = self._system.settings
        disk = take_disk(
            self._files, name, path, size,
            erase=erase, smallest=settings.region_bytes, data_directory=settings.data_directory,
        )  # fmt: skip
        try:
            self._system.catalogue.put_document("disk", name, {"path": path, "size": disk.size})
        except BaseException:
            disk.file.close()
            raise
        self._system.disks[name] = disk
        return disk

    def create_pool(self, name: str, disks: list[str], region_size: int | None = None) -> Pool:
        """Make a pool of disks that are in none yet.

        Raises:
            Conflict: the name is taken, or a disk is in a pool.
            NotFound: there is no such disk.
            DiskFailed: a disk does not work.
            BadOrder: no disk, or a region size that is not possible.
        """
        check_new("pool", name, self._system.pools)
        if not disks or len(set(disks)) != len(disks):
            raise BadOrder(f"pool {name}: name at least one disk, each once")
        chosen = [self._unused_disk(disk_name) for disk_name in disks]
        pool = Pool(name, region_size or self._system.settings.region_bytes, chosen)
        self._system.catalogue.put_document("pool", name, {"region_size": pool.region_size, "disks": disks})
        self.add_pool(pool)
        return pool

    def grow_pool(self, name: str, disk_name: str) -> Pool:
        """Add a disk that is in no pool; who waits for space goes on by itself.

        Raises:
            NotFound: there is no such pool or disk.
            Conflict: the disk is in a pool.
            DiskFailed: it does not work.
            BadOrder: it is smaller than one region.
        """
        if name not in self._system.pools:
            raise NotFound(f"no pool named {name}")
        pool, disk = self._system.pools[name], self._unused_disk(disk_name)
        pool.regions_of(disk)
        disks = [*(item.name for item in pool.disks), disk_name]
        self._system.catalogue.put_document("pool", name, {"region_size": pool.region_size, "disks": disks})
        pool.add_disk(disk)
        return pool

    def _unused_disk(self, name: str) -> Disk:
        """The disk named ``name``, to be put in a pool."""
        if name not in self._system.disks:
            raise NotFound(f"no disk named {name}")
        disk = self._system.disks[name]
        owner = next((pool.name for pool in self._system.pools.values() if disk in pool.disks), None)
        if owner is not None:
            raise Conflict(f"disk {name} is in pool {owner}")
        check_works(disk)
        return disk

    def add_pool(self, pool: Pool) -> None:
        """Take in a pool that the catalogue has."""
        pool.on_full = self._pool_full
        self._system.pools[pool.name] = pool

    def _pool_full(self, pool: Pool) -> None:
        """A host got ENOSPC: tell people, and ask for a checkpoint, which gives trimmed regions back."""
        now = self._system.clock()
        if abs(now - self._full_since.get(pool.name, 0)) > _FULL_AGAIN_NS:
            self._full_since[pool.name] = now
            self._system.report("pool-full", {"pool": pool.name, "regions": pool.regions})
            self._system.checkpointer.request()
