"""One random history of a primary storage system: writes, flushes, destages, crashes, recoveries, checks.

Owns: drawing the history from a seed, and what must hold after each recovery.
Never: looks inside the storage system; what it checks is what hosts could see.

Checked: each group's image is exactly the first n of its writes (I1, I8), n covers every flushed
write after power loss and every acknowledged one after a kill (I4), reads give the last write (I9),
numbers go on without gaps (I2), and a second recovery finds the same (I20).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from controllerd.model.errors import NoSpace, RemoteCopyError
from controllerd.storage.group import Group
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import DATA, Machine
from tests.simulation.storage_model import GroupModel, Write

SEGMENT = 64 << 10
MAX_WRITE = 12 << 10


@dataclass
class Shape:
    """What a case's system looks like. Sizes in bytes."""

    groups: int
    volumes: int
    volume_bytes: int
    region_bytes: int
    durability: str
    segments: int
    cache_bytes: int


def draw_shape(rng: random.Random) -> Shape:
    """Small sizes, so that everything collides and fills up."""
    return Shape(
        groups=rng.choice((1, 1, 2)),
        volumes=rng.choice((1, 2)),
        volume_bytes=rng.choice((32 << 10, 64 << 10, 100 << 10)),
        region_bytes=rng.choice((4096, 8192, 16384)),
        durability=rng.choice(("cache", "cache", "stable")),
        segments=rng.choice((3, 4, 8)),
        cache_bytes=rng.choice((48 << 10, 128 << 10, 1 << 20)),
    )


def settings_for(shape: Shape) -> StorageSettings:
    """Settings that make destage and checkpoint frequent in virtual time."""
    return StorageSettings(
        DATA,
        cache_bytes=shape.cache_bytes,
        journal_bytes=shape.segments * SEGMENT,
        segment_bytes=SEGMENT,
        tail_bytes=SEGMENT,
        pending_bytes=16 << 10,
        region_bytes=shape.region_bytes,
        checkpoint_interval_s=2.0,
        destage_age_s=0.7,
        max_request_bytes=MAX_WRITE,
        durability="stable" if shape.durability == "stable" else "cache",
    )


@dataclass
class Case:
    """State of one case; ``seed`` tells it all."""

    seed: int
    rng: random.Random = field(init=False)
    shape: Shape = field(init=False)
    machine: Machine = field(init=False)
    models: dict[str, GroupModel] = field(init=False)
    losses: tuple[Loss, ...] = tuple(Loss)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.shape = draw_shape(self.rng)
        self.machine = Machine.make(self.rng, settings_for(self.shape))
        self.machine.disk.misses = self.rng.choice((0.0, 0.3))
        self.machine.disk.sync_seconds = self.rng.choice((0.0, 0.1, 1.5))
        self.models = {
            f"g{group}": GroupModel(
                {f"v{group}{volume}": self.shape.volume_bytes for volume in range(self.shape.volumes)}
            )
            for group in range(self.shape.groups)
        }

    # ---- history ---------------------------------------------------------------

    def run(self) -> None:
        """Run the whole history and check it."""
        rng = self.rng
        try:
            assert self.machine.run(self.create)
            self.crash(Loss.KILL if self.stopped else rng.choice(self.losses))
            for _ in range(rng.randint(1, 4)):
                for _ in range(rng.choice((0, 0, 1, 2))):  # crashes during recovery
                    if not self.machine.run(self.nothing, cut_in=rng.randint(1, 60)):
                        self.crash(rng.choice(self.losses))
                cut_in = rng.choice((None, rng.randint(20, 100), rng.randint(100, 600)))
                self.machine.run(self.check_and_work, cut_in)
                self.crash(rng.choice(self.losses))
            self.machine.run(self.check)
            before = {name: (len(model.writes), model.images(len(model.writes))) for name, model in self.models.items()}
            self.crash(rng.choice(self.losses))
            self.machine.run(self.check)
            after = {name: (len(model.writes), model.images(len(model.writes))) for name, model in self.models.items()}
            assert before == after, "a second recovery found something else"
        finally:
            self.machine.destroy()

    def crash(self, loss: Loss) -> None:
        """End this life; what was only acknowledged may be lost with the power."""
        self.machine.crash(loss)
        if loss is not Loss.KILL:
            for model in self.models.values():
                model.acknowledged = min(model.acknowledged, model.flushed)

    async def nothing(self, system: StorageSystem) -> None:
        """A life that ends right after its recovery: what it found is what must be found again."""
        self.adopt(system)

    async def create(self, system: StorageSystem) -> None:
        """First life: make everything; orders are durable when they return."""
        shape = self.shape
        regions = shape.groups * shape.volumes * (-(-shape.volume_bytes // shape.region_bytes))
        disks = self.rng.choice((1, 2))
        for number in range(disks):
            size = max(1, regions * self.rng.choice((2, 3)) // (2 * disks)) * shape.region_bytes
            system.create_disk(f"d{number}", f"{DATA}/disks/d{number}.img", size)
        system.create_pool("p", [f"d{number}" for number in range(disks)])
        for name, model in self.models.items():
            system.create_group(name)
            for volume, size in model.sizes.items():
                system.create_volume(volume, size, pool="p", group=name)
        if self.rng.random() < 0.5:
            await self.work(system)

    async def check_and_work(self, system: StorageSystem) -> None:
        """One life: check what was recovered, then go on."""
        await self.check(system)
        await self.work(system)
        if self.rng.random() < 0.3:
            await system.stop()

    # ---- checks ------------------------------------------------------------------

    def adopt(self, system: StorageSystem) -> None:
        """Take what recovery found as the truth, if it may be."""
        for name, model in self.models.items():
            group = system.groups[name]
            assert group.describe_fault() is None, f"group {name} is held: {group.describe_fault()}"
            last = group.last_seq
            assert model.flushed <= last, f"{name}: recovered {last}, flushed {model.flushed}"
            assert model.acknowledged <= last, f"{name}: recovered {last}, acknowledged {model.acknowledged}"
            assert last <= len(model.writes), f"{name}: recovered {last} of {len(model.writes)} writes"
            model.recovered(last)

    async def check(self, system: StorageSystem) -> None:
        """Compare every volume with the model."""
        self.adopt(system)
        await self.compare(system)

    async def compare(self, system: StorageSystem) -> None:
        """Read all volumes in pieces and compare."""
        for name, model in self.models.items():
            assert system.groups[name].last_seq == len(model.writes)
            for volume_name, expected in model.images(len(model.writes)).items():
                volume = system.volume(volume_name)
                buffer = bytearray(volume.size)
                position = 0
                while position < volume.size:
                    length = min(self.rng.choice((4096, 4096, 512, 10000)), volume.size - position)
                    view = memoryview(buffer)[position : position + length]
                    if not volume.read_into(view, position):
                        await volume.read(view, position)
                    position += length
                if bytes(buffer) != expected:
                    wrong = next(index for index in range(volume.size) if buffer[index] != expected[index])
                    raise AssertionError(
                        f"{volume_name}: byte {wrong} differs from the first {len(model.writes)} writes"
                    )

    # ---- hosts -------------------------------------------------------------------

    async def work(self, system: StorageSystem) -> None:
        """Be the hosts for a while."""
        rng = self.rng
        for _ in range(rng.randint(1, 40)):
            group = system.groups[rng.choice(sorted(self.models))]
            action = rng.random()
            if action < 0.6:
                if group.accepting:
                    self.write_pass(system, group)
                else:
                    await asyncio.sleep(0.3)
            elif action < 0.7:
                await self.flush(group, wait=rng.random() < 0.7)
            elif action < 0.8:
                await asyncio.sleep(rng.choice((0.0, 0.0, 0.05, 0.9, 2.5)))
            elif action < 0.85:
                await system.checkpointer.checkpoint()
            elif action < 0.92:
                self.consume(group)
            else:
                await self.compare(system)

    def write_pass(self, system: StorageSystem, group: Group) -> None:
        """Stage a few writes, commit them, and remember what is acknowledged."""
        rng = self.rng
        model = self.models[group.name]
        for _ in range(rng.randint(1, 6)):
            volume = system.volume(rng.choice(sorted(model.sizes)))
            try:
                self.stage(group, volume, model)
            except NoSpace:
                break
        group.commit()
        last = group.last_seq
        group.when_complete(last, lambda error: self.acknowledge(group, last, error))

    def stage(self, group: Group, volume: Volume, model: GroupModel) -> None:
        """Stage one write of any kind."""
        rng = self.rng
        if rng.random() < 0.05:
            model.record(group.stage_tick(group.write_time.tick(group.clock())), Write(None, 0, 0, None))
            return
        unit = rng.choice((4096, 4096, 512, 1))
        length = min(rng.randint(1, max(1, MAX_WRITE // unit)), volume.size // unit) * unit
        if rng.random() < 0.6:
            length = min(length, unit)
        offset = rng.randint(0, (volume.size - length) // unit) * unit
        if rng.random() < 0.75:
            data = rng.randbytes(length)
            sequence = group.stage_write(volume, offset, memoryview(data))
            model.record(sequence, Write(volume.name, offset, length, data))
        else:
            if rng.random() < 0.5:
                offset, length = 0, rng.randint(1, volume.size)
            trim = rng.random() < 0.5
            no_hole = not trim and rng.random() < 0.5
            if no_hole:  # it is journaled as data, so the limit of a write holds for it
                length = min(length, MAX_WRITE)
            sequence = group.stage_zeroes(volume, offset, length, trim=trim, no_hole=no_hole)
            model.record(sequence, Write(volume.name, offset, length, None))

    def acknowledge(self, group: Group, sequence: int, error: RemoteCopyError | None) -> None:
        """The host hears of its write, if the controller still lives."""
        if self.machine.disk.down:
            return
        assert error is None, error
        model = self.models[group.name]
        model.acknowledged = max(model.acknowledged, sequence)
        if group.durability == "stable":
            model.flushed = max(model.flushed, sequence)

    async def flush(self, group: Group, *, wait: bool) -> None:
        """A host's FLUSH."""
        model = self.models[group.name]
        target = group.complete_seq
        done = asyncio.get_running_loop().create_future()

        def flushed(error: RemoteCopyError | None) -> None:
            if self.machine.disk.down:
                return
            assert error is None, error
            model.flushed = max(model.flushed, target)
            if not done.done():
                done.set_result(None)

        group.when_flushed(target, flushed)
        if wait:
            await done

    def consume(self, group: Group) -> None:
        """A peer that keeps the journal, and moves on or leaves."""
        rng = self.rng
        if rng.random() < 0.4:
            group.set_retention("recovered", None)
            group.set_retention("peer", None)
        else:
            kept = group.kept_through()
            low = min(group.facts.destaged if kept is None else kept, group.last_seq)
            group.set_retention("peer", rng.randint(low, group.last_seq))
