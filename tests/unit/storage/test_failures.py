"""Disks and syncs that fail, full journals, interrupted destages: what hosts are told, and what a restart finds."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from dataclasses import replace

import pytest

from controllerd.model.errors import Conflict, DiskFailed, JournalFailed, NoSpace, RemoteCopyError
from controllerd.model.pair_state import Role
from controllerd.model.records import Kind, Record
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import DATA
from tests.simulation.upstream import stage_from_upstream
from tests.unit.storage.helpers import SIZE, content, failing, live, make_machine, put


def test_failed_journal_sync_is_never_followed_by_success() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        first = put(system, "v0", 0, b"a" * 4096)
        machine.disk.fault = failing(group.journal.chain[-1].file.path, "sync", times=1)
        answers: list[RemoteCopyError | None] = []
        group.when_flushed(first, answers.append)
        await asyncio.sleep(1)
        group.when_flushed(first, answers.append)
        await asyncio.sleep(1)
        assert [type(answer) for answer in answers] == [JournalFailed, JournalFailed]
        assert group.durable_seq < first
        assert not system.volume("v0").writable
        assert "sync failed" in (group.describe_fault() or "")
        with pytest.raises(JournalFailed):
            put(system, "v0", 0, b"b" * 4096)
        assert (await content(system, "v0"))[:4096] == b"a" * 4096

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:4096] == b"a" * 4096

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.crash(Loss.NOTHING)  # recovery has written it again: its sync alone would have written nothing (F13)
    live(machine, after)
    machine.destroy()


def test_what_could_not_be_journaled_does_not_count_as_received() -> None:
    """A synchronous secondary says by its origin number what it has; the simulator's seed 1000004 (I3, I14)."""
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        await system.change_role(group, Role.SECONDARY, last_origin=6)
        key = system.volume("v0").key
        stage_from_upstream(group, _tick(7, key))
        group.commit()
        machine.disk.fault = failing(".seg", "write")
        stage_from_upstream(group, _tick(8, key))
        stage_from_upstream(group, _tick(9, key))
        with pytest.raises(JournalFailed):
            group.commit()
        assert group.last_origin == 7

    live(machine, scenario)
    machine.destroy()


def _tick(sequence: int, key: int) -> Record:
    return Record(int(Kind.TICK), 0, 1, 1, key, 0, sequence, sequence, 0, 0, 0, 0, memoryview(b""))


def test_hosts_that_wait_hear_of_a_failed_journal_and_other_groups_go_on() -> None:
    machine = make_machine(groups=2, cache=1 << 20)

    async def scenario(system: StorageSystem) -> None:
        failed, healthy = system.groups["g0"], system.groups["g1"]
        machine.disk.fault = failing("/000001/", "sync")
        for offset in range(0, SIZE, 65536):
            put(system, "v0", offset, bytes(65536))
        assert not failed.accepting
        woken: list[str] = []
        failed.when_accepting(lambda: woken.append("failed"))
        healthy.when_accepting(lambda: woken.append("healthy"))
        await asyncio.sleep(5)
        assert sorted(woken) == ["failed", "healthy"]
        assert healthy.accepting
        put(system, "v1", 0, b"x" * 4096)
        await healthy.make_durable()

    live(machine, scenario)
    machine.destroy()


@pytest.mark.parametrize("operation", ["write", "zero"])
def test_disk_that_fails_for_a_while_loses_nothing(operation: str) -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        put(system, "v0", 0, b"a" * 65536)
        await system.checkpointer.checkpoint()
        group.stage_zeroes(volume, 0, 65536, trim=True)
        group.stage_write(volume, 100, memoryview(b"b" * 50))
        group.commit()
        machine.disk.fault = failing("d.img", operation, times=3)
        await asyncio.sleep(1.5)
        assert isinstance(group.write_error, DiskFailed)
        await asyncio.sleep(10)
        assert volume.writable
        put(system, "v0", 200, b"c" * 50)
        await system.stop()

    async def after(system: StorageSystem) -> None:
        expected = bytearray(65536)
        expected[100:150], expected[200:250] = b"b" * 50, b"c" * 50
        assert (await content(system, "v0"))[:65536] == expected

    live(machine, scenario)
    machine.crash(Loss.NOTHING)
    live(machine, after)
    machine.destroy()


def test_stop_in_the_middle_of_a_destage_keeps_the_writes_behind_it() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        machine.disk.sync_seconds = 5.0
        put(system, "v0", 0, b"a" * 4096)
        await asyncio.sleep(1.1)  # the window is frozen and waits for the journal
        put(system, "v0", 4096, b"b" * 4096)
        await system.stop()

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:8192] == b"a" * 4096 + b"b" * 4096

    live(machine, scenario)
    machine.crash(Loss.NOTHING)
    live(machine, after)
    machine.destroy()


def test_failed_disk_sync_holds_although_later_writes_succeed() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        machine.disk.fault = failing("d.img", "sync", times=1)
        group = system.groups["g0"]
        for _ in range(2):
            with pytest.raises(DiskFailed):
                await system.checkpointer.checkpoint(needed=[group])
        assert isinstance(group.write_error, DiskFailed)
        with pytest.raises(DiskFailed):
            await content(system, "v0")  # the page cache may have lost what the sync did not write (F13)
        with pytest.raises(DiskFailed):
            put(system, "v0", 0, b"b" * 4096)

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:4096] == b"a" * 4096

    live(machine, scenario)
    machine.crash(Loss.NOTHING)
    live(machine, after)
    machine.destroy()


def test_reading_a_failing_disk_is_an_error_never_zeros() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        await system.checkpointer.checkpoint()
        machine.disk.fault = failing("d.img", "read")
        with pytest.raises(DiskFailed):
            await content(system, "v0")

    live(machine, scenario)
    machine.destroy()


def test_reading_a_journal_from_a_failing_disk_is_a_typed_error() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        machine.disk.fault = failing(".seg", "read", times=1)
        with pytest.raises(DiskFailed):
            await system.groups["g0"].read_journal_slow(1, 4096)
        assert await system.groups["g0"].read_journal_slow(1, 4096) is not None

    live(machine, scenario)
    machine.destroy()


def test_held_group_keeps_what_its_next_recovery_needs() -> None:
    machine = make_machine()

    async def write(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        await system.checkpointer.checkpoint()
        put(system, "v0", 0, b"b" * 4096)

    async def held(system: StorageSystem) -> None:
        group = system.groups["g0"]
        assert group.read_error is not None
        before = system.catalogue.get_documents("group")["g0"]
        group.set_retention("pair", 0)  # its secondary has not yet said what it has
        assert not group.overflowing
        await system.checkpointer.checkpoint()
        assert before["retained"] == 1
        assert system.catalogue.get_documents("group")["g0"] == before

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:4096] == b"b" * 4096

    live(machine, write)
    machine.crash(Loss.KILL)
    machine.disk.fault = failing(".seg", "read")
    live(machine, held)
    machine.crash(Loss.KILL)
    machine.disk.fault = None
    live(machine, after)
    machine.destroy()


def test_consumer_that_has_less_than_the_journal_keeps_cannot_have_the_next_start_look_for_it() -> None:
    machine = make_machine(cache=64 << 20)
    written: list[int] = []

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        for number in range(20):
            written.append(put(system, "v0", 0, bytes([number]) * SIZE))
            await system.checkpointer.checkpoint()
        assert group.journal.first > 1
        group.set_retention("peer", 0)
        await system.checkpointer.checkpoint()
        assert group.kept_through() == group.journal.first - 1

    async def after(system: StorageSystem) -> None:
        group = system.groups["g0"]
        assert group.read_error is None
        assert group.last_seq == written[-1]

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_recovery_larger_than_the_cache_gives_no_file_to_two_segments() -> None:
    machine = make_machine(groups=2, cache=256 << 10)

    async def fill(system: StorageSystem) -> None:
        system.budget.limit = 1 << 30
        for offset in range(0, SIZE, 65536):
            put(system, "v0", offset, b"a" * 65536)
            put(system, "v1", offset, b"b" * 65536)

    async def after(system: StorageSystem) -> None:
        for group in system.groups.values():
            paths = [segment.file.path for segment in group.journal.chain]
            paths += [file.path for file in group.journal.spares]
            assert len(paths) == len(set(paths))
        assert await content(system, "v0") == b"a" * SIZE
        assert await content(system, "v1") == b"b" * SIZE

    live(machine, fill)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_volume_that_cannot_be_deleted_is_as_it_was() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        machine.disk.fault = failing("catalogue", "catalogue", times=1)
        put(system, "v0", 0, b"a" * 4096)
        with pytest.raises(OSError, match="Input/output"):
            await system.delete_volume("v0")
        assert system.volume("v0").writable
        put(system, "v0", 4096, b"b" * 4096)
        calls = 0

        def fault(operation: str, path: str, offset: int, length: int) -> None:
            nonlocal calls
            calls += operation == "catalogue"
            if calls == 2 and operation == "catalogue":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        machine.disk.fault = fault
        with pytest.raises(OSError, match="Input/output"):
            await system.delete_volume("v0")
        assert (await content(system, "v0"))[:8192] == b"a" * 4096 + b"b" * 4096
        assert system.volume("v0").writable
        machine.disk.fault = None
        await system.delete_volume("v0")
        assert not system.volumes

    live(machine, scenario)
    machine.destroy()


def test_trimmed_volume_that_gets_another_key_survives_a_crash() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        put(system, "v0", 0, b"a" * 4096)
        group.stage_zeroes(volume, 0, SIZE, trim=True)
        group.commit()
        await system.destagers["g0"].destage()
        assert volume.is_empty
        await system.rekey_volume("v0", 77)
        assert volume.writable

    async def after(system: StorageSystem) -> None:
        assert system.groups["g0"].describe_fault() is None
        assert system.volume("v0").key == 77
        put(system, "v0", 0, b"b" * 4096)

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


@pytest.mark.parametrize(("operation", "part"), [("write", "d.img"), ("read", "000001/")])
def test_group_held_in_the_middle_of_its_recovery_leaves_the_others_alone(operation: str, part: str) -> None:
    machine = make_machine(groups=2, cache=256 << 10)

    async def fill(system: StorageSystem) -> None:
        system.budget.limit = 1 << 30
        for offset in range(0, SIZE, 65536):
            put(system, "v0", offset, b"a" * 65536)
        put(system, "v1", 0, b"b" * 4096)

    async def held(system: StorageSystem) -> None:
        assert system.groups["g0"].read_error is not None
        assert system.groups["g1"].read_error is None
        assert system.budget.used < 65536
        machine.disk.fault = None
        await system.checkpointer.checkpoint()
        put(system, "v1", 0, b"c" * 4096)
        with pytest.raises(RemoteCopyError):
            await content(system, "v0")

    async def after(system: StorageSystem) -> None:
        assert await content(system, "v0") == b"a" * SIZE
        assert (await content(system, "v1"))[:4096] == b"c" * 4096

    live(machine, fill)
    machine.crash(Loss.KILL)
    machine.disk.fault = failing(part, operation)
    live(machine, held)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def ignore(event: str, facts: dict[str, object]) -> None:
    """Nobody reads the log."""


def test_catalogue_that_cannot_be_written_is_a_typed_error() -> None:
    catalogue = Catalogue(":memory:")
    catalogue.put_fact("a", 1)
    catalogue._database.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else 0)
    with pytest.raises(DiskFailed):
        catalogue.checkpoint([], [("group", "g", {})])
    catalogue._database.set_authorizer(None)
    catalogue.checkpoint([], [("group", "g", {})])
    assert catalogue.get_documents("group") == {"g": {}}
    catalogue.close()


def test_full_pool_is_reported_and_gives_back_what_was_trimmed() -> None:
    machine = make_machine()
    machine.settings = replace(machine.settings, checkpoint_interval_s=3600.0)

    async def scenario(system: StorageSystem) -> None:
        system.create_volume("large", 8 * SIZE, pool="p", group="g0")
        events: list[str] = []
        system.report = lambda event, _facts: events.append(event)
        volume = system.volume("large")
        for offset in range(0, 2 * SIZE, 65536):
            put(system, "large", offset, b"a" * 4096)
        with pytest.raises(NoSpace):
            put(system, "large", 4 * SIZE, b"b" * 4096)
        assert events == ["pool-full"]
        await asyncio.sleep(2)  # the checkpoint that was asked for finds nothing
        volume.group.stage_zeroes(volume, 0, SIZE, trim=True)
        volume.group.commit()
        with pytest.raises(NoSpace):
            put(system, "large", 4 * SIZE, b"b" * 4096)
        await asyncio.sleep(2)
        put(system, "large", 4 * SIZE, b"b" * 4096)
        assert events == ["pool-full", "pool-full"]

    live(machine, scenario)
    machine.destroy()


def test_trim_in_a_full_pool_makes_room_without_being_asked_for_it() -> None:
    machine = make_machine()
    machine.settings = replace(machine.settings, checkpoint_interval_s=3600.0)

    async def scenario(system: StorageSystem) -> None:
        system.create_volume("large", 8 * SIZE, pool="p", group="g0")
        volume = system.volume("large")
        for offset in range(0, 2 * SIZE, 65536):
            put(system, "large", offset, b"a" * 4096)
        assert volume.pool.free == 0
        volume.group.stage_zeroes(volume, 0, SIZE, trim=True)
        volume.group.commit()
        await asyncio.sleep(0.5)
        assert volume.pool.free == SIZE // 65536
        put(system, "large", 4 * SIZE, b"b" * 4096)

    live(machine, scenario)
    machine.destroy()


def test_region_that_a_failed_group_freed_is_nobodys_before_its_checkpoint() -> None:
    machine = make_machine(groups=2)
    machine.settings = replace(machine.settings, checkpoint_interval_s=3600.0)
    region = machine.settings.region_bytes
    filled: list[int] = []

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        put(system, "v0", 0, b"a" * SIZE)
        await system.checkpointer.checkpoint()
        group.stage_zeroes(volume, 0, region, trim=True)
        group.commit()
        await system.destagers["g0"].destage()  # the region is in no map now, but still in the catalogue's
        machine.disk.fault = failing("/000001/", "sync")
        put(system, "v0", region, b"b" * region)
        system.create_volume("large", 8 * SIZE, pool="p", group="g1")
        while volume.pool.free:
            filled.append(len(filled) * region)
            put(system, "large", filled[-1], b"c" * region)
        await system.checkpointer.checkpoint(needed=[system.groups["g1"]])
        assert list(system.checkpointer.behind) == ["g0"]
        with pytest.raises(NoSpace):
            put(system, "large", 8 * SIZE - region, b"c" * region)

    async def after(system: StorageSystem) -> None:
        assert await content(system, "v0") == bytes(region) + b"b" * region + b"a" * (SIZE - 2 * region)
        assert await content(system, "large") == (b"c" * region * len(filled)).ljust(8 * SIZE, b"\0")

    live(machine, scenario)
    machine.disk.fault = None
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_full_pool_goes_on_with_another_disk_and_has_it_after_a_crash() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        system.create_volume("large", 8 * SIZE, pool="p", group="g0")
        for offset in range(0, 2 * SIZE, 65536):
            put(system, "large", offset, b"a" * 4096)
        with pytest.raises(NoSpace):
            put(system, "large", 4 * SIZE, b"b" * 4096)
        system.create_disk("more", f"{DATA}/disks/more", 2 * 65536)
        assert system.grow_pool("p", "more").free == 2
        with pytest.raises(Conflict, match="is in pool p"):
            system.grow_pool("p", "more")
        put(system, "large", 4 * SIZE, b"b" * 4096)
        await system.group("g0").make_durable()
        await system.checkpointer.checkpoint()

    async def after(system: StorageSystem) -> None:
        assert [disk.name for disk in system.pools["p"].disks][-1] == "more"
        assert system.pools["p"].free == 1
        buffer = bytearray(4096)
        await system.volume("large").read(memoryview(buffer), 4 * SIZE)
        assert buffer == b"b" * 4096

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()
