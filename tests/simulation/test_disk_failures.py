"""Random histories in which one of two disks fails: the other group goes on (I7), recovery is right for both."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os

import pytest

from controllerd.model.errors import DiskFailed
from controllerd.storage import journal
from controllerd.storage.group import Group
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Fault, Loss
from tests.simulation.storage_case import MAX_WRITE, Case
from tests.simulation.storage_machine import DATA

CASES = 40
BATCHES = 5
FAILING = f"{DATA}/disks/d0.img"


class FailingDiskCase(Case):
    """Group g0 lies on disk d0, which fails in each life, g1 on d1, which never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = {
            f"g{group}": type(model)({f"v{group}": self.shape.volume_bytes})
            for group, model in enumerate(2 * list(self.models.values())[:1])
        }
        self.models = groups
        self.shape = dataclasses.replace(self.shape, groups=2, volumes=1)

    async def create(self, system: StorageSystem) -> None:
        size = -(-self.shape.volume_bytes // self.shape.region_bytes) * self.shape.region_bytes
        for number, (name, model) in enumerate(self.models.items()):
            system.create_disk(f"d{number}", f"{DATA}/disks/d{number}.img", size)
            system.create_pool(f"p{number}", [f"d{number}"])
            system.create_group(name)
            for volume in model.sizes:
                system.create_volume(volume, self.shape.volume_bytes, pool=f"p{number}", group=name)

    def draw_fault(self) -> Fault:
        """Some calls of some kinds on the disk fail, from some call on, once or always."""
        operations = self.rng.sample(("write", "sync", "zero"), self.rng.randint(1, 3))
        before, times = self.rng.randint(0, 20), self.rng.choice((1, 3, 1 << 30))

        def fault(operation: str, path: str, offset: int, length: int) -> None:
            nonlocal before, times
            if path == FAILING and operation in operations:
                before -= 1
                if before < 0 < times:
                    times -= 1
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        return fault

    async def work(self, system: StorageSystem) -> None:
        self.machine.disk.fault = self.draw_fault()
        await super().work(system)
        healthy = system.groups["g1"]
        async with asyncio.timeout(60):
            while healthy.kept_through() is None and not healthy.accepting:  # noqa: ASYNC110  # any reason
                await asyncio.sleep(0.5)
            await healthy.make_durable()
        await system.checkpointer.checkpoint(needed=[healthy])
        assert healthy.describe_fault() is None

    def write_pass(self, system: StorageSystem, group: Group) -> None:
        try:
            super().write_pass(system, group)
        except DiskFailed:
            assert group.name == "g0"
            group.commit()  # ticks that came before

    async def compare(self, system: StorageSystem) -> None:
        everything = self.models
        self.models = {name: model for name, model in everything.items() if system.groups[name].read_error is None}
        assert "g1" in self.models
        try:
            await super().compare(system)
        except DiskFailed:  # it came in the middle
            assert system.groups["g0"].read_error is not None
        finally:
            self.models = everything

    def crash(self, loss: Loss) -> None:
        super().crash(loss)
        self.machine.disk.fault = None
        if self.rng.random() < 0.5:
            self.machine.disk.evict()


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments be small enough that cases fill, roll and recycle them."""
    monkeypatch.setattr(journal, "PIECE_MAX", MAX_WRITE + 1024)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_failing_disk_costs_no_promise_and_holds_no_other_group(batch: int) -> None:
    for seed in range(batch * CASES, (batch + 1) * CASES):
        try:
            FailingDiskCase(seed).run()
        except BaseException as error:
            error.add_note(f"replay with FailingDiskCase({seed}).run()")
            raise
