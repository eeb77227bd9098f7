"""Small workloads on the real storage system, each crashed at every call, with everything that can be left.

Owns: the alphabet of operations, running a workload up to a crash, and judging each recovery.
Never: draws by chance: the same cases, all of them, every time.

A crash in an operation that is not the last is that of a shorter workload, and is not tried
again. Two crashes that leave the same bytes, with the same promises made, are one case.

Source: issue "bounded exhaustive work"; F1-F6; invariants I1, I4, I8, I20.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.remains import after_kill, after_power_loss
from tests.simulation.storage_machine import DATA, Machine
from tests.simulation.storage_model import GroupModel, Write

REGION: Final = 4096
SIZE: Final = 2 * REGION
SEGMENT: Final = 8192
PIECE: Final = 2048
"""For `journal.PIECE_MAX`: three writes fill a segment."""
LIMIT: Final = 20_000
"""Most machines that one crash may leave."""

Operation = str
OPERATIONS: Final[dict[Operation, str]] = {
    "w": "write one sector",
    "x": "write two sectors across two regions",
    "t": "trim the first region",
    "f": "flush",
    "c": "destage and take a checkpoint",
}


class _Whole(random.Random):
    """Chance that leaves the interrupted write whole; `remains` takes parts of it away."""

    def randint(self, a: int, b: int) -> int:
        return b


@dataclass
class Promises:
    """What hosts were told."""

    written: int = 0
    acknowledged: int = 0
    flushed: int = 0


@dataclass
class SmallCase:
    """One workload. ``tried``: what was judged already, shared by all workloads."""

    workload: Sequence[Operation]
    tried: set[bytes] = field(default_factory=set)
    recoveries: int = 0

    def run(self) -> None:
        """Crash the last operation at every call, and at its end; judge every machine that can be left.

        Raises:
            AssertionError: a promise was broken; the note says where.
        """
        call, interrupted = 1, True
        while interrupted:
            machine, model, promises, interrupted = self._up_to(call)
            try:
                for how, left in _left(machine):
                    try:
                        self._judge(left, model, promises, killed=how == "kill")
                    except BaseException as error:
                        error.add_note(f"workload {''.join(self.workload)}, crash at call {call} of it, {how}")
                        raise
                    finally:
                        left.destroy()
            finally:
                machine.destroy()
            call += 1

    # ---- until the crash ---------------------------------------------------------

    def _up_to(self, call: int) -> tuple[Machine, GroupModel, Promises, bool]:
        """Run up to the call of the last operation; True if the operation makes so many calls."""
        machine = Machine.make(_Whole(1), settings())
        model, promises = GroupModel({"v": SIZE}), Promises()

        async def life(system: StorageSystem) -> None:
            system.create_disk("d", f"{DATA}/disks/d.img", 4 * REGION)
            system.create_pool("p", ["d"])
            system.create_group("g")
            system.groups["g"].journal.prepare(SEGMENT)  # a spare: its size and name are among what a crash may lose
            system.create_volume("v", SIZE, pool="p", group="g")
            for operation in self.workload[:-1]:
                await self._do(system, operation, model, promises)
            machine.disk.cut_in = call
            await self._do(system, self.workload[-1], model, promises)

        return machine, model, promises, not machine.run(life)

    async def _do(self, system: StorageSystem, operation: Operation, model: GroupModel, promises: Promises) -> None:
        group, volume = system.groups["g"], system.volume("v")
        sequence = len(model.writes) + 1
        if operation in "wx":
            offset, length = (512, 512) if operation == "w" else (REGION - 512, 1024)
            data = bytes([sequence]) * length
            model.record(group.stage_write(volume, offset, memoryview(data)), Write("v", offset, length, data))
        elif operation == "t":
            model.record(group.stage_zeroes(volume, 0, REGION, trim=True), Write("v", 0, REGION, None))
        if operation in "wxt":
            promises.written = sequence
            group.commit()
            group.when_complete(sequence, lambda error: _told(promises, "acknowledged", sequence, error))
        elif operation == "f":
            await group.make_durable()
            promises.flushed = promises.acknowledged
        else:
            await system.checkpointer.checkpoint()

    # ---- after it ------------------------------------------------------------------

    def _judge(self, left: Machine, model: GroupModel, promises: Promises, *, killed: bool) -> None:
        promised = promises.acknowledged if killed else promises.flushed
        state = fingerprint(left, promised, promises.written, left.boots)
        if state in self.tried:
            return
        self.tried.add(state)
        found: list[tuple[int, bytes]] = []
        for _ in range(2):  # and the second recovery finds the same (I20)
            self.recoveries += 1
            assert left.run(lambda system: _look(system, found))
            left.crash(Loss.NOTHING)
        (last, image), again = found
        assert promised <= last <= promises.written, f"recovered {last}, promised {promised} of {promises.written}"
        assert image == model.images(last)["v"], f"not the first {last} writes"
        assert again == (last, image), "a second recovery found something else"


def settings() -> StorageSettings:
    """No background work: what happens is what the workload says."""
    return StorageSettings(
        DATA,
        journal_bytes=4 * SEGMENT,
        segment_bytes=SEGMENT,
        region_bytes=REGION,
        checkpoint_interval_s=1e9,
        destage_age_s=1e9,
        max_request_bytes=1024,
    )


def _left(machine: Machine) -> Iterator[tuple[str, Machine]]:
    for left in after_kill(machine, machine.disk.interrupted):
        yield "kill", left
    for left in after_power_loss(machine, LIMIT):
        yield "power", left


def _told(promises: Promises, what: str, sequence: int, error: object) -> None:
    assert error is None, error
    setattr(promises, what, sequence)


async def _look(system: StorageSystem, found: list[tuple[int, bytes]]) -> None:
    group = system.groups["g"]
    assert group.describe_fault() is None, group.describe_fault()
    buffer = bytearray(SIZE)
    await system.volume("v").read(memoryview(buffer), 0)
    found.append((group.last_seq, bytes(buffer)))
    await asyncio.sleep(0)


def fingerprint(machine: Machine, *promises: int) -> bytes:
    """Return a hash of all that a machine holds, and of what it must keep."""
    summary = hashlib.blake2b(repr(promises).encode())
    for path, directory in sorted(machine.disk.directories.items()):
        for name, content in sorted(directory.seen.items()):
            summary.update(f"{path} {name} {len(content.seen)} ".encode())
            summary.update(content.seen)
            summary.update(content.medium)
    assert machine.catalogue is not None
    summary.update(repr(machine.catalogue.rows()).encode())
    return summary.digest()
