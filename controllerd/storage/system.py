"""Storage system: the disks, pools, groups and volumes of one controller.

Owns: which there are, start-up with recovery, creating and deleting groups, and the
background work (destage, checkpoint). Other orders are those of its parts (capacity.py,
volume_orders.py, role_changes.py, held.py).
Never: knows of hosts, peers or pairs.

Every order is durable when it returns, or refused with nothing half done (spec §13).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from controllerd.model.errors import BadOrder, Conflict, Corrupt, DiskFailed, JournalFailed, NoSpace, NotFound
from controllerd.model.write_time import WriteTime, make_write_time
from controllerd.storage.acknowledge import Durability
from controllerd.storage.budget import CacheBudget
from controllerd.storage.capacity import Capacity
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.checkpoint import Checkpointer
from controllerd.storage.destage import Destager
from controllerd.storage.disks import failure, open_disk
from controllerd.storage.group import Group
from controllerd.storage.group_facts import GroupFacts, fresh_group_id, group_document
from controllerd.storage.held import HeldGroups
from controllerd.storage.io import Files
from controllerd.storage.journal import Journal
from controllerd.storage.names import check_new
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.recovery import end_recovery, recover_group
from controllerd.storage.role_changes import RoleChanges
from controllerd.storage.settings import StorageSettings
from controllerd.storage.spares import SpareMaker
from controllerd.storage.volume import Volume
from controllerd.storage.volume_orders import VolumeOrders

Report = Callable[[str, dict[str, object]], None]


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
        self._capacity = capacity = Capacity(self, files)
        self.create_disk = capacity.create_disk
        self.create_pool, self.grow_pool = capacity.create_pool, capacity.grow_pool
        self._volume_orders = orders = VolumeOrders(self, rng)
        self.create_volume, self.delete_volume = orders.create, orders.delete
        self.resize_volume, self.allow_volume, self.rekey_volume = orders.resize, orders.allow, orders.rekey
        changes = RoleChanges(self.checkpointer)
        self.change_role = changes.change_role
        self.restart_group, self.restart_groups = changes.restart_group, changes.restart_groups

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
        for group in self.groups.values():
            if group.read_error is None:
                self.catalogue.put_document("group", group.name, group_document(group))
            self.start_background(group.name)
        self.note_run()  # last: until the incarnations are kept, what lies behind the ends found would be a proof
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
            disks = [self.disks[disk] for disk in document["disks"]]
            self._capacity.add_pool(Pool(name, document["region_size"], disks))
        for name, document in self.catalogue.get_documents("group").items():
            facts = GroupFacts(**document)
            facts.incarnations = [(first, number) for first, number in facts.incarnations]
            self._add_group(name, facts)
        for name, document in self.catalogue.get_documents("volume").items():
            volume = self._volume_orders.add(name, document)
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
        check_new("group", name, self.groups)
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
            end_recovery(group)
            group.journal.sync_now()  # the catalogue must not name a group whose journal power loss could take away
        except JournalFailed as error:
            self.drop_group(name)
            raise NoSpace(f"group {name}: no journal segment in {group.journal.directory}: {error}") from error
        group.update_accepting()
        self.catalogue.put_document("group", name, group_document(group))
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

    def volume(self, name: str) -> Volume:
        """Return the volume named ``name``.

        Raises:
            NotFound: there is none.
        """
        if name not in self.volumes:
            raise NotFound(f"no volume named {name}")
        return self.volumes[name]


def _allow(group: Group, order: str) -> None:
    """Default guard."""


def _nothing_more(group: Group) -> None:
    """Nobody else has to do with groups."""


async def _run_inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)
