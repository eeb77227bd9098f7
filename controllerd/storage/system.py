"""Storage system: the disks, pools, groups and volumes of one controller.

Owns: creating, finding and deleting them, start-up with recovery, and the background
work (destage, checkpoint).
Never: knows of hosts, peers or pairs.

Every order is durable when it returns, or refused with nothing half done (spec §13).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controllerd.model.access import Rules, documents_of, rules
from controllerd.model.errors import BadOrder, Busy, Conflict, Corrupt, DiskFailed, JournalFailed, NoSpace, NotFound
from controllerd.model.pair_state import Role
from controllerd.model.write_time import Source, WriteTime, make_write_time
from controllerd.storage.acknowledge import Durability
from controllerd.storage.budget import CacheBudget
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.checkpoint import Checkpointer
from controllerd.storage.destage import Destager
from controllerd.storage.disks import failure, open_disk, take_disk
from controllerd.storage.group import Group, GroupFacts, fresh_group_id
from controllerd.storage.held import HeldGroups
from controllerd.storage.io import Files
from controllerd.storage.journal import Journal
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.recovery import recover_group
from controllerd.storage.spares import SpareMaker
from controllerd.storage.volume import Access, Volume

MIN_VOLUME: Final = 512
MAX_VOLUME: Final = 1 << 50
_FULL_AGAIN_NS: Final = 1_000_000_000
"""A pool that stays full is spoken of this often."""

Report = Callable[[str, dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Limits and defaults; sizes in bytes, times in seconds.

    ``owner`` names the controller, for the catalogue: another one's data is not touched.
    ``boot`` names the machine's present run (kernel boot id); "" means not known.
    """

    data_directory: str
    owner: str = ""
    boot: str = ""
    time_source: Source = "clock"
    host_time_ahead_s: float = 3600.0
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
        self.write_time: WriteTime = make_write_time(
            settings.time_source, ahead_ns=round(settings.host_time_ahead_s * 1e9)
        )
        self.disks: dict[str, Disk] = {}
        self.pools: dict[str, Pool] = {}
        self.groups: dict[str, Group] = {}
        self.volumes: dict[str, Volume] = {}
        self.destagers: dict[str, Destager] = {}
        self._spare_makers: dict[str, SpareMaker] = {}
        self._one_spare_at_a_time = asyncio.Lock()
        self.budget = CacheBudget(settings.cache_bytes)
        self._full_since: dict[str, int] = {}
        self.guard: Callable[[Group, str], None] = _allow
        """Asked before an order changes a group's volumes; raises Conflict when a pair forbids it."""
        self.on_recovered: Callable[[Group], None] = _nothing_more
        """Told of a group that was held and works again, before anything is written to it."""
        self.held = HeldGroups(self, files)
        self._intact = False
        """Whether this run found the machine as the one before left it."""
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
        """Load the catalogue, recover every group whose disks work, and begin the background work.

        Raises:
            Corrupt: the catalogue is damaged, lost or contradicts itself.
            Conflict: the data directory is another controller's.
        """
        self._claim()
        boot = self.settings.boot
        self._intact = bool(boot) and self.catalogue.get_fact("boot") == boot
        clean = self.catalogue.get_fact("clean") is True
        self._load()
        if not clean:
            for disk, error in [found for pool in self.pools.values() for found in pool.zero_free()]:
                self.fail_disk(disk, str(error))
        for group in self.groups.values():
            if group.read_error is None:  # else as it is in the catalogue, until its disks are there
                await self.recover(group)
        recovered = all(group.read_error is None for group in self.groups.values())
        self._begin_times(lost=bool(self.groups) and not (recovered and (clean or self._intact)))
        self.catalogue.put_fact("clean", False)
        self.note_run()
        for group in self.groups.values():
            if group.read_error is None:
                self.catalogue.put_document("group", group.name, group.document())
            self.start_background(group.name)
        self.checkpointer.start()

    def _begin_times(self, *, lost: bool) -> None:
        """Hand out no write time twice. ``lost``: some may have been given to writes that nobody knows of here."""
        times = self.write_time
        kept = self.catalogue.get_fact("write-time")
        if kept:
            times.observe(kept)
        if lost:
            times.pass_lost()
        self.keep_write_time()

    def keep_write_time(self) -> None:
        """Remember the last write time that was given out."""
        self.catalogue.put_fact("write-time", self.write_time.last)

    async def recover(self, group: Group) -> int | None:
        """Read a group's journal and redo what the disks lack; returns how many records, None when it is held."""
        window = self.catalogue.get_documents("destaging").get(group.name, {})
        current = window.get("start_ordinal") == group.facts.start_ordinal
        # What a run that knew its journal to be whole has found damaged is no end of the journal to later ones either.
        damaged = group.name in self.catalogue.get_documents("damaged")
        intact = self._intact or damaged
        redone = await recover_group(group, self._files, window["reached"] if current else 0, intact=intact)
        if redone is not None and damaged:
            self.catalogue.delete_document("damaged", group.name)
        elif redone is None and intact and isinstance(group.read_error, Corrupt):
            self.catalogue.put_document("damaged", group.name, {"error": str(group.read_error)})
        fault = str(group.read_error) if redone is None else None
        facts = {"group": group.name, "records": redone or 0, "last": group.last_seq, "fault": fault}
        self.report("group-recovered", facts)
        return redone

    def note_run(self) -> None:
        """Remember in which run of the machine all groups were recovered; while one was not: in none."""
        recovered = all(group.recovered for group in self.groups.values())
        self.catalogue.put_fact("boot", self.settings.boot if recovered else "")

    async def stop(self) -> None:
        """Put everything on the disks and close; a start after this redoes nothing.

        When a disk or journal fails meanwhile the rest is left to recovery.
        """
        await self.checkpointer.stop()
        for name in self.groups:
            await self.stop_background(name)
        try:
            async with asyncio.timeout(30):
                await self.checkpointer.checkpoint()
                await self.checkpointer.sync_disks()  # the zeros in regions that came back with it
            checkpointer = self.checkpointer
            left = [checkpointer.leaked, *checkpointer.behind.values(), *(disk.failed for disk in self.disks.values())]
            if not any(left) and all(group.describe_fault() is None for group in self.groups.values()):
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

    def _claim(self) -> None:
        """Make sure that the data directory is whole and this controller's.

        Raises:
            Conflict: it is another controller's.
            Corrupt: journals are there and the catalogue is not.
        """
        directory, owner = self.settings.data_directory, self.settings.owner
        known = self.catalogue.get_fact("owner")
        if known is None and any(self._has_segments(number) for number in self._journal_ids()):
            raise Corrupt(
                f"{directory}: there are journals here and the catalogue is missing or empty; put catalogue.sqlite back"
                " (with its -wal file), or move the directory journals away to begin with nothing"
            )
        if known not in (None, owner):
            raise Conflict(f"{directory} belongs to controller {known}, this is {owner}: choose another data_directory")
        if known is None:
            self.catalogue.put_fact("owner", owner)

    def _has_segments(self, group_id: int) -> bool:
        return any(name.endswith(".seg") for name in self._files.names(self._journal_directory(group_id)))

    def _journal_directory(self, group_id: int) -> str:
        return f"{self.settings.data_directory}/journals/{group_id:06d}"

    async def _announce(self, group: Group, reached: int) -> None:
        """Remember that disks get a secondary's records through ``reached``, before they do (I1)."""
        document = {"start_ordinal": group.facts.start_ordinal, "reached": reached}
        await self.checkpointer.run_blocking(self.catalogue.put_document, "destaging", group.name, document)

    def _load(self) -> None:
        for name, document in self.catalogue.get_documents("disk").items():
            self.disks[name] = open_disk(self._files, name, document["path"], document["size"])
        for name, document in self.catalogue.get_documents("pool").items():
            self._add_pool(Pool(name, document["region_size"], [self.disks[disk] for disk in document["disks"]]))
        for name, document in self.catalogue.get_documents("group").items():
            facts = GroupFacts(**document)
            facts.incarnations = [(first, number) for first, number in facts.incarnations]
            self._add_group(name, facts)
        for name, document in self.catalogue.get_documents("volume").items():
            volume = self._add_volume(name, document)
            volume.load_map(self.catalogue.load_map(volume.volume_id))
        for disk in self.disks.values():
            if disk.failed is not None:
                self._hold_groups(disk, disk.failed)

    def fail_disk(self, disk: Disk, reason: str) -> None:
        """Use a disk no more: the groups that have volumes in its pool are held, all others go on (I4, I7, F13).

        Not readable either: after a failed sync the page cache may lose what was destaged, and
        would then show what was there before.
        """
        disk.failed = failure(disk.name, reason)
        self._hold_groups(disk, disk.failed)

    def _hold_groups(self, disk: Disk, failed: str) -> None:
        self.report("disk-failed", {"disk": disk.name, "error": failed})
        for group in self.groups.values():
            if any(disk in volume.pool.disks for volume in group.volumes.values()):
                group.hold(DiskFailed(failed, disk=disk.name))

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
            Conflict, BadOrder, NoSpace: the name is taken, or see `take_disk`.
        """
        self._check_new("disk", name, self.disks)
        settings = self.settings
        disk = take_disk(
            self._files, name, path, size,
            erase=erase, smallest=settings.region_bytes, data_directory=settings.data_directory,
        )  # fmt: skip
        try:
            self.catalogue.put_document("disk", name, {"path": path, "size": disk.size})
        except BaseException:
            disk.file.close()
            raise
        self.disks[name] = disk
        return disk

    def create_pool(self, name: str, disks: list[str], region_size: int | None = None) -> Pool:
        """Make a pool of disks that are in none yet.

        Raises:
            Conflict: the name is taken, or a disk is in a pool.
            NotFound: there is no such disk.
            DiskFailed: a disk does not work.
            BadOrder: no disk, or a region size that is not possible.
        """
        self._check_new("pool", name, self.pools)
        if not disks or len(set(disks)) != len(disks):
            raise BadOrder(f"pool {name}: name at least one disk, each once")
        chosen = [self._unused_disk(disk_name) for disk_name in disks]
        pool = Pool(name, region_size or self.settings.region_bytes, chosen)
        self.catalogue.put_document("pool", name, {"region_size": pool.region_size, "disks": disks})
        self._add_pool(pool)
        return pool

    def grow_pool(self, name: str, disk_name: str) -> Pool:
        """Add a disk that is in no pool; who waits for space goes on by itself.

        Raises:
            NotFound: there is no such pool or disk.
            Conflict: the disk is in a pool.
            DiskFailed: it does not work.
            BadOrder: it is smaller than one region.
        """
        if name not in self.pools:
            raise NotFound(f"no pool named {name}")
        pool, disk = self.pools[name], self._unused_disk(disk_name)
        pool.regions_of(disk)
        disks = [*(item.name for item in pool.disks), disk_name]
        self.catalogue.put_document("pool", name, {"region_size": pool.region_size, "disks": disks})
        pool.add_disk(disk)
        return pool

    def _unused_disk(self, name: str) -> Disk:
        """The disk named ``name``, to be put in a pool."""
        if name not in self.disks:
            raise NotFound(f"no disk named {name}")
        disk = self.disks[name]
        owner = next((pool.name for pool in self.pools.values() if disk in pool.disks), None)
        if owner is not None:
            raise Conflict(f"disk {name} is in pool {owner}")
        _check_works(disk)
        return disk

    def _add_pool(self, pool: Pool) -> None:
        pool.on_full = self._pool_full
        self.pools[pool.name] = pool

    def _pool_full(self, pool: Pool) -> None:
        """A host got ENOSPC: tell people, and ask for a checkpoint, which gives trimmed regions back."""
        now = self.clock()
        if abs(now - self._full_since.get(pool.name, 0)) > _FULL_AGAIN_NS:
            self._full_since[pool.name] = now
            self.report("pool-full", {"pool": pool.name, "regions": pool.regions})
            self.checkpointer.request()

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
            self.drop_group(name)
            raise NoSpace(f"group {name}: no journal segment in {group.journal.directory}: {error}") from error
        group.update_accepting()
        self.catalogue.put_document("group", name, group.document())
        self.start_background(name)
        return group

    def start_background(self, name: str) -> None:
        """Let a group's destages and spare segments be made."""
        self.destagers[name].start()
        self._spare_makers[name].start()

    async def stop_background(self, name: str) -> None:
        """Return when nothing of a group is being written in the background any more."""
        await self.destagers[name].stop()
        await self._spare_makers[name].stop()

    def _journal_ids(self) -> set[int]:
        names = self._files.names(f"{self.settings.data_directory}/journals")
        return {int(name) for name in names if name.isdigit()}

    def _add_group(self, name: str, facts: GroupFacts) -> Group:
        journal = Journal(
            self._files,
            self._journal_directory(facts.group_id),
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
        self._spare_makers[name] = SpareMaker(group, self._one_spare_at_a_time, self.checkpointer.run_blocking)
        group.on_pressure = self.checkpointer.request
        return group

    def drop_group(self, name: str) -> str:
        """Let go of a group that the catalogue does not have, and remove its journal.

        Returns what is left of the journal, which no other group will take for its own: "" or the directory.
        """
        group = self.groups.pop(name)
        del self.destagers[name], self._spare_makers[name]
        group.close()
        directory = group.journal.directory
        try:
            for file_name in self._files.names(directory):
                self._files.remove(f"{directory}/{file_name}")
        except OSError as error:
            return f"{directory}: {error.strerror}"
        return ""

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
            await self.stop_background(name)
            self.keep_write_time()  # its journal said so until now
            self.catalogue.delete_document("destaging", name)
            self.catalogue.delete_document("damaged", name)
            self.catalogue.delete_document("group", name)
            self.drop_group(name)

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
        with _refusing(groups, "is changing its role"):
            await self.checkpointer.checkpoint(needed=groups)
            await self.checkpointer.checkpoint(change, needed=groups)

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
        self._check_new("volume", name, self.volumes)
        owner = self.group(group)
        self.guard(owner, f"create volume {name}")
        if pool not in self.pools:
            raise NotFound(f"no pool named {pool}")
        for disk in self.pools[pool].disks:
            _check_works(disk)
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
            "allow": documents_of(allow),
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
            allow=rules(document.get("allow")),
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
            "access": volume.access.value, "allow": documents_of(volume.allow),
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

    def allow_volume(self, name: str, allow: Rules) -> Volume:
        """Say which hosts may open a volume from now on; sessions that this takes rights from end.

        Raises:
            NotFound: there is none.
        """
        volume = self.volume(name)
        self.catalogue.put_document("volume", name, {**self._volume_document(volume), "allow": documents_of(allow)})
        volume.allow = allow
        for session in list(volume.sessions):
            session.recheck()
        return volume

    async def rekey_volume(self, name: str, key: int) -> None:
        """Give an empty volume the key of its P-VOL, so that the same records are valid for both.

        Hosts' writes are refused meanwhile.

        Raises:
            Conflict: another volume of the group has the key, or the volume is not empty.
            JournalFailed, DiskFailed: its group cannot be brought up to date.
        """
        volume = self.volume(name)
        group = volume.group
        if volume.key == key:
            return
        if key in group.volumes:
            raise Conflict(f"group {group.name}: volume {group.volumes[key].name} has key {key:#x} already")
        with _refusing([group], "is being paired"):
            # It may have been written and trimmed: recovery must not meet a record with the key it had.
            await self.checkpointer.checkpoint(needed=[group])
            if not volume.is_empty:
                raise Conflict(f"volume {name} holds data")
            self.catalogue.put_document("volume", name, {**self._volume_document(volume), "key": key})
            del group.volumes[volume.key]
            volume.key = key
            group.volumes[key] = volume

    async def delete_volume(self, name: str) -> None:
        """Forget a volume and give its space back.

        Raises:
            NotFound: there is none.
            Conflict: hosts have it open, or its group is a secondary.
            JournalFailed, DiskFailed: its group cannot be brought up to date; the volume is as it was.
        """
        volume = self.volume(name)
        self.guard(volume.group, f"delete volume {name}")
        if volume.sessions:
            raise Conflict(f"volume {name} is open: {[session.describe() for session in volume.sessions]}")
        if volume.group.role is Role.SECONDARY:
            raise Conflict(f"volume {name} is in secondary group {volume.group.name}; delete the pair first")
        access, volume.access = volume.access, Access.READ_ONLY
        try:
            await self.checkpointer.checkpoint(needed=[volume.group])  # from here on recovery meets no record of it
            async with self.checkpointer.lock:
                if volume.sessions:
                    raise Conflict(f"volume {name} was opened meanwhile")
                self.catalogue.delete_volume(name, volume.volume_id)
                del self.volumes[name]
                del volume.group.volumes[volume.key]
                await self.checkpointer.release(volume.pool, [region for region in volume.map if region])
        except BaseException:
            volume.access = access
            raise

    @staticmethod
    def _check_new(kind: str, name: str, known: dict[str, Any]) -> None:
        if not name or len(name) > 63 or not all(char.isalnum() or char in "._-" for char in name) or name[0] in ".-":
            raise BadOrder(f"{kind} name {name!r}: use 1 to 63 letters, digits, '.', '_', '-'")
        if name in known:
            raise Conflict(f"a {kind} named {name} exists already")


@contextlib.contextmanager
def _refusing(groups: Sequence[Group], why: str) -> Iterator[None]:
    """Refuse host writes meanwhile; what was refused before or comes on top (a fence, a fault) stays."""
    refusals = {group: (group.refused, Busy(f"group {group.name} {why}")) for group in groups}
    for group, (_, ours) in refusals.items():
        group.refuse_writes(ours)
    try:
        yield
    finally:
        for group, (before, ours) in refusals.items():
            if group.refused is ours:
                group.refuse_writes(before)


def _check_works(disk: Disk) -> None:
    if disk.failed is not None:
        raise DiskFailed(disk.failed, disk=disk.name)


def _allow(group: Group, order: str) -> None:
    """Default guard."""


def _nothing_more(group: Group) -> None:
    """Nobody else has to do with groups."""


async def _run_inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
