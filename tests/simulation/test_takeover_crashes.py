"""Crashes of a secondary: nothing it confirmed is lost, and a takeover happens wholly or not at all."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from crc32c import crc32c

from controllerd.model.pair_state import Role
from controllerd.model.records import Kind, Record, encode_header
from controllerd.storage import journal
from controllerd.storage.group import Group
from controllerd.storage.pending import Entry
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import DATA, Machine
from tests.simulation.storage_model import GroupModel, Write
from tests.simulation.upstream import stage_from_upstream

SIZE = 64 << 10
MAX_WRITE = 6 << 10
OLD, NEW = 77, 88
"""Generations before and after the takeover."""
ORIGIN = 1000
"""The synchronous primary's numbers begin behind this."""


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments be small enough that cases fill, roll and recycle them."""
    monkeypatch.setattr(journal, "PIECE_MAX", 16 << 10)


@dataclass
class Secondary:
    """A secondary group, what its primary sent, and what it has confirmed."""

    seed: int
    rng: random.Random = field(init=False)
    machine: Machine = field(init=False)
    model: GroupModel = field(init=False)
    taken_over: bool = False
    cut: int = 0
    numbered_here: ClassVar[bool] = False
    generation_after: ClassVar[int] = NEW

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        settings = StorageSettings(
            DATA,
            cache_bytes=256 << 10,
            journal_bytes=512 << 10,
            segment_bytes=64 << 10,
            tail_bytes=64 << 10,
            pending_bytes=8 << 10,
            region_bytes=8192,
            checkpoint_interval_s=3.0,
            destage_age_s=0.5,
            max_request_bytes=16 << 10,
        )
        self.machine = Machine.make(self.rng, settings)
        self.machine.disk.sync_seconds = self.rng.choice((0.0, 0.3))
        self.model = GroupModel({"v": SIZE})

    async def create(self, system: StorageSystem) -> None:
        system.create_disk("d", f"{DATA}/disks/d.img", 4 * SIZE)
        system.create_pool("p", ["d"])
        group = system.create_group("g")
        system.create_volume("v", SIZE, pool="p", group="g")
        await system.rekey_volume("v", 5)
        await system.restart_group(
            group, role=Role.SECONDARY, generation=OLD, last_seq=0, numbered_here=self.numbered_here
        )

    async def receive(self, system: StorageSystem) -> None:
        """Receive and apply for a while."""
        group = system.groups["g"]
        for _ in range(self.rng.randint(2, 12)):
            self.append(group, self.rng.randint(1, 4))
            if self.rng.random() < 0.6:
                reached = await group.make_durable()
                self.model.flushed = self.model.acknowledged = max(self.model.flushed, reached)
            if self.rng.random() < 0.5 and group.durable_seq > group.applied_seq:
                self.apply(group, self.rng.randint(group.applied_seq + 1, group.durable_seq))
                await self.compare(system)
            if self.rng.random() < 0.2:
                await system.checkpointer.checkpoint()

    def append(self, group: Group, count: int) -> None:
        raw, entries = bytearray(), []
        for sequence in range(group.last_seq + 1, group.last_seq + 1 + count):
            write = self.draw()
            self.model.record(sequence, write)
            length, data = write.length, write.data
            kind = Kind.TRIM if data is None else Kind.WRITE
            raw += encode_header(
                kind, sequence=sequence, time=sequence * 10, generation=OLD, incarnation=1, durable=sequence - 1,
                volume=5, offset=write.offset, length=length, data_crc=0 if data is None else crc32c(data),
            )  # fmt: skip
            raw += data or b""
            view = None if data is None else memoryview(data)
            entries.append(Entry(sequence, sequence * 10, int(kind), 5, write.offset, length, 0, view))
        group.append_received(bytes(raw), entries)

    def draw(self) -> Write:
        length = self.rng.choice((512, 4096, self.rng.randint(1, MAX_WRITE)))
        if self.rng.random() < 0.2:
            offset = self.rng.randint(0, SIZE - 1)
            return Write("v", offset, self.rng.randint(1, SIZE - offset), None)
        return Write("v", self.rng.randint(0, SIZE - length), length, self.rng.randbytes(length))

    def apply(self, group: Group, through: int) -> None:
        group.apply_through(through)
        assert group.applied_seq == through

    async def take_over(self, system: StorageSystem) -> None:
        """Finish at the durable end of some cut, and become primary there."""
        self.adopt(system)
        group = system.groups["g"]
        if not self.taken_over:
            await self.change_role(system, group)
            self.become_primary()
        await self.compare(system)
        for _ in range(3):
            write = self.draw()
            volume = system.volume("v")
            if write.data is None:
                sequence = group.stage_zeroes(volume, write.offset, write.length, trim=True)
            else:
                sequence = group.stage_write(volume, write.offset, memoryview(write.data))
            self.model.record(sequence, write)
            group.commit()
        await group.make_durable()
        self.model.flushed = self.model.acknowledged = group.last_seq
        await self.compare(system)

    async def change_role(self, system: StorageSystem, group: Group) -> None:
        self.cut = self.rng.randint(group.applied_seq, group.last_seq)
        await group.make_durable()
        self.apply(group, self.cut)
        await system.restart_group(group, role=Role.PRIMARY, generation=NEW, last_seq=self.cut, last_time=10**6)

    def become_primary(self) -> None:
        self.taken_over = True
        del self.model.writes[self.cut :]
        self.model.flushed = self.model.acknowledged = self.cut

    def adopt(self, system: StorageSystem) -> None:
        group = system.groups["g"]
        assert group.describe_fault() is None, group.describe_fault()
        if group.role is Role.PRIMARY and not self.taken_over:
            self.become_primary()
        assert (group.role is Role.PRIMARY) == self.taken_over
        assert group.generation == (self.generation_after if self.taken_over else OLD)
        assert self.model.flushed <= group.last_seq <= len(self.model.writes)
        assert group.applied_seq + len(group.pending) == group.last_seq
        self.model.recovered(group.last_seq)

    async def check(self, system: StorageSystem) -> None:
        self.adopt(system)
        await self.compare(system)

    async def compare(self, system: StorageSystem) -> None:
        buffer = bytearray(SIZE)
        await system.volume("v").read(memoryview(buffer), 0)
        assert bytes(buffer) == self.model.images(system.groups["g"].applied_seq)["v"], "not the image at the cut"


class SynchronousSecondary(Secondary):
    """The secondary of a synchronous pair: numbers of its own, and a role that changes in place."""

    numbered_here = True
    generation_after = OLD

    def append(self, group: Group, count: int) -> None:
        for sequence in range(group.last_seq + 1, group.last_seq + 1 + count):
            write = self.draw()
            self.model.record(sequence, write)
            kind = Kind.TRIM if write.data is None else Kind.WRITE
            data = memoryview(write.data or b"")
            origin = ORIGIN + sequence
            received = Record(kind, 0, OLD, 1, 5, write.length, origin, sequence * 10, 0, write.offset, 0, 0, data)
            assert stage_from_upstream(group, received) == sequence
        group.commit()

    def adopt(self, system: StorageSystem) -> None:
        super().adopt(system)
        group = system.groups["g"]
        received = self.cut if self.taken_over else group.last_seq
        assert group.last_origin == (ORIGIN + received if received else 0)

    async def change_role(self, system: StorageSystem, group: Group) -> None:
        await group.make_durable()
        self.apply(group, group.last_seq)
        self.cut = group.last_seq
        await system.change_role(group, Role.PRIMARY)


@pytest.mark.parametrize("kind", [Secondary, SynchronousSecondary])
@pytest.mark.parametrize("loss", list(Loss), ids=lambda loss: loss.value)
@pytest.mark.parametrize("seed", range(2))
def test_takeover_interrupted_at_any_call_happens_wholly_or_not_at_all(
    seed: int, loss: Loss, kind: type[Secondary]
) -> None:
    call = 1
    interrupted = True
    while interrupted:
        case = kind(seed)
        try:
            case.machine.run(case.create)
            case.machine.run(case.receive)
            case.machine.crash(Loss.KILL)
            interrupted = not case.machine.run(case.take_over, cut_in=call)
            case.machine.crash(loss)
            case.machine.run(case.check)
            case.machine.run(case.take_over)
            case.machine.crash(loss)
            case.machine.run(case.check)
        except BaseException as error:
            error.add_note(f"seed {seed}, {loss}, crash at call {call}")
            raise
        finally:
            case.machine.destroy()
        call += 1
    assert call > 30


@pytest.mark.parametrize("kind", [Secondary, SynchronousSecondary])
@pytest.mark.parametrize("batch", range(4))
def test_secondary_keeps_what_it_confirmed(batch: int, kind: type[Secondary]) -> None:
    for seed in range(batch * 100, batch * 100 + 100):
        case = kind(seed)
        try:
            case.machine.run(case.create)
            for _ in range(case.rng.randint(1, 4)):
                case.machine.run(check_and_receive(case), cut_in=case.rng.choice((None, case.rng.randint(20, 150))))
                case.machine.crash(case.rng.choice(list(Loss)))
            case.machine.run(case.check)
            case.machine.run(case.take_over)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            case.machine.destroy()


def check_and_receive(case: Secondary) -> Callable[[StorageSystem], Awaitable[None]]:
    """A life that checks what was recovered and goes on receiving."""

    async def life(system: StorageSystem) -> None:
        await case.check(system)
        await case.receive(system)

    return life
