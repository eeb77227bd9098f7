"""Ranges that take no space, and ranges that were promised theirs."""

from __future__ import annotations

import asyncio

import pytest

from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.unit.storage.helpers import SIZE, content, live, make_machine, put

REGION = 64 << 10


def zero(system: StorageSystem, offset: int, length: int, *, no_hole: bool = False) -> None:
    """Write zeros and commit."""
    volume = system.volume("v0")
    volume.group.stage_zeroes(volume, offset, length, trim=False, no_hole=no_hole)
    volume.group.commit()


def test_zeroes_without_hole_keep_their_space_for_good() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        volume = system.volume("v0")
        put(system, "v0", 0, b"x" * 2 * REGION)
        zero(system, 0, 4 * REGION, no_hole=True)
        assert volume.extents(0, SIZE) == [(4 * REGION, False), (SIZE - 4 * REGION, True)]
        await system.checkpointer.checkpoint()
        assert volume.extents(0, SIZE) == [(4 * REGION, False), (SIZE - 4 * REGION, True)]
        zero(system, 8 * REGION, REGION, no_hole=True)

    async def after(system: StorageSystem) -> None:
        volume = system.volume("v0")
        assert volume.allocated == 5 * REGION
        assert not any(await content(system, "v0"))

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


def test_holes_are_what_takes_no_space() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        volume = system.volume("v0")
        assert volume.is_hole(0, SIZE)
        put(system, "v0", 3 * REGION - 1, b"xx")
        assert volume.is_hole(0, 2 * REGION)
        assert not volume.is_hole(0, 2 * REGION + 1)
        assert not volume.is_hole(4 * REGION - 1, 1)
        assert volume.is_hole(4 * REGION, SIZE - 4 * REGION)
        zero(system, 0, SIZE)
        await system.checkpointer.checkpoint()
        assert volume.is_hole(0, SIZE)

    live(machine, scenario)
    machine.destroy()


def test_extents_are_the_same_however_they_are_looked_up() -> None:
    """A short range is looked up by its own blocks, a long one by those of the cache."""
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        volume = system.volume("v0")
        for region in (1, 2, 5, 15):
            put(system, "v0", region * REGION + 8192, b"x" * 30_000)
        regions = [length // REGION * [hole] for length, hole in volume.extents(0, SIZE)]
        whole = [hole for run in regions for hole in run]
        assert [number for number, hole in enumerate(whole) if not hole] == [1, 2, 5, 15]
        for region, hole in enumerate(whole):
            assert volume.extents(region * REGION + 512, 4096) == [(4096, hole)]

    live(machine, scenario)
    machine.destroy()


@pytest.mark.parametrize("turns", range(6))
def test_write_staged_while_its_region_is_given_back_keeps_it(turns: int) -> None:
    """A connection in a commit round stages in one turn of the loop and commits in a later one."""
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        volume = system.volume("v0")
        group = volume.group
        put(system, "v0", 0, b"old" * 100)
        await system.checkpointer.checkpoint()
        zero(system, 0, REGION)
        destage = asyncio.ensure_future(system.checkpointer.checkpoint())
        for _ in range(turns):
            await asyncio.sleep(0)
        group.stage_write(volume, 4096, memoryview(b"new" * 100))
        await destage
        group.commit()
        await system.checkpointer.checkpoint()
        assert (await content(system, "v0"))[:8192] == bytes(4096) + b"new" * 100 + bytes(3796)

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[:8192] == bytes(4096) + b"new" * 100 + bytes(3796)

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


@pytest.mark.parametrize("trim", [True, False])
def test_zeros_that_end_in_holes_take_no_space_even_in_a_full_pool(trim: bool) -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        volume, pool = system.volume("v0"), system.pools["p"]
        put(system, "v0", 4 * REGION, b"x" * REGION)
        taken = [pool.allocate(0) for _ in range(pool.free)]
        for low, high in [(100, 200), (REGION - 1, 4 * REGION), (5 * REGION, SIZE - 7), (100, 5 * REGION + 1)]:
            volume.group.stage_zeroes(volume, low, high - low, trim=trim)
        volume.group.commit()
        assert not any(await content(system, "v0"))
        await system.checkpointer.checkpoint()
        assert volume.allocated == 0
        pool.release(taken)

    async def after(system: StorageSystem) -> None:
        assert not any(await content(system, "v0"))

    live(machine, scenario)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()


@pytest.mark.parametrize("crash", [True, False])
def test_edges_of_zeros_know_what_is_staged_before_and_after_them(crash: bool) -> None:
    machine = make_machine()
    expected = bytearray(SIZE)

    async def scenario(system: StorageSystem) -> None:
        volume = system.volume("v0")
        group = volume.group

        def write(offset: int, data: bytes) -> None:
            group.stage_write(volume, offset, memoryview(data))
            expected[offset : offset + len(data)] = data

        def zeros(offset: int, length: int) -> None:
            group.stage_zeroes(volume, offset, length, trim=True)
            expected[offset : offset + length] = bytes(length)

        for number in range(3):  # on holes, on regions that are mapped, and on those trimmed meanwhile
            write(REGION - 600, b"a" * 500)
            zeros(REGION - 300, REGION)
            write(2 * REGION - 400, b"b" * 500)
            zeros(2 * REGION + 50, 100)
            zeros(4 * REGION + 10, REGION)
            write(5 * REGION + 5, b"c" * 100)
            group.commit()
            assert await content(system, "v0") == expected
            if number == 1:
                zeros(0, SIZE)
                group.commit()
                await system.destagers["g0"].destage()
                assert volume.allocated == 0
            await group.make_durable()

    async def after(system: StorageSystem) -> None:
        if not crash:
            await system.checkpointer.checkpoint()
        assert await content(system, "v0") == expected

    live(machine, scenario)
    if crash:
        machine.crash(Loss.NOTHING)
    live(machine, after)
    machine.destroy()
