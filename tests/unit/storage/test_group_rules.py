"""Rules of groups that planted defects broke unseen: who may write, and times after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllerd.model.errors import ReadOnly
from controllerd.model.pair_state import Role
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.unit.storage.helpers import failing, live, make_machine, put


def test_hosts_may_not_write_to_a_secondary() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        await system.change_role(system.groups["g0"], Role.SECONDARY, last_origin=0)
        assert not system.volume("v0").writable
        with pytest.raises(ReadOnly):
            put(system, "v0", 0, b"a" * 4096)
        with pytest.raises(ReadOnly):
            system.groups["g0"].stage_zeroes(system.volume("v0"), 0, 4096, trim=True)

    live(machine, scenario)
    machine.destroy()


def test_a_restart_does_not_take_write_times_back_in_any_group() -> None:
    machine = make_machine(groups=2)
    machine.settings = replace(machine.settings, time_source="host")

    async def before(system: StorageSystem) -> None:
        volume = system.volume("v0")
        volume.group.stage_write(volume, 0, memoryview(b"a" * 4096), 1000)
        volume.group.commit()

    async def after(system: StorageSystem) -> None:
        put(system, "v1", 0, b"b" * 4096)
        assert system.groups["g1"].last_time >= 1000

    live(machine, before)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


@pytest.mark.parametrize("left_out", [False, True])
def test_number_of_a_lost_write_is_not_given_to_another_group(left_out: bool) -> None:
    """A secondary may have the write; its cut time would go back (I11). The simulator's seed 245."""
    machine = make_machine(groups=2, apart=left_out)
    machine.settings = replace(machine.settings, time_source="sequence", boot="one")
    numbers = []

    async def write(system: StorageSystem) -> None:
        for name in ("v1", "v0"):
            volume = system.volume(name)
            if volume.group.read_error is None:
                put(system, name, 0, b"a" * 4096)
                numbers.append(volume.group.last_time)
                if name == "v1":
                    await volume.group.make_durable()

    for _ in range(3):
        live(machine, write)
        machine.crash(Loss.KILL if left_out else Loss.NOTHING)
        if not left_out:
            machine.settings = replace(machine.settings, boot=machine.settings.boot + " more")
        else:  # a write that nobody knows of as long as its disk is away
            machine.disk.fault = failing("d0.img", "open", "read")
    assert numbers == sorted(set(numbers))
    machine.destroy()


@pytest.mark.parametrize("stopped", [False, True])
def test_numbers_go_on_without_a_gap_when_nothing_was_lost(stopped: bool) -> None:
    machine = make_machine(groups=2)
    machine.settings = replace(machine.settings, time_source="sequence", boot="one")
    found = []

    async def life(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        found.append(system.groups["g0"].last_time)
        if stopped:
            await system.stop()

    for _ in range(3):
        live(machine, life)
        machine.crash(Loss.KILL)
    assert [number - found[0] for number in found] == [0, 1, 2]
    machine.destroy()


def test_numbers_of_a_deleted_group_are_not_given_again() -> None:
    machine = make_machine(groups=2)
    machine.settings = replace(machine.settings, time_source="sequence", boot="one")
    numbers = []

    async def before(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        numbers.append(system.groups["g0"].last_time)
        await system.delete_volume("v0")
        await system.delete_group("g0")

    async def after(system: StorageSystem) -> None:
        put(system, "v1", 0, b"b" * 4096)
        numbers.append(system.groups["g1"].last_time)

    live(machine, before)
    machine.crash(Loss.KILL)
    live(machine, after)
    assert numbers[1] > numbers[0]
    machine.destroy()
