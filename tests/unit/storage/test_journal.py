"""Journal: ranges that peers read back, from memory and from segments."""

from __future__ import annotations

import asyncio
import random

import pytest
from crc32c import crc32c

from controllerd.model.records import Kind, encode_header
from controllerd.storage.horizons import Horizon
from controllerd.storage.journal import Journal
from controllerd.storage.journal_ranges import JournalRange
from controllerd.storage.pending import Entry
from controllerd.storage.system import StorageSystem
from tests.records import iterate_untrusted
from tests.simulation.disk import SimulatedDisk
from tests.unit.storage.helpers import live, make_machine

SEGMENT = 8 << 20


def make_journal() -> tuple[Journal, SimulatedDisk]:
    disk = SimulatedDisk(random.Random(1))
    disk.make_directory("/j")
    journal = Journal(disk.boot(), "/j", group_id=1, segment_bytes=SEGMENT, segments_max=4, tail_bytes=4 << 20)
    journal.begin_segment()
    return journal, disk


def test_files_of_a_journal_whose_segments_became_larger_do_not_exceed_its_limit() -> None:
    journal, disk = make_journal()
    journal.prepare(3 * SEGMENT)
    journal.close()
    files = disk.boot()
    names = files.names("/j")
    assert len(names) == 4
    larger = Journal(files, "/j", group_id=1, segment_bytes=2 * SEGMENT, segments_max=2, tail_bytes=4 << 20)
    larger.adopt([], [files.open(f"/j/{name}") for name in names], 0, 2)
    assert sum(files.open(f"/j/{name}").size() for name in files.names("/j")) == 4 * SEGMENT
    assert len(larger.spares) == 2


def ticks_and_writes(first: int, lengths: list[int]) -> tuple[list[bytes], int]:
    buffers: list[bytes] = []
    for sequence, length in enumerate(lengths, first):
        data = random.Random(sequence).randbytes(length)
        kind = Kind.WRITE if length else Kind.TICK
        data_crc = crc32c(data) if length else 0
        header = encode_header(
            kind, sequence=sequence, time=sequence, generation=1, incarnation=1, length=length, data_crc=data_crc
        )
        buffers.append(header)
        buffers.append(data)
    return buffers, sum(map(len, buffers))


def numbers(found: JournalRange | None) -> list[int]:
    assert found is not None
    raw = b"".join(found.buffers)
    assert len(raw) == found.nbytes
    return [record.sequence for _, record in iterate_untrusted(memoryview(raw))]


@pytest.mark.parametrize("keep_tail", [False, True])
def test_any_record_of_a_large_append_can_be_read_back(keep_tail: bool) -> None:
    journal, _ = make_journal()
    journal.keep_tail = keep_tail
    lengths = [65536] * 150 + [0, 1, 4096] * 20
    buffers, size = ticks_and_writes(1, lengths)
    journal.append(list(buffers), size, 1, len(lengths))
    for first in range(1, len(lengths) + 1):
        found = journal.read(first, 100_000)
        assert found is not None
        assert numbers(found) == list(range(first, found.last + 1))
        assert found.first == first
    assert journal.read(len(lengths) + 1, 1) is None


def test_note_of_a_secondary_is_in_no_range() -> None:
    machine = make_machine()

    async def scenario(system: StorageSystem) -> None:
        group = system.groups["g0"]
        group.set_retention("peer", 0)
        raw, _ = ticks_and_writes(1, [0, 0])
        group.append_received(b"".join(raw), [Entry(n, n, int(Kind.TICK), 0, 0, 0, 0, None) for n in (1, 2)])
        assert numbers(group.read_journal(1, 1 << 20)) == [1, 2]
        assert numbers(group.read_journal(2, 1 << 20)) == [2]
        await asyncio.sleep(0)

    live(machine, scenario)
    machine.destroy()


def test_waiter_that_waits_again_inside_its_call_is_called_once() -> None:
    horizon = Horizon()
    calls: list[str] = []

    def first(_: object) -> None:
        calls.append("first")
        horizon.when(2, lambda _: calls.append("inner"))

    horizon.when(1, first)
    horizon.when(3, lambda _: calls.append("third"))
    horizon.advance(3)
    horizon.advance(4)
    assert calls == ["first", "inner", "third"]
