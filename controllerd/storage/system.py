"""Storage system: the disks, pools, groups and volumes of one controller.

Owns: creating, finding and deleting them, start-up with recovery, and the background
work (destage, checkpoint).
Never: knows of hosts, peers or pairs.

Every order is durable when it returns, or refused with nothing half done (spec §13).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controllerd.model.errors import BadOrder, Busy, Conflict, DiskFailed, JournalFailed, NoSpace, NotFound
from controllerd.model.pair_state import Role
from controllerd.model.write_time import Source, WriteTime, make_write_time
from controllerd.storage.acknowledge import Durability
from controllerd.storage.budget import CacheBudget
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.checkpoint import Checkpointer
from controllerd.storage.destage import Destager
from controllerd.storage.group import Group, GroupFacts, fresh_group_id
from controllerd.storage.io import Files
from controllerd.storage.journal import Journal
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.recovery import recover_group
from controllerd.storage.volume import Access, Volume

MIN_VOLUME: Final = 512
MAX_VOLUME: Final = 1 << 50

Report = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Limits and defaults; sizes in bytes, times in seconds."""

    data_directory: str
    time_source: Source = "clock"
    cache_bytes: int = 256 << 20
    journal_bytes: int = 1 << 30
    segment_bytes: int = 64 << 20
    tail_bytes: int = 64 << 20
    pending_bytes: int = 64 << 20
    region_bytes: int = 64 << 10
    checkpoint_interval_s: float = 10.0
    destage_age_s: float = 1.0
    max_request_bytes: int = 32 << 20
    durability: Durability = "cache"
    overflow: str = "suspend"


@dataclass(frozen=True, slots=True)
class Restart:
    """How a group's journal begins anew: the next record is ``last_seq + 1``."""

    group: Group
    role: Role
    generation: int
    last_seq: int
    last_origin: int = 0
    last_time: int = 0
    numbered_here: bool = True


class StorageSystem:
    """Everything this controller stores. ``clock`` gives wall time in ns."""

    def __init__(
        self,
        settings: StorageSettings,
        files: Files,
        *,
        clock: Callable[[], int],
        report: Report,
        rng: random.Random,
        catalogue: Catalogue | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.report = report
        self.write_time: WriteTime = make_write_time(settings.time_source)
        self.disks: dict[str, Disk] = {}
        self.pools: dict[str, Pool] = {}
        self.groups: dict[str, Group] = {}
        self.volumes: dict[str, Volume] = {}
        self.destagers: dict[str, Destager] = {}
        self.budget = CacheBudget(settings.cache_bytes)
        self.guard: Callable[[Group, str], None] = _allow
        """Asked before an order changes a group's volumes; raises Conflict when a pair forbids it."""
        self._files = files
        self._rng = rng
        files.names(settings.data_directory)
        self.catalogue = catalogue or Catalogue(f"{settings.data_directory}/catalogue.sqlite")
        run = getattr(files, "run", None)
        self.checkpointer = Checkpointer(
            self,
            self.catalogue,
            interval_s=settings.checkpoint_interval_s,
            run_blocking=run or _run_inline,
        )

    # ---- life --------------------------------------------------------------

    async def start(self) -> None:
        """Load the catalogue, recover every group, and begin the background work.

        Raises:
            Corrupt: the catalogue contradicts itself.
            DiskFailed: a disk file is missing or smaller than it was.
        """
        clean = self.catalogue.get_fact("clean") is True
        self._load()
        if not clean:
            for pool in self.pools.values():
                pool.zero_free()
        windows = self.catalogue.get_documents("destaging")
        for group in self.groups.values():
            window = windows.get(group.name, {})
            current = window.get("start_ordinal") == group.facts.start_ordinal
            redone = await recover_group(group, self._files, window["reached"] if current else 0)
            self.report(
                "group-recovered",
                {"group": group.name, "records": redone, "last": group.last_seq, "fault": group.describe_fault()},
            )
        self.catalogue.put_fact("clean", False)
        for group in self.groups.values():
            self.catalogue.put_document("group", group.name, group.document())
            self.destagers[group.name].start()
        self.checkpointer.start()

    async def stop(self) -> None:
        """Put everything on the disks and close; a start after this redoes nothing.

        When a disk or journal fails meanwhile the rest is left to recovery.
        """
        await self.checkpointer.stop()
        for destager in self.destagers.values():
            await destager.stop()
        try:
            async with asyncio.timeout(30):
                await self.checkpointer.checkpoint()
                await self.checkpointer.sync_disks()  # the zeros in regions that came back with it
            faultless = all(group.describe_fault() is None for group in self.groups.values())
            if faultless and not self.checkpointer.unzeroed:
                self.catalogue.put_fact("clean", True)
        except (DiskFailed, TimeoutError, OSError) as error:
            self.report("stop-without-checkpoint", {"error": str(error)})
        self.close()

    def close(self) -> None:
        """Close all files as they are."""
        for group in self.groups.values():
            group.close()
        for disk in self.disks.values():
            disk.file.close()
        self.catalogue.close()
        self._files.close()

    async def _announce(self, group: Group, reached: int) -> None:
        """Remember that disks get a secondary's records through ``reached``, before they do (I1)."""
        document = {"start_ordinal": group.facts.start_ordinal, "reached": reached}
        await self.checkpointer.run_blocking(self.catalogue.put_document, "destaging", group.name, document)

    def _load(self) -> None:
        for name, document in self.catalogue.get_documents("disk").items():
            self.disks[name] = self._open_disk(name, document["path"], document["size"])
        for name, document in self.catalogue.get_documents("pool").items():
            self.pools[name] = Pool(name, document["region_size"], [self.disks[disk] for disk in document["disks"]])
        for name, document in self.catalogue.get_documents("group").items():
            facts = GroupFacts(**document)
            facts.incarnations = [(first, number) for first, number in facts.incarnations]
            self._add_group(name, facts)
        for name, document in self.catalogue.get_documents("volume").items():
            volume = self._add_volume(name, document)
            volume.load_map(self.catalogue.load_map(volume.volume_id))

    def _open_disk(self, name: str, path: str, size: int) -> Disk:
        try:
            file = self._files.open(path)
        except OSError as error:
            raise DiskFailed(f"disk {name}: {path}: {error.strerror}", disk=name) from error
        if file.size() < size:
            raise DiskFailed(f"disk {name}: {path} has {file.size()} bytes, it had {size}", disk=name)
        return Disk(name, path, size, file)

    def fail_disk(self, disk: Disk) -> None:
        """A sync failed: groups that use the disk take no more writes (I4)."""
        self.report("disk-failed", {"disk": disk.name, "error": disk.failed})
        for group in self.groups.values():
            if any(disk in volume.pool.disks for volume in group.volumes.values()):
                group.refuse_writes(DiskFailed(disk.failed or "", disk=disk.name))

    def check_overflow(self) -> None:
        """After a checkpoint: tell who keeps a journal full (spec §3.7)."""
        for group in self.groups.values():
            if group.overflowing and group.on_overflow is not None:
                group.on_overflow()

    # ---- disks and pools -----------------------------------------------------

    def create_disk(self, name: str, path: str, size: int | None = None, *, erase: bool = False) -> Disk:
        """Make a disk of a file (created with ``size`` bytes if missing) or of a raw block device.

        ``erase``: take an existing file or device although it holds data, which is lost.

        Raises:
            Conflict: the name or path is taken, or the file holds data.
            BadOrder: the file is missing and no size was given, or it is smaller than ``size``.
            NoSpace: the file system has no room for it.
        """
        self._check_new("disk", name, self.disks)
        if any(disk.path == path for disk in self.disks.values()):
            raise Conflict(f"{path} is a disk already")
        exists = self._files.exists(path)
        if not exists and size is None:
            raise BadOrder(f"disk {name}: {path} does not exist; give a size to create it")
        if size is not None and size < self.settings.region_bytes:
            raise BadOrder(f"disk {name}: {size} bytes is less than one region of {self.settings.region_bytes}")
        try:
            file = self._files.open(path, create=not exists)
            if not exists and size is not None:
                file.allocate(size)
            file.sync_now()  # an order before may have been interrupted after making the file
            self._files.sync_directory(os.path.dirname(path) or ".")
            present = file.size()
        except OSError as error:
            if not exists:
                self._files.remove(path)
            raise NoSpace(f"disk {name}: {path}: {error.strerror}") from error
        if size is not None and present < size:
            file.close()
            raise BadOrder(f"disk {name}: {path} has {present} bytes, fewer than {size}")
        disk = Disk(name, path, size or present, file)
        if exists and not file.is_blank():
            if not erase:
                file.close()
                raise Conflict(f"disk {name}: {path} holds data, which would be lost; order it with erase to take it")
            file.zero(0, disk.size)
        self.catalogue.put_document("disk", name, {"path": path, "size": disk.size})
        self.disks[name] = disk
        return disk

    def create_pool(self, name: str, disks: list[str], region_size: int | None = None) -> Pool:
        """Make a pool of disks that are in none yet.

        Raises:
            Conflict: the name is taken, or a disk is in a pool.
            NotFound: there is no such disk.
            BadOrder: no disk, or a region size that is not possible.
        """
        self._check_new("pool", name, self.pools)
        if not disks or len(set(disks)) != len(disks):
            raise BadOrder(f"pool {name}: name at least one disk, each once")
        chosen = []
        for disk_name in disks:
            if disk_name not in self.disks:
                raise NotFound(f"no disk named {disk_name}")
            owner = next((pool.name for pool in self.pools.values() if self.disks[disk_name] in pool.disks), None)
            if owner is not None:
                raise Conflict(f"disk {disk_name} is in pool {owner}")
            chosen.append(self.disks[disk_name])
        pool = Pool(name, region_size or self.settings.region_bytes, chosen)
        self.catalogue.put_document("pool", name, {"region_size": pool.region_size, "disks": disks})
        self.pools[name] = pool
        return pool

    # ---- groups --------------------------------------------------------------

    def create_group(
        self,
        name: str,
        *,
        durability: Durability | None = None,
        overflow: str | None = None,
        journal_bytes: int | None = None,
    ) -> Group:
        """Make a volume group with an empty journal.

        Raises:
            Conflict: the name is taken.
            BadOrder: the journal is smaller than two segments.
            NoSpace: the file system has no room for the first segments.
        """
        self._check_new("group", name, self.groups)
        size = journal_bytes or self.settings.journal_bytes
        if size < 2 * self.settings.segment_bytes:
            raise BadOrder(f"group {name}: a journal of {size} bytes is less than 2 segments")
        facts = GroupFacts(
            group_id=fresh_group_id({group.facts.group_id for group in self.groups.values()} | self._journal_ids()),
            durability=durability or self.settings.durability,
            overflow=overflow or self.settings.overflow,
            journal_bytes=size,
            generation=self._rng.randrange(1, 1 << 32),
        )
        group = self._add_group(name, facts)
        try:
            group.end_recovery()
            group.journal.sync_now()  # the catalogue must not name a group whose journal power loss could take away
        except JournalFailed as error:
            self._forget_group(name)
            raise NoSpace(f"group {name}: no journal segment in {group.journal.directory}: {error}") from error
        group.update_accepting()
        self.catalogue.put_document("group", name, group.document())
        self.destagers[name].start()
        return group

    def _journal_ids(self) -> set[int]:
        names = self._files.names(f"{self.settings.data_directory}/journals")
        return {int(name) for name in names if name.isdigit()}

    def _add_group(self, name: str, facts: GroupFacts) -> Group:
        journal = Journal(
            self._files,
            f"{self.settings.data_directory}/journals/{facts.group_id:06d}",
            group_id=facts.group_id,
            segment_bytes=self.settings.segment_bytes,
            segments_max=facts.journal_bytes // self.settings.segment_bytes,
            tail_bytes=self.settings.tail_bytes,
        )
        self._files.names(journal.directory)
        group = Group(
            name,
            facts,
            journal=journal,
            budget=self.budget,
            write_time=self.write_time,
            clock=self.clock,
            max_request_bytes=self.settings.max_request_bytes,
            pending_memory=self.settings.pending_bytes,
        )
        self.groups[name] = group
        self.destagers[name] = Destager(
            group,
            age_s=self.settings.destage_age_s,
            freed=self.checkpointer.freed,
            announce=self._announce,
            report=self.report,
        )
        group.on_pressure = self.checkpointer.request
        return group

    def _forget_group(self, name: str) -> None:
        group = self.groups.pop(name)
        del self.destagers[name]
        group.close()
        for file_name in self._files.names(group.journal.directory):
            self._files.remove(f"{group.journal.directory}/{file_name}")

    async def delete_group(self, name: str) -> None:
        """Forget an empty group and its journal.

        Raises:
            NotFound: there is none.
            Conflict: it has volumes.
        """
        group = self.group(name)
        if group.volumes:
            raise Conflict(f"group {name} has volumes: {', '.join(v.name for v in group.volumes.values())}")
        self.guard(group, f"delete group {name}")
        async with self.checkpointer.lock:  # else a checkpoint under way would bring the document back
            await self.destagers[name].stop()
            self.catalogue.delete_document("destaging", name)
            self.catalogue.delete_document("group", name)
            self._forget_group(name)

    def group(self, name: str) -> Group:
        """Return the group named ``name``.

        Raises:
            NotFound: there is none.
        """
        if name not in self.groups:
            raise NotFound(f"no group named {name}")
        return self.groups[name]

    async def restart_groups(self, restarts: Sequence[Restart]) -> None:
        """Begin groups' journals anew in another role; durable on return, all together (takeover, pair orders).

        What is visible now stays; what is pending is dropped. Hosts may not write meanwhile.
        """

        def change() -> list[Group]:
            for restart in restarts:
                restart.group.restart(
                    role=restart.role,
                    generation=restart.generation,
                    last_seq=restart.last_seq,
                    last_origin=restart.last_origin,
                    last_time=restart.last_time,
                    numbered_here=restart.numbered_here,
                )
            return [restart.group for restart in restarts]

        await self._change_groups([restart.group for restart in restarts], change)

    async def _change_groups(self, groups: Sequence[Group], change: Callable[[], Sequence[Group]]) -> None:
        """Take a checkpoint, and another with ``change``; refuse host writes until that is durable.

        Else a write could be acknowledged in the new role, and a crash would go back to the old one.
        """
        refusals = {}
        for group in groups:
            refusals[group.name] = (group.write_error, Busy(f"group {group.name} is changing its role"))
            group.refuse_writes(refusals[group.name][1])
        try:
            await self.checkpointer.checkpoint()
            await self.checkpointer.checkpoint(change)
        finally:
            for group in groups:
                before, ours = refusals[group.name]
                if group.write_error is ours:
                    group.refuse_writes(before)

    async def restart_group(
        self, group: Group, *, role: Role, generation: int, last_seq: int, last_origin: int = 0, last_time: int = 0,
        numbered_here: bool = True,
    ) -> None:  # fmt: skip
        """`restart_groups` for one group."""
        await self.restart_groups([Restart(group, role, generation, last_seq, last_origin, last_time, numbered_here)])

    async def change_role(self, group: Group, role: Role, *, last_origin: int | None = None) -> None:
        """Change a group's role in place: its journal goes on. Durable on return."""

        def change() -> list[Group]:
            group.change_role(role, last_origin)
            return [group]

        await self._change_groups([group], change)

    # ---- volumes ---------------------------------------------------------------

    def create_volume(
        self,
        name: str,
        size: int,
        *,
        pool: str,
        group: str,
        block_size: int = 4096,
        description: str = "",
        access: Access = Access.READ_WRITE,
    ) -> tuple[Volume, str | None]:
        """Make a thin volume of ``size`` bytes that reads as zeros. Returns it and a warning, if there is one.

        Raises:
            Conflict: the name is taken, or the group is a secondary.
            NotFound: no such pool or group.
            BadOrder: the size is not a multiple of 512 or out of range, or the block size is not possible.
        """
        self._check_new("volume", name, self.volumes)
        owner = self.group(group)
        self.guard(owner, f"create volume {name}")
        if pool not in self.pools:
            raise NotFound(f"no pool named {pool}")
        self._check_size(size)
        if block_size & (block_size - 1) or not 512 <= block_size <= 65536:
            raise BadOrder(f"block size {block_size} must be a power of two from 512 to 65536")
        keys = {volume.key for volume in self.volumes.values()}
        key = next(key for key in iter(lambda: self._rng.randrange(1, 1 << 32), None) if key not in keys)
        volume_id = (self.catalogue.get_fact("last-volume-id") or 0) + 1
        self.catalogue.put_fact("last-volume-id", volume_id)
        document = {
            "volume_id": volume_id, "key": key, "size": size, "pool": pool, "group": owner.name,
            "block_size": block_size, "description": description, "access": access.value,
        }  # fmt: skip
        volume = self._add_volume(name, document)
        self.catalogue.put_document("volume", name, document)
        return volume, self._thin_warning(self.pools[pool])

    def _thin_warning(self, pool: Pool) -> str | None:
        promised = sum(volume.size for volume in self.volumes.values() if volume.pool is pool)
        capacity = pool.regions * pool.region_size
        if promised <= capacity:
            return None
        return (
            f"pool {pool.name}: its volumes promise {promised} bytes and its disks have {capacity};"
            " writes fail with no space when it is full"
        )

    @staticmethod
    def _check_size(size: int) -> None:
        if size % 512 or not MIN_VOLUME <= size <= MAX_VOLUME:
            raise BadOrder(f"size {size} must be a multiple of 512 from {MIN_VOLUME} to {MAX_VOLUME} bytes")

    def _add_volume(self, name: str, document: dict[str, Any]) -> Volume:
        volume = Volume(
            volume_id=document["volume_id"],
            name=name,
            key=document["key"],
            size=document["size"],
            pool=self.pools[document["pool"]],
            group=self.groups[document["group"]],
            block_size=document["block_size"],
            description=document["description"],
            access=Access(document["access"]),
        )
        volume.group.add_volume(volume)
        self.volumes[name] = volume
        return volume

    def volume(self, name: str) -> Volume:
        """Return the volume named ``name``.

        Raises:
            NotFound: there is none.
        """
        if name not in self.volumes:
            raise NotFound(f"no volume named {name}")
        return self.volumes[name]

    def _volume_document(self, volume: Volume) -> dict[str, Any]:
        return {
            "volume_id": volume.volume_id, "key": volume.key, "size": volume.size, "pool": volume.pool.name,
            "group": volume.group.name, "block_size": volume.block_size, "description": volume.description,
            "access": volume.access.value,
        }  # fmt: skip

    def resize_volume(self, name: str, size: int) -> tuple[Volume, str | None]:
        """Grow a volume; hosts that connect from now on see the new size.

        Raises:
            NotFound: there is none.
            BadOrder: the size is not possible or smaller than it is.
        """
        volume = self.volume(name)
        self.guard(volume.group, f"resize volume {name}")
        self._check_size(size)
        if size < volume.size:
            raise BadOrder(f"volume {name} has {volume.size} bytes; shrinking it would lose data")
        self.catalogue.put_document("volume", name, {**self._volume_document(volume), "size": size})
        volume.grow(size)
        return volume, self._thin_warning(volume.pool)

    def rekey_volume(self, name: str, key: int) -> None:
        """Give an empty volume the key of its P-VOL, so that the same records are valid for both.

        Raises:
            Conflict: another volume of the group has the key, or the volume is not empty.
        """
        volume = self.volume(name)
        group = volume.group
        if volume.key == key:
            return
        if key in group.volumes:
            raise Conflict(f"group {group.name}: volume {group.volumes[key].name} has key {key:#x} already")
        if not volume.is_empty:
            raise Conflict(f"volume {name} holds data")
        del group.volumes[volume.key]
        volume.key = key
        group.volumes[key] = volume
        self.catalogue.put_document("volume", name, self._volume_document(volume))

    async def delete_volume(self, name: str) -> None:
        """Forget a volume and give its space back.

        Raises:
            NotFound: there is none.
            Conflict: hosts have it open, or its group is a secondary.
        """
        volume = self.volume(name)
        self.guard(volume.group, f"delete volume {name}")
        if volume.sessions:
            raise Conflict(f"volume {name} is open: {[session.describe() for session in volume.sessions]}")
        if volume.group.role is Role.SECONDARY:
            raise Conflict(f"volume {name} is in secondary group {volume.group.name}; delete the pair first")
        access, volume.access = volume.access, Access.READ_ONLY
        await self.checkpointer.checkpoint()  # from here on recovery meets no record of it
        async with self.checkpointer.lock:
            if volume.sessions:
                volume.access = access
                raise Conflict(f"volume {name} was opened meanwhile")
            del self.volumes[name]
            del volume.group.volumes[volume.key]
            self.catalogue.delete_volume(name, volume.volume_id)
            regions = [region for region in volume.map if region]
            await self.checkpointer.run_blocking(volume.pool.zero, regions)
            volume.pool.release(regions)

    @staticmethod
    def _check_new(kind: str, name: str, known: dict[str, Any]) -> None:
        if not name or len(name) > 63 or not all(char.isalnum() or char in "._-" for char in name) or name[0] in ".-":
            raise BadOrder(f"{kind} name {name!r}: use 1 to 63 letters, digits, '.', '_', '-'")
        if name in known:
            raise Conflict(f"a {kind} named {name} exists already")


def _allow(group: Group, order: str) -> None:
    """Default guard."""


async def _run_inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
