"""Volumes and pool against arrays of bytes: any order of writes, zeroes, destages, checkpoints and kills.

Besides the content, after every step: no region has two owners, a region that left a map is not given out before the
next checkpoint, every free region reads as zeros, and a refused write has changed nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controllerd.model.errors import NoSpace
from controllerd.storage.pools import Pool
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume
from tests.simulation.disk import Loss, SimulatedDisk
from tests.simulation.storage_machine import DATA, SimulatedCatalogue
from tests.simulation.virtual_loop import VirtualLoop

REGION = 8192
SIZES = {"v": 7 * REGION, "w": 5 * REGION + 1536}
DISKS = {"d0": 4 * REGION, "d1": 5 * REGION}
"""Fewer regions than the volumes have, so that the pool runs full."""

names = st.sampled_from(sorted(SIZES))
places = st.integers(0, max(SIZES.values()) - 1) | st.integers(0, 20).map(lambda number: number * 4096)
lengths = st.sampled_from((1, 511, 512, 4096, 8192, 12288)) | st.integers(1, 3 * REGION)


class Histories(RuleBasedStateMachine):
    """One storage system on a simulated disk; ``images`` is what its volumes must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk(random.Random(1))
        self.disk.make_directory(DATA)
        self.loop = VirtualLoop()
        self.catalogue: SimulatedCatalogue | None = None
        self.images = {name: bytearray(size) for name, size in SIZES.items()}
        self.serial = 0
        self.destage: asyncio.Task[None] | None = None
        self.mapped: set[int] = set()
        """Regions in the maps after the last step."""
        self.left: set[int] = set()
        """Regions that left the maps since the last checkpoint."""
        self.start()
        self.run(self.create())

    async def create(self) -> None:
        for name, size in DISKS.items():
            self.system.create_disk(name, f"{DATA}/disks/{name}", size)
        self.system.create_pool("p", list(DISKS))
        self.system.create_group("g")
        for name, size in SIZES.items():
            self.system.create_volume(name, size, pool="p", group="g")

    def start(self) -> None:
        files = self.disk.boot()
        self.catalogue = SimulatedCatalogue(self.disk, self.catalogue)
        limits = StorageSettings(
            DATA, journal_bytes=32 << 20, segment_bytes=8 << 20, region_bytes=REGION, max_request_bytes=1 << 20,
            destage_age_s=3600, checkpoint_interval_s=3600,
        )  # fmt: skip
        self.system = StorageSystem(
            limits, files, clock=lambda: 1, report=_ignore, rng=random.Random(2), catalogue=self.catalogue
        )
        self.run(self.system.start())
        self.release = self.system.checkpointer.release
        self.system.checkpointer.release = self.released  # type: ignore[method-assign]

    async def released(self, pool: Pool, regions: list[int]) -> None:
        """Checkpoints come by themselves too, where a TRIM finds the pool short of space."""
        self.left -= set(regions)
        await self.release(pool, regions)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.end_life()
        self.loop.close()
        if self.catalogue is not None:
            self.catalogue.destroy()

    def end_life(self) -> None:
        self.disk.down = True
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.run(_gather(tasks))
        self.destage = None

    # ---- hosts -------------------------------------------------------------------

    def place(self, name: str, offset: int, length: int) -> tuple[Volume, int, int]:
        offset %= SIZES[name]
        return self.system.volume(name), offset, min(length, SIZES[name] - offset)

    @rule(name=names, offset=places, length=lengths)
    def write(self, name: str, offset: int, length: int) -> None:
        volume, offset, length = self.place(name, offset, length)
        self.serial += 1
        data = random.Random(self.serial).randbytes(length)
        last = volume.group.last_seq
        try:
            volume.group.stage_write(volume, offset, memoryview(data))
        except NoSpace:
            volume.group.commit()
            assert volume.group.last_seq == last
            assert not self.free()
            return
        volume.group.commit()
        self.images[name][offset : offset + length] = data

    @rule(name=names, offset=places, length=lengths | st.just(1 << 20), trim=st.booleans(), keep=st.booleans())
    def zero(self, name: str, offset: int, length: int, trim: bool, keep: bool) -> None:
        volume, offset, length = self.place(name, offset, length)
        last = volume.group.last_seq
        try:
            volume.group.stage_zeroes(volume, offset, length, trim=trim, no_hole=keep and not trim)
        except NoSpace:
            volume.group.commit()
            assert volume.group.last_seq == last
            assert not self.free()
            return
        volume.group.commit()
        self.images[name][offset : offset + length] = bytes(length)

    @rule(name=names, offset=places, length=lengths)
    def read(self, name: str, offset: int, length: int) -> None:
        volume, offset, length = self.place(name, offset, length)
        expected = self.images[name][offset : offset + length]
        buffer = bytearray(b"\xa5" * length)
        assert volume.read_into(memoryview(buffer), offset)
        assert buffer == expected
        buffer = bytearray(b"\xa5" * length)
        self.run(volume.read(memoryview(buffer), offset))
        assert buffer == expected

    @rule(name=names, offset=places, length=lengths)
    def look_at_holes(self, name: str, offset: int, length: int) -> None:
        volume, offset, length = self.place(name, offset, length)
        runs = volume.extents(offset, length)
        assert sum(size for size, _ in runs) == length
        for size, hole in runs:
            assert not hole or not any(self.images[name][offset : offset + size])
            offset += size

    # ---- background ------------------------------------------------------------------

    @precondition(lambda self: self.destage is None)
    @rule()
    def begin_destage(self) -> None:
        """What is cached is frozen; what comes now goes to the active layer."""
        self.destage = self.loop.create_task(self.system.destagers["g"].destage())
        self.turns(1)

    @rule(count=st.integers(1, 6))
    def turns(self, count: int) -> None:
        for _ in range(count):
            self.run(asyncio.sleep(0))
        if self.destage is not None and self.destage.done():
            self.destage.result()
            self.destage = None

    @rule()
    def finish_destage(self) -> None:
        self.run(self.system.destagers["g"].destage())
        self.turns(1)

    @rule()
    def checkpoint(self) -> None:
        self.run(self.system.checkpointer.checkpoint())
        self.turns(1)
        self.settled()
        assert self.mapped | self.free() == self.regions(), "a region is lost"

    @rule()
    def kill_and_recover(self) -> None:
        self.end_life()
        self.disk.crash(Loss.KILL)
        self.start()
        assert self.system.groups["g"].describe_fault() is None
        self.settled()

    def settled(self) -> None:
        self.mapped, self.left = self.owned(), set()

    # ---- what always holds ----------------------------------------------------------

    def regions(self) -> set[int]:
        return set(range(1, self.system.pools["p"].regions + 1))

    def free(self) -> set[int]:
        return {region for region in self.regions() if not self.system.pools["p"]._used[region]}

    def owned(self) -> set[int]:
        mapped = [region for name in SIZES for region in self.system.volume(name).map if region]
        assert len(mapped) == len(set(mapped)), "a region has two owners"
        return set(mapped)

    @invariant()
    def every_region_has_one_place(self) -> None:
        owned, free = self.owned(), self.free()
        self.left |= self.mapped - owned
        self.mapped = owned
        assert not owned & free, "a region is free and in use"
        assert not (owned | free) & self.left, "a region came back before the checkpoint"
        assert self.system.pools["p"].free == len(free)

    @invariant()
    def free_regions_read_as_zeros(self) -> None:
        for region in self.free():
            disk, offset = self.system.pools["p"].locate(region)
            assert not any(self.disk.content(disk.path).seen[offset : offset + REGION]), f"region {region}"

    @invariant()
    def volumes_hold_what_was_written(self) -> None:
        for name, image in self.images.items():
            buffer = bytearray(len(image))
            assert self.system.volume(name).read_into(memoryview(buffer), 0)
            assert buffer == image, name


def _ignore(_event: str, _facts: dict[str, object]) -> None:
    return None


async def _gather(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
