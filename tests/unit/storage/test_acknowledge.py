"""Acknowledgement: syncs that begin before their flush is here, and what they may not change."""

from __future__ import annotations

import asyncio

from controllerd.model.errors import RemoteCopyError
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.unit.storage.helpers import content, live, make_machine, put


async def _commit_and_flush(system: StorageSystem, number: int) -> None:
    """What a database does: one write, its answer, and then a flush."""
    sequence = put(system, "v0", number * 4096, bytes([number]) * 4096)
    done: asyncio.Future[RemoteCopyError | None] = asyncio.get_running_loop().create_future()
    system.groups["g0"].when_flushed(sequence, done.set_result)
    assert await done is None


def test_the_sync_of_a_commit_begins_before_its_flush_when_flushes_come_after_each() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        for number in range(1, 5):
            await _commit_and_flush(system, number)
        early = put(system, "v0", 0, b"e" * 4096)
        await asyncio.sleep(0.01)
        assert group.durable_seq == early
        # It did not come: the next commits wait for their flush again.
        late = put(system, "v0", 0, b"f" * 4096)
        await asyncio.sleep(0.01)
        assert group.durable_seq == early
        answers: list[RemoteCopyError | None] = []
        group.when_flushed(early, answers.append)
        assert answers == [None]
        assert group.durable_seq < late

    live(machine, scenario)
    machine.destroy()


def test_one_sync_serves_every_flush_of_a_turn() -> None:
    machine = make_machine()
    syncs: list[str] = []

    def count(operation: str, path: str, offset: int, length: int) -> None:
        if operation == "sync" and ".seg" in path:
            syncs.append(path)

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        await _commit_and_flush(system, 1)
        machine.disk.fault = count
        answers: list[RemoteCopyError | None] = []
        for number in range(2, 12):
            group.when_flushed(put(system, "v0", number * 4096, b"x" * 4096), answers.append)
        await asyncio.sleep(0.01)
        assert answers == [None] * 10
        assert len(syncs) == 1

    live(machine, scenario)
    machine.destroy()


def test_what_was_flushed_survives_power_loss_whether_its_sync_began_early_or_not() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        for number in range(1, 9):
            await _commit_and_flush(system, number)

    async def after(system: StorageSystem) -> None:
        image = await content(system, "v0")
        assert all(image[number * 4096 : (number + 1) * 4096] == bytes([number]) * 4096 for number in range(1, 9))

    live(machine, scenario)
    machine.crash(Loss.NOTHING)
    live(machine, after)
    machine.destroy()
