"""What an operator can do with a group whose journal or disk does not work, while the others go on (I7)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from controllerd.model.errors import Conflict, DiskFailed, NotFound, RemoteCopyError
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import Machine
from tests.unit.storage.helpers import SIZE, content, failing, live, make_machine, put


@pytest.fixture
def machine() -> Machine:
    return make_machine(groups=2, apart=True)


async def fill(system: StorageSystem) -> None:
    for name in ("v0", "v1"):
        put(system, name, 0, b"a" * 8192)
    await system.checkpointer.checkpoint()
    for name in ("v0", "v1"):
        put(system, name, 4096, b"b" * 8192)
        await system.volume(name).group.make_durable()


async def is_whole(system: StorageSystem, volume: str) -> None:
    expected = b"a" * 4096 + b"b" * 8192
    assert system.volume(volume).group.describe_fault() is None
    assert await content(system, volume) == expected.ljust(SIZE, b"\0")


# ---- forgetting ------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at the start", "in use"])
@pytest.mark.parametrize("part", ["journals/000001/", "d0.img"])
@pytest.mark.parametrize("loss", [Loss.KILL, Loss.NOTHING])
def test_group_that_cannot_work_is_forgotten_while_the_other_goes_on(
    machine: Machine, when: str, part: str, loss: Loss
) -> None:
    live(machine, fill)

    async def forget(system: StorageSystem) -> None:
        if when == "in use":
            machine.disk.fault = failing(part)
            put_fails(system)
            with contextlib.suppress(RemoteCopyError):
                await system.checkpointer.checkpoint(needed=[system.groups["g0"]])
        assert system.groups["g0"].broken is not None
        assert await system.held.forget("g0") == ["v0"]
        assert (list(system.groups), list(system.volumes)) == (["g1"], ["v1"])
        put(system, "v1", SIZE - 4096, b"c" * 4096)
        await system.checkpointer.checkpoint(needed=[system.groups["g1"]])

    async def after(system: StorageSystem) -> None:
        assert (list(system.groups), list(system.volumes)) == (["g1"], ["v1"])
        assert (await content(system, "v1"))[-4096:] == b"c" * 4096
        system.create_group("g0")
        system.create_volume("v0", SIZE, pool="p0", group="g0")
        assert await content(system, "v0") == bytes(SIZE)
        put(system, "v0", 100, b"d" * 100)
        assert await content(system, "v0") == (bytes(100) + b"d" * 100).ljust(SIZE, b"\0")

    machine.crash(Loss.KILL)
    if when == "at the start":
        machine.disk.fault = failing(part)
    live(machine, forget)
    machine.crash(loss)
    machine.disk.fault = None
    live(machine, after)
    machine.destroy()


def put_fails(system: StorageSystem) -> None:
    """A host writes to a group whose journal or disk is about to be found broken."""
    try:
        put(system, "v0", 0, b"x" * 4096)
    except RemoteCopyError:
        assert system.groups["g0"].broken is not None


def test_space_of_a_forgotten_group_on_a_disk_that_works_is_there_for_others() -> None:
    machine = make_machine(groups=2)
    live(machine, fill)

    async def forget(system: StorageSystem) -> None:
        pool = system.pools["p"]
        free = pool.free
        allocated = system.volume("v0").allocated
        assert allocated
        await system.held.forget("g0")
        await system.checkpointer.checkpoint()
        assert pool.free == free + allocated // pool.region_size
        assert not system.checkpointer.leaked
        system.create_group("new")
        system.create_volume("n", SIZE, pool="p", group="new")
        put(system, "n", 100, b"n")
        assert await content(system, "n") == (bytes(100) + b"n").ljust(SIZE, b"\0")
        await is_whole(system, "v1")

    machine.crash(Loss.KILL)
    machine.disk.fault = failing("journals/000001/", "read")
    live(machine, forget)
    machine.destroy()


def test_group_that_works_is_not_forgotten(machine: Machine) -> None:
    live(machine, fill)

    async def scenario(system: StorageSystem) -> None:
        with pytest.raises(Conflict, match="works"):
            await system.held.forget("g0")
        with pytest.raises(Conflict, match="is not held"):
            await system.held.recover("g0")
        for order in (system.held.forget, system.held.recover):
            with pytest.raises(NotFound):
                await order("g9")
        await is_whole(system, "v0")

    machine.crash(Loss.KILL)
    live(machine, scenario)
    machine.destroy()


def test_forgetting_that_the_catalogue_refuses_changes_nothing(machine: Machine) -> None:
    live(machine, fill)

    async def scenario(system: StorageSystem) -> None:
        machine.disk.fault = failing("catalogue", "catalogue", times=1)
        with pytest.raises(OSError, match="Input/output"):
            await system.held.forget("g0")
        assert system.groups["g0"].read_error is not None
        assert "v0" in system.volumes
        machine.disk.fault = None
        await system.held.recover("g0")
        await is_whole(system, "v0")

    machine.crash(Loss.KILL)
    machine.disk.fault = failing("journals/000001/", "read")
    live(machine, scenario)
    machine.destroy()


# ---- recovering ------------------------------------------------------------------


@pytest.mark.parametrize("part", ["journals/000001/", "d0.img"])
@pytest.mark.parametrize("loss", [Loss.KILL, Loss.NOTHING])
def test_held_group_is_recovered_without_a_restart_once_it_can_be(machine: Machine, part: str, loss: Loss) -> None:
    live(machine, fill)

    async def scenario(system: StorageSystem) -> None:
        told: list[str] = []
        system.on_recovered = lambda group: told.append(group.name)
        await is_whole(system, "v1")
        for _ in range(2):
            with pytest.raises(DiskFailed):
                await system.held.recover("g0")
            assert not system.volume("v0").visible
            assert not told
        machine.disk.fault = None
        await system.held.recover("g0")
        assert told == ["g0"]
        await is_whole(system, "v0")
        put(system, "v0", SIZE - 4096, b"d" * 4096)
        await system.groups["g0"].make_durable()
        await asyncio.sleep(30)
        assert system.groups["g0"].facts.destaged == system.groups["g0"].last_seq

    async def after(system: StorageSystem) -> None:
        assert system.groups["g0"].describe_fault() is None
        assert (await content(system, "v0"))[:8192] == b"a" * 4096 + b"b" * 4096
        assert (await content(system, "v0"))[-4096:] == b"d" * 4096

    machine.crash(Loss.KILL)
    machine.disk.fault = failing(part, "open", "read", "zero")
    live(machine, scenario)
    machine.crash(loss)
    live(machine, after)
    machine.destroy()


def test_group_held_while_in_use_needs_a_restart(machine: Machine) -> None:
    live(machine, fill)

    async def scenario(system: StorageSystem) -> None:
        machine.disk.fault = failing("d0.img", "sync")
        put(system, "v0", 0, b"x" * 4096)
        await system.checkpointer.checkpoint()
        assert system.groups["g0"].read_error is not None
        machine.disk.fault = None
        with pytest.raises(Conflict, match="restart"):
            await system.held.recover("g0")

    machine.crash(Loss.KILL)
    live(machine, scenario)
    machine.destroy()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("group g0: record 7 is damaged", "group g0: record 7 is damaged"),
        ("journal of group g0 is full", "journal of group g0 is full"),
        ("group g01: not this one", "group g0: group g01: not this one"),
        ("disk d0: gone", "group g0: disk d0: gone"),
    ],
)
def test_fault_says_once_which_group_is_meant(machine: Machine, error: str, line: str) -> None:
    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        assert group.name_fault() is None
        group.hold(DiskFailed(error))
        assert group.name_fault() == line
        assert group.say("is held", error) == f"group g0 is held: {error.removeprefix('group g0: ')}"

    live(machine, scenario)
    machine.destroy()
