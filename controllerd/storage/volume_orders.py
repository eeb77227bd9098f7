"""Volumes: the orders that make, change and delete them.

Owns: what a volume's entry in the catalogue says, and that an order is durable or refused.
Never: reads or writes a volume's data (volume.py does), or knows of pairs (`guard` does).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from controllerd.model.access import Rules, documents_of, rules
from controllerd.model.errors import BadOrder, Conflict, NotFound
from controllerd.model.pair_state import Role
from controllerd.storage.disks import check_works
from controllerd.storage.names import check_new
from controllerd.storage.pools import Pool
from controllerd.storage.role_changes import refusing
from controllerd.storage.volume import Access, Volume

if TYPE_CHECKING:
    from controllerd.storage.system import StorageSystem

MIN_VOLUME: Final = 512
MAX_VOLUME: Final = 1 << 50


class VolumeOrders:
    """Orders on the volumes of ``system``."""

    def __init__(self, system: StorageSystem, rng: random.Random) -> None:
        self._system = system
        self._rng = rng

    def add(self, name: str, document: dict[str, Any]) -> Volume:
        """Take in a volume as the catalogue has it, but for its map."""
        volume = Volume(
            volume_id=document["volume_id"],
            name=name,
            key=document["key"],
            size=document["size"],
            pool=self._system.pools[document["pool"]],
            group=self._system.groups[document["group"]],
            block_size=document["block_size"],
            description=document["description"],
            access=Access(document["access"]),
            allow=rules(document.get("allow")),
        )
        volume.group.add_volume(volume)
        self._system.volumes[name] = volume
        return volume

    def create(
        self,
        name: str,
        size: int,
        *,
        pool: str,
        group: str,
        block_size: int = 4096,
        description: str = "",
        access: Access = Access.READ_WRITE,
        allow: Rules = None,
    ) -> tuple[Volume, str | None]:
        """Make a thin volume of ``size`` bytes that reads as zeros. Returns it and a warning, if there is one.

        ``allow`` says which hosts may open it; None: every host.

        Raises:
            Conflict: the name is taken, or the group is a secondary.
            NotFound: no such pool or group.
            DiskFailed: a disk of the pool does not work.
            BadOrder: the size is not a multiple of 512 or out of range, or the block size is not possible.
        """
        system = self._system
        check_new("volume", name, system.volumes)
        owner = system.group(group)
        system.guard(owner, f"create volume {name}")
        if pool not in system.pools:
            raise NotFound(f"no pool named {pool}")
        for disk in system.pools[pool].disks:
            check_works(disk)
        _check_size(size)
        if block_size & (block_size - 1) or not 512 <= block_size <= 65536:
            raise BadOrder(f"block size {block_size} must be a power of two from 512 to 65536")
        keys = {volume.key for volume in system.volumes.values()}
        key = next(key for key in iter(lambda: self._rng.randrange(1, 1 << 32), None) if key not in keys)
        volume_id = (system.catalogue.get_fact("last-volume-id") or 0) + 1
        system.catalogue.put_fact("last-volume-id", volume_id)
        document = {
            "volume_id": volume_id, "key": key, "size": size, "pool": pool, "group": owner.name,
            "block_size": block_size, "description": description, "access": access.value,
            "allow": documents_of(allow),
        }  # fmt: skip
        volume = self.add(name, document)
        system.catalogue.put_document("volume", name, document)
        return volume, self._thin_warning(system.pools[pool])

    def _thin_warning(self, pool: Pool) -> str | None:
        promised = sum(volume.size for volume in self._system.volumes.values() if volume.pool is pool)
        capacity = pool.regions * pool.region_size
        if promised <= capacity:
            return None
        return (
            f"pool {pool.name}: its volumes promise {promised} bytes and its disks have {capacity};"
            " writes fail with no space when it is full"
        )

    def resize(self, name: str, size: int) -> tuple[Volume, str | None]:
        """Grow a volume; hosts that connect from now on see the new size.

        Raises:
            NotFound: there is none.
            BadOrder: the size is not possible or smaller than it is.
        """
        volume = self._system.volume(name)
        self._system.guard(volume.group, f"resize volume {name}")
        _check_size(size)
        if size < volume.size:
            raise BadOrder(f"volume {name} has {volume.size} bytes; shrinking it would lose data")
        self._system.catalogue.put_document("volume", name, {**_document(volume), "size": size})
        volume.grow(size)
        return volume, self._thin_warning(volume.pool)

    def allow(self, name: str, allow: Rules) -> Volume:
        """Say which hosts may open a volume from now on; sessions that this takes rights from end.

        Raises:
            NotFound: there is none.
        """
        volume = self._system.volume(name)
        self._system.catalogue.put_document("volume", name, {**_document(volume), "allow": documents_of(allow)})
        volume.allow = allow
        for session in list(volume.sessions):
            session.recheck()
        return volume

    async def rekey(self, name: str, key: int) -> None:
        """Give an empty volume the key of its P-VOL, so that the same records are valid for both.

        Hosts' writes are refused meanwhile.

        Raises:
            Conflict: another volume of the group has the key, or the volume is not empty.
            JournalFailed, DiskFailed: its group cannot be brought up to date.
        """
        volume = self._system.volume(name)
        group = volume.group
        if volume.key == key:
            return
        if key in group.volumes:
            raise Conflict(f"group {group.name}: volume {group.volumes[key].name} has key {key:#x} already")
        with refusing([group], "is being paired"):
            # It may have been written and trimmed: recovery must not meet a record with the key it had.
            await self._system.checkpointer.checkpoint(needed=[group])
            if not volume.is_empty:
                raise Conflict(f"volume {name} holds data")
            self._system.catalogue.put_document("volume", name, {**_document(volume), "key": key})
            del group.volumes[volume.key]
            volume.key = key
            group.volumes[key] = volume

    async def delete(self, name: str) -> None:
        """Forget a volume and give its space back.

        Raises:
            NotFound: there is none.
            Conflict: hosts have it open, or its group is a secondary.
            JournalFailed, DiskFailed: its group cannot be brought up to date; the volume is as it was.
        """
        system = self._system
        volume = system.volume(name)
        system.guard(volume.group, f"delete volume {name}")
        if volume.sessions:
            raise Conflict(f"volume {name} is open: {[session.describe() for session in volume.sessions]}")
        if volume.group.role is Role.SECONDARY:
            raise Conflict(f"volume {name} is in secondary group {volume.group.name}; delete the pair first")
        access, volume.access = volume.access, Access.READ_ONLY
        try:
            await system.checkpointer.checkpoint(needed=[volume.group])  # from here on recovery meets no record of it
            async with system.checkpointer.lock:
                if volume.sessions:
                    raise Conflict(f"volume {name} was opened meanwhile")
                system.catalogue.delete_volume(name, volume.volume_id)
                del system.volumes[name]
                del volume.group.volumes[volume.key]
                await system.checkpointer.release(volume.pool, [region for region in volume.map if region])
        except BaseException:
            volume.access = access
            raise


def _check_size(size: int) -> None:
    if size % 512 or not MIN_VOLUME <= size <= MAX_VOLUME:
        raise BadOrder(f"size {size} must be a multiple of 512 from {MIN_VOLUME} to {MAX_VOLUME} bytes")


def _document(volume: Volume) -> dict[str, Any]:
    return {
        "volume_id": volume.volume_id, "key": volume.key, "size": volume.size, "pool": volume.pool.name,
        "group": volume.group.name, "block_size": volume.block_size, "description": volume.description,
        "access": volume.access.value, "allow": documents_of(volume.allow),
    }  # fmt: skip
