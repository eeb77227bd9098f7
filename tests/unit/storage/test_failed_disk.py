"""One of several disks fails: its groups are refused with one clear error, all others go on (I7)."""

from __future__ import annotations

import asyncio

import pytest

from controllerd.model.errors import DiskFailed
from controllerd.model.pair_state import Role
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import Machine
from tests.unit.storage.helpers import SEGMENT, SIZE, content, failing, live, make_machine, put

ROUNDS = 6 * SEGMENT // SIZE
"""Rewriting a volume so often fills a journal and the cache more than once."""


async def work_on(system: StorageSystem, volume: str, byte: bytes) -> None:
    """Be a host that rewrites a volume and waits, without a limit, when it has to."""
    group = system.volume(volume).group
    for _ in range(ROUNDS):
        for offset in range(0, SIZE, 1 << 16):
            accepting = asyncio.Event()
            group.when_accepting(accepting.set)
            await accepting.wait()
            put(system, volume, offset, byte * (1 << 16))
        await asyncio.sleep(0.5)
    await group.make_durable()


async def expect_refused(system: StorageSystem, disk: str, group: str) -> None:
    """The group says which disk failed, to hosts and to the operator."""
    assert f"disk {disk}" in (system.groups[group].describe_fault() or "")
    with pytest.raises(DiskFailed, match=f"disk {disk}"):
        put(system, "v0", 0, b"x" * 4096)


@pytest.fixture
def machine() -> Machine:
    return make_machine(groups=2, cache=4 << 20, apart=True)


@pytest.mark.parametrize("operation", ["sync", "write", "zero"])
@pytest.mark.parametrize("loss", [Loss.KILL, Loss.NOTHING, Loss.SECTORS])
def test_other_groups_go_on_and_a_restart_finds_everything(machine: Machine, operation: str, loss: Loss) -> None:
    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * SIZE)
        await system.checkpointer.checkpoint()
        machine.disk.fault = failing("d0.img", operation)
        system.groups["g0"].stage_zeroes(system.volume("v0"), 0, 1 << 16, trim=True)
        system.groups["g0"].commit()
        put(system, "v0", 1 << 15, b"b" * (1 << 18))
        await system.groups["g0"].make_durable()
        async with asyncio.timeout(600):
            await work_on(system, "v1", b"c")
        await expect_refused(system, "d0", "g0")
        await system.checkpointer.checkpoint(needed=[system.groups["g1"]])
        assert system.groups["g1"].facts.destaged == system.groups["g1"].last_seq
        assert len(system.groups["g1"].journal.chain) == 1
        await system.stop()

    async def after(system: StorageSystem) -> None:
        expected = bytes(1 << 15) + b"b" * (1 << 18)
        assert await content(system, "v0") == expected + b"a" * (SIZE - len(expected))
        assert await content(system, "v1") == b"c" * SIZE
        assert system.volume("v0").writable

    live(machine, scenario)
    machine.crash(loss)
    machine.disk.fault = None
    live(machine, after)
    machine.destroy()


def test_cache_that_a_failed_disk_keeps_is_no_concern_of_others(machine: Machine) -> None:
    async def scenario(system: StorageSystem) -> None:
        machine.disk.fault = failing("d0.img", "write")
        full = [False]
        while not full[-1]:
            put(system, "v0", 0, b"a" * SIZE)
            full.append(system.budget.full)
        await asyncio.sleep(5)
        assert not system.budget.full
        assert await content(system, "v0") == b"a" * SIZE

    live(machine, scenario)
    machine.destroy()


def test_orders_that_need_the_failed_group_say_so_and_change_nothing(machine: Machine) -> None:
    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        machine.disk.fault = failing("d0.img", "sync")
        group = system.groups["g0"]
        with pytest.raises(DiskFailed, match="disk d0"):
            await system.change_role(group, Role.SECONDARY)
        assert group.role is Role.PRIMARY
        with pytest.raises(DiskFailed, match="disk d0"):
            await system.delete_volume("v0")
        with pytest.raises(DiskFailed, match="disk d0"):
            system.create_volume("other", SIZE, pool="p0", group="g1")
        await system.delete_volume("v1")

    live(machine, scenario)
    machine.destroy()


@pytest.mark.parametrize("operations", [(), ("open",), ("zero", "write")])
def test_start_with_a_dead_disk_serves_the_other_groups(machine: Machine, operations: tuple[str, ...]) -> None:
    async def fill(system: StorageSystem) -> None:
        for name in ("v0", "v1"):
            put(system, name, 0, name.encode() * (SIZE // 2))
            await system.volume(name).group.make_durable()

    async def without(system: StorageSystem) -> None:
        await expect_refused(system, "d0", "g0")
        assert not system.volume("v0").visible
        assert await content(system, "v1") == b"v1" * (SIZE // 2)
        async with asyncio.timeout(600):
            await work_on(system, "v1", b"c")
        await system.stop()

    async def after(system: StorageSystem) -> None:
        assert await content(system, "v0") == b"v0" * (SIZE // 2)
        assert await content(system, "v1") == b"c" * SIZE

    live(machine, fill)
    machine.crash(Loss.NOTHING)
    machine.disk.fault = failing("d0.img", *operations)
    live(machine, without)
    machine.crash(Loss.NOTHING)
    machine.disk.fault = None
    live(machine, after)
    machine.destroy()
