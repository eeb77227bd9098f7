"""Bits flip in a journal at rest (F15): what was durable is missed and reported, never skipped or shown wrong (I8)."""

from __future__ import annotations

import dataclasses
import random

import pytest

from controllerd.model.errors import RemoteCopyError
from controllerd.model.records import HEADER_SIZE
from controllerd.storage import journal
from controllerd.storage.journal_format import DATA_START
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume
from tests.simulation.disk import Loss
from tests.simulation.remains import after_kill
from tests.simulation.small_case import PIECE, REGION, SIZE, settings
from tests.simulation.storage_machine import DATA, Machine

WRITE = 512
RECORD = HEADER_SIZE + WRITE
SEGMENT = f"{DATA}/journals/000001/00000001.seg"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PIECE_MAX", PIECE)


def _make_volume(system: StorageSystem) -> Volume:
    system.create_disk("d", f"{DATA}/disks/d.img", 4 * REGION)
    system.create_pool("p", ["d"])
    system.create_group("g")
    volume, _ = system.create_volume("v", SIZE, pool="p", group="g")
    return volume


async def _write_and_flush(system: StorageSystem) -> None:
    """Records 1 and 2 are durable, and 2 and 3 say so of what is before them; 3 is not."""
    volume = _make_volume(system)
    group = volume.group
    for number in (1, 2, 3):
        group.stage_write(volume, number * WRITE, memoryview(bytes([number]) * WRITE))
        group.commit()
        if number < 3:
            await group.make_durable()


@pytest.mark.parametrize("record", [1, 2, 3])
def test_every_byte_of_a_record(record: int) -> None:
    machine = Machine.make(random.Random(1), settings())
    assert machine.run(_write_and_flush)
    start = DATA_START + (record - 1) * RECORD
    for byte in range(start, start + RECORD):
        (left,) = after_kill(machine)
        left.disk.rot(SEGMENT, byte, bit=byte % 8)

        async def look(system: StorageSystem, byte: int = byte) -> None:
            group = system.groups["g"]
            if record < 3:
                assert group.describe_fault() is not None, f"byte {byte} was flipped, and nobody noticed"
                with pytest.raises(RemoteCopyError):
                    await system.volume("v").read(memoryview(bytearray(SIZE)), 0)
                assert not group.accepting or group.refusal is not None
            else:  # the last record was never promised to be durable: it is gone, and no more
                assert group.describe_fault() is None
                assert group.last_seq == 2

        try:
            assert left.run(look)
            left.crash(Loss.KILL)
        finally:
            left.destroy()
    machine.destroy()


@pytest.mark.parametrize("loss", [Loss.KILL, Loss.ALL], ids=["same run of the machine", "another"])
def test_damage_that_a_kill_cannot_have_made_stays_an_alarm(loss: Loss) -> None:
    """Only the run that knows that nothing can be missing can tell; the next one took it for the end of the journal."""
    machine = Machine.make(random.Random(1), dataclasses.replace(settings(), boot="1"))
    assert machine.run(_write_three)
    machine.crash(Loss.KILL)
    machine.disk.rot(SEGMENT, DATA_START + RECORD, bit=0)

    async def held(system: StorageSystem) -> None:
        assert "record 2 is damaged" in (system.groups["g"].describe_fault() or "")
        await system.stop()

    assert machine.run(held)
    machine.crash(loss)
    if loss is Loss.ALL:
        machine.settings = dataclasses.replace(machine.settings, boot="2")
    assert machine.run(held)
    machine.crash(Loss.KILL)
    machine.disk.rot(SEGMENT, DATA_START + RECORD, bit=0)  # as it was

    async def works(system: StorageSystem) -> None:
        assert system.groups["g"].describe_fault() is None
        assert system.groups["g"].last_seq == 3

    assert machine.run(works)
    machine.destroy()


async def _write_three(system: StorageSystem) -> None:
    """Records 1 to 3, and none says that one is durable."""
    volume = _make_volume(system)
    group = volume.group
    for number in (1, 2, 3):
        group.stage_write(volume, number * WRITE, memoryview(bytes([number]) * WRITE))
    group.commit()
    await group.make_durable()
