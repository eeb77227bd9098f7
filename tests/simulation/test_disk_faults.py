"""Bit rot, misdirected and phantom writes at rest: what the storage layer promises about them, and what it does not.

Journal: whatever was once known to be durable is either read as it was written or holds the group; damage never becomes
data, for hosts or for peers (I8, I10). Data disks carry no checksums: a disk that answers with something else than was
written is believed (I10: "detected by checksum where enabled"), but it is that place alone, and redoing the journal
after a crash puts right what lies behind the last checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from controllerd.model.errors import Corrupt
from controllerd.model.records import HEADER_SIZE
from controllerd.storage.system import StorageSystem
from tests.simulation.disk import Loss
from tests.simulation.storage_machine import DATA, Machine
from tests.unit.storage.helpers import content, live, make_machine, put

BLOCK = 4096
RECORD = HEADER_SIZE + BLOCK
DISK = f"{DATA}/disks/d.img"


def block(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


def segment_of(system: StorageSystem) -> tuple[str, int]:
    """Path of the newest segment of group g0, and where its next record goes."""
    segment = system.groups["g0"].journal.chain[-1]
    return segment.file.path, segment.end


def written(machine: Machine, fault: Callable[[str], None] | None = None) -> tuple[str, int]:
    """Write eight blocks, each flushed; ``fault`` meets the journal write of the fourth.

    Returns the segment and the position of the first.
    """
    place: list[tuple[str, int]] = []

    async def life(system: StorageSystem) -> None:
        place.append(segment_of(system))
        for number in range(8):
            if number == 3 and fault is not None:
                fault(segment_of(system)[0])
            put(system, "v0", number * BLOCK, block(number))
            put(system, "v1", number * BLOCK, block(100 + number))
            for group in system.groups.values():
                await group.make_durable()

    live(machine, life)
    return place[0]


async def held(system: StorageSystem) -> None:
    """g0 says why and gives nothing; g1 goes on."""
    group = system.groups["g0"]
    assert isinstance(group.read_error, Corrupt)
    assert "damaged" in (group.describe_fault() or "")
    assert not system.volume("v0").visible
    with pytest.raises(Corrupt):
        await content(system, "v0")
    with pytest.raises(Corrupt):
        put(system, "v0", 0, block(1))
    assert (await content(system, "v1"))[: 8 * BLOCK] == b"".join(block(100 + number) for number in range(8))
    put(system, "v1", 0, block(1))


@pytest.mark.parametrize("number", [0, 3, 6])
@pytest.mark.parametrize("within", [0, 30, HEADER_SIZE, RECORD - 1])
@pytest.mark.parametrize("loss", [Loss.KILL, Loss.NOTHING])
def test_rot_in_a_journal_record_holds_its_group_and_no_other(number: int, within: int, loss: Loss) -> None:
    machine = make_machine(groups=2)
    path, start = written(machine)
    machine.crash(loss)
    machine.disk.rot(path, start + number * RECORD + within, bit=number)
    live(machine, held)
    machine.destroy()


@pytest.mark.parametrize("kind", ["phantom", "misdirected"])
def test_journal_write_that_did_not_land_where_it_should_is_no_silent_loss(kind: str) -> None:
    machine = make_machine(groups=2)

    def fault(path: str) -> None:
        if kind == "phantom":
            machine.disk.phantom.add(path)
        else:
            machine.disk.misdirect[path] = 20 * RECORD

    written(machine, fault)
    machine.crash(Loss.NOTHING)
    live(machine, held)
    machine.destroy()


def test_peer_gets_an_error_for_rot_and_never_the_damaged_record() -> None:
    machine = make_machine()

    async def life(system: StorageSystem) -> None:
        group = system.groups["g0"]
        path, start = segment_of(system)
        first = put(system, "v0", 0, block(0))
        put(system, "v0", BLOCK, block(1))
        group.set_retention("peer", first - 1)
        machine.disk.rot(path, start + RECORD + HEADER_SIZE + 7)
        with pytest.raises(Corrupt, match=f"record {first + 1} cannot be read back"):
            group.read_journal(first, 1 << 20)
        with pytest.raises(Corrupt):
            group.read_journal(first + 1, 1 << 20)

    live(machine, life)
    machine.destroy()


def test_rot_behind_the_end_of_the_journal_is_nothing() -> None:
    machine = make_machine(groups=2)
    path, start = written(machine)
    machine.crash(Loss.NOTHING)
    machine.disk.rot(path, start + 8 * RECORD + 100)

    async def after(system: StorageSystem) -> None:
        assert (await content(system, "v0"))[: 8 * BLOCK] == b"".join(map(block, range(8)))

    live(machine, after)
    machine.destroy()


# ---- data disks ---------------------------------------------------------------------------


def test_rot_on_a_data_disk_is_believed_and_stays_where_it_is() -> None:
    machine = make_machine()

    async def life(system: StorageSystem) -> None:
        for number in range(4):
            put(system, "v0", number * BLOCK, block(number))
        await system.checkpointer.checkpoint()
        disk, offset = system.pools["p"].locate(system.volume("v0").map[0])
        machine.disk.rot(disk.path, offset + BLOCK + 5)
        expected = bytearray(b"".join(map(block, range(4))))
        expected[BLOCK + 5] ^= 1
        assert (await content(system, "v0"))[: 4 * BLOCK] == expected

    live(machine, life)
    machine.destroy()


@pytest.mark.parametrize("fault", ["phantom", "misdirected"])
def test_disk_write_that_was_lost_is_redone_from_the_journal_until_the_checkpoint(fault: str) -> None:
    machine = make_machine()

    async def life(system: StorageSystem) -> None:
        put(system, "v0", 0, block(0))
        await system.checkpointer.checkpoint()
        put(system, "v0", 0, block(1))
        if fault == "phantom":
            machine.disk.phantom.add(DISK)
        else:
            machine.disk.misdirect[DISK] = 64 << 10
        await system.destagers["g0"].destage()
        assert (await content(system, "v0"))[:BLOCK] == block(0), "nothing tells what the disk should hold"

    async def after(system: StorageSystem) -> None:
        whole = await content(system, "v0")
        assert whole[:BLOCK] == block(1)
        assert not any(whole[BLOCK:]), "nor is what went astray seen in a place that was never written"

    live(machine, life)
    machine.crash(Loss.KILL)
    live(machine, after)
    machine.destroy()
