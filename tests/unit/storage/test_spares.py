"""Spare segments are made before they are needed, and what is written ahead of records never touches one."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from controllerd.storage.io import SystemFiles
from controllerd.storage.journal import WRITE_AHEAD, Journal
from controllerd.storage.journal_format import DATA_START
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.records import iterate_untrusted
from tests.simulation.disk import Loss, SimulatedDisk
from tests.unit.storage.helpers import SEGMENT, content, failing, live, make_machine, put
from tests.unit.storage.test_journal import ticks_and_writes

PIECE = 256 << 10


def _write_a_segment(system: StorageSystem, *, part: int = 1) -> None:
    for number in range(SEGMENT // PIECE // part):
        put(system, "v0", number % 4 * PIECE, bytes([number]) * PIECE)


def test_spare_is_made_before_the_segment_is_full() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        journal = system.groups["g0"].journal
        assert not journal.spares
        _write_a_segment(system, part=4)
        await asyncio.sleep(1.5)
        (spare,) = journal.spares
        assert spare.size() == SEGMENT
        assert bytes(machine.disk.content(spare.path).medium) == bytes(SEGMENT), "filled, and synced"
        _write_a_segment(system)
        assert journal.chain[-1].file is spare
        assert journal.chain[-1].written == SEGMENT

    live(machine, scenario)


def test_spare_that_cannot_be_made_is_not_counted_and_tried_again() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        journal = system.groups["g0"].journal
        before = len(journal.chain)
        _write_a_segment(system, part=4)
        machine.disk.fault = failing(".seg", "allocate")
        await asyncio.sleep(1.5)
        assert not journal.spares
        machine.disk.fault = None
        await asyncio.sleep(1.5)
        assert len(journal.spares) == 1
        files = system._files.names(journal.directory)
        assert len(files) == before + 1

    live(machine, scenario)


def test_group_that_only_rests_gets_no_spare() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        put(system, "v0", 0, b"a" * 4096)
        await asyncio.sleep(30)
        assert len(system.groups["g0"].journal.spares) <= 1, "a recycled one at most"
        assert system.groups["g0"].journal.next_ordinal <= 4

    live(machine, scenario)


async def test_group_deleted_while_a_spare_is_made_leaves_no_file(tmp_path: Path) -> None:
    making, go_on = threading.Event(), threading.Event()

    class SlowFiles(SystemFiles):
        def sync_directory(self, directory: str) -> None:
            super().sync_directory(directory)
            if "/journals/" in directory and threading.current_thread() is not threading.main_thread():
                making.set()
                assert go_on.wait(20)

    system = StorageSystem(
        StorageSettings(str(tmp_path), journal_bytes=4 * SEGMENT, segment_bytes=SEGMENT, max_request_bytes=1 << 20),
        SlowFiles(threads=4),
        clock=lambda: 1,
        report=lambda _event, _facts: None,
        rng=random.Random(1),
    )
    await system.start()
    system.create_disk("d", f"{tmp_path}/d.img", 8 << 20)
    system.create_pool("p", ["d"])
    group = system.create_group("g0")
    volume, _ = system.create_volume("v0", 1 << 20, pool="p", group="g0")
    for _ in range(SEGMENT // PIECE // 4):
        group.stage_write(volume, 0, memoryview(bytes(PIECE)))
        group.commit()
    assert await asyncio.to_thread(making.wait, 20)
    await system.delete_volume("v0")
    deleting = asyncio.create_task(system.delete_group("g0"))
    await asyncio.sleep(0.1)
    assert not deleting.done(), "the file is being made"
    go_on.set()
    await deleting
    assert not list(Path(group.journal.directory).glob("*.seg"))
    await system.stop()


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.one_of(st.none(), st.lists(st.sampled_from([0, 1, 4096, 60_000]), min_size=1, max_size=6))),
    seed=st.integers(0, 99),
)
def test_zeros_written_ahead_never_touch_a_record(steps: list[list[int] | None], seed: int) -> None:
    """None: what the beginning of a sync does first."""
    disk = SimulatedDisk(random.Random(seed))
    disk.make_directory("/j")
    journal = Journal(disk.boot(), "/j", group_id=1, segment_bytes=SEGMENT, segments_max=4, tail_bytes=0)
    journal.begin_segment()
    written: list[bytes] = []
    number = 0
    for step in steps:
        if step is None:
            journal._write_ahead()
            current = journal.chain[-1]
            assert current.written >= min(current.end + WRITE_AHEAD // 2, SEGMENT)
        else:
            buffers, size = ticks_and_writes(number + 1, step)
            journal.append(list(buffers), size, number + 1, number + len(step))
            written += buffers
            number += len(step)
    segment = journal.chain[-1]
    raw = bytearray(segment.end - DATA_START)
    segment.file.read_now(memoryview(raw), DATA_START)
    assert bytes(raw) == b"".join(written)
    assert [record.sequence for _, record in iterate_untrusted(memoryview(raw))] == list(range(1, number + 1))


def test_content_after_many_segments_is_what_was_written() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        for _ in range(3):
            _write_a_segment(system)
            await system.groups["g0"].make_durable()
            await asyncio.sleep(1.1)
        await system.checkpointer.checkpoint()

    async def after(system: StorageSystem) -> None:
        last = SEGMENT // PIECE
        expected = b"".join(bytes([last - 4 + number]) * PIECE for number in range(4))
        assert await content(system, "v0") == expected

    live(machine, scenario)
    machine.crash(Loss.SECTORS)
    live(machine, after)
