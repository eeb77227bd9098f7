"""Groups whose own storage does not work: trying their recovery again, and forgetting them.

Owns: what an operator can do with such a group while the controller goes on with the others.
Never: decides that a group is held (recovery and disk failures do), or knows of pairs.

A group that is held since its recovery can be recovered again as at a start: nothing has used it since.
A group whose disk failed while it was in use cannot: what hosts were shown is ahead of the catalogue, and only a
restart goes back to what the disks and the journal hold. What is forgotten is lost for good; its disk space is
zeroed before anybody else gets it, as after every deletion.

Source: invariants I4, I7, I8; spec §13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controllerd.model.errors import Conflict, DiskFailed, RemoteCopyError
from controllerd.storage.disks import absence, open_disk
from controllerd.storage.group import Group
from controllerd.storage.group_facts import group_document
from controllerd.storage.io import Files
from controllerd.storage.pools import Pool
from controllerd.storage.recovery import begin_again

if TYPE_CHECKING:
    from controllerd.storage.system import StorageSystem
    from controllerd.storage.volume import Volume


class HeldGroups:
    """Orders on the groups of ``system`` that cannot work."""

    def __init__(self, system: StorageSystem, files: Files) -> None:
        self._system = system
        self._files = files

    def check(self, name: str) -> RemoteCopyError:
        """Why the group named ``name`` cannot work.

        Raises:
            NotFound: there is none.
            Conflict: it works.
        """
        broken = self._system.group(name).broken
        if broken is None:
            raise Conflict(
                f"group {name} works, and only a group whose journal or disk failed is forgotten with its data;"
                " delete its pairs, its volumes and then the group instead"
            )
        return broken

    # ---- forgetting ------------------------------------------------------------

    async def forget(self, name: str) -> list[str]:
        """Forget a group that cannot work, with its volumes and journal; durable on return. Returns the volumes' names.

        Hosts that have a volume open are cut off.

        Raises:
            NotFound: there is no such group.
            Conflict: it works, or is in a pair.
            DiskFailed: the catalogue could not be written; nothing has changed.
        """
        system = self._system
        checkpointer = system.checkpointer
        group = system.group(name)
        system.guard(group, f"forget group {name}")
        async with checkpointer.lock:  # else a checkpoint under way would bring the group back
            error = self.check(name)
            await system.stop_background(name)
            volumes = list(group.volumes.values())
            ids = {volume.name: volume.volume_id for volume in volumes}
            try:
                system.keep_write_time()  # its journal said so until now
                await checkpointer.run_blocking(system.catalogue.forget_group, name, ids)
            except BaseException:
                system.start_background(name)
                raise
            group.hold(error)  # whoever still has a hand on it
            group.fail_waiting(error)
            for volume in volumes:
                for session in list(volume.sessions):
                    session.abort(f"group {name} was forgotten")
                del system.volumes[volume.name]
            group.pending.clear()
            left = system.drop_group(name)
            await self._give_back(volumes)
        system.report("group-forgotten", {"group": name, "volumes": sorted(ids), "error": str(error), "left": left})
        return sorted(ids)

    async def _give_back(self, volumes: list[Volume]) -> None:
        """Give the regions of forgotten volumes back, but for those on disks that cannot be zeroed."""
        checkpointer = self._system.checkpointer
        regions: dict[Pool, list[int]] = {}
        for volume in volumes:
            regions.setdefault(volume.pool, []).extend(region for region in volume.map if region)
        for pool, found in regions.items():
            usable = [region for region in found if pool.locate(region)[0].failed is None]
            checkpointer.leaked = checkpointer.leaked or len(usable) < len(found)
            await checkpointer.release(pool, usable)

    # ---- recovering ------------------------------------------------------------

    async def recover(self, name: str) -> int:
        """Try the recovery of a held group again; returns how many records were redone. Then it works as after a start.

        Disks of its pools that failed are opened anew first.

        Raises:
            NotFound: there is no such group.
            Conflict: it is not held, or was in use when it was held.
            DiskFailed, Corrupt: it cannot be recovered yet; it is held as before, because of what was found now.
        """
        system = self._system
        group = system.group(name)
        async with system.checkpointer.lock:  # the catalogue's documents of the group stay as they are
            if group.read_error is None:
                raise Conflict(f"group {name} is not held: there is nothing to recover")
            if group.recovered:
                raise Conflict(
                    group.say("was in use when it was held", group.read_error)
                    + "; only a restart of the controller goes back to what its disks and journal hold"
                )
            for pool in {volume.pool for volume in group.volumes.values()}:
                await self._reopen(pool)
            begin_again(group)
            redone = await system.recover(group)
            if redone is None:
                raise group.read_error
            system.catalogue.put_document("group", name, group_document(group))
            # Nothing may come between: whoever needs the journal says so before a write can free it.
            group.let_go()
            system.on_recovered(group)
            system.note_run()
        return redone

    async def _reopen(self, pool: Pool) -> None:
        """Use the failed disks of a pool again.

        Raises:
            DiskFailed: one does not work yet.
            Conflict: one failed while it was in use.
        """
        system = self._system
        failed = [disk for disk in pool.disks if disk.failed is not None]
        users = [group.name for group in system.groups.values() if group.recovered and _is_in(group, pool)]
        if failed and users:
            raise Conflict(f"group {users[0]} was using a disk when it failed: {failed[0].failed}")
        for disk in failed:
            disk.file.close()  # it may have the lock
            fresh = open_disk(self._files, disk.name, disk.path, disk.size)
            disk.file = fresh.file
            if fresh.failed is not None:
                disk.failed = fresh.failed
                raise DiskFailed(fresh.failed, disk=disk.name)
            try:
                # As at a start after a crash: what is free must read as zeros.
                await system.checkpointer.run_blocking(pool.zero_free_on, disk)
            except OSError as error:
                disk.failed = absence(disk.name, str(error))
                raise DiskFailed(disk.failed, disk=disk.name) from error
            disk.failed = None
            system.report("disk-back", {"disk": disk.name})


def _is_in(group: Group, pool: Pool) -> bool:
    return any(volume.pool is pool for volume in group.volumes.values())
