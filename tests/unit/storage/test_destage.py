"""Destage: what writes that come while it runs may rely on."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from controllerd.storage import destage
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.unit.storage.helpers import content, live, make_machine, put

REGION = 64 << 10


def test_a_region_is_not_given_back_while_a_write_to_it_is_staged() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        destager = system.destagers["g0"]
        put(system, "v0", 0, b"old" + bytes(REGION - 3))
        await destager.destage()
        group.stage_zeroes(volume, 0, REGION, trim=True)
        group.commit()
        window = asyncio.get_running_loop().create_task(destager.destage())
        await asyncio.sleep(0)  # frozen; it waits for the journal
        assert volume.layers.frozen_zeroed
        group.stage_write(volume, 4096, memoryview(b"n" * 4096))  # its commit round has not ended yet
        await window
        group.commit()
        async with asyncio.timeout(5):
            await destager.destage()
        assert (await content(system, "v0"))[:REGION] == bytes(4096) + b"n" * 4096 + bytes(REGION - 8192)

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:REGION] == bytes(4096) + b"n" * 4096 + bytes(REGION - 8192)

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_a_destage_that_is_stopped_ends_its_write_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destage, "LONG_WRITE", 4096)
    machine = make_machine()
    machine.disk.sync_seconds = 1.0

    async def scenario(system: StorageSystem) -> None:
        destager = system.destagers["g0"]
        put(system, "v0", 0, b"a" * REGION)
        await system.groups["g0"].make_durable()
        window = asyncio.get_running_loop().create_task(destager.destage())
        await asyncio.sleep(0)
        window.cancel()
        with pytest.raises(asyncio.CancelledError):
            await window
        put(system, "v0", 0, b"b" * REGION)
        await destager.destage()
        await asyncio.sleep(10)
        assert (await content(system, "v0"))[:REGION] == b"b" * REGION

    live(machine, scenario)
    machine.destroy()


def test_a_region_that_could_not_be_zeroed_shows_nothing_old_after_an_orderly_stop() -> None:
    machine = make_machine()

    def fault(operation: str, path: str, offset: int, length: int) -> None:
        if operation == "zero":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def scenario(system: StorageSystem) -> None:
        group, volume = system.groups["g0"], system.volume("v0")
        put(system, "v0", 0, b"old" * 20000 + bytes(REGION - 60000))
        await system.checkpointer.checkpoint()
        group.stage_zeroes(volume, 0, REGION, trim=True)
        group.commit()
        machine.disk.fault = fault
        await system.checkpointer.checkpoint()
        machine.disk.fault = None
        assert not volume.allocated
        await system.stop()

    async def after(system: StorageSystem) -> None:
        put(system, "v0", 0, b"new")
        assert (await content(system, "v0"))[:REGION] == b"new" + bytes(REGION - 3)

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()
