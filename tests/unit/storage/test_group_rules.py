"""Rules of groups that planted defects broke unseen: who may write, and times after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllerd.model.errors import ReadOnly
from controllerd.model.pair_state import Role
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.unit.storage.helpers import live, make_machine, put


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
