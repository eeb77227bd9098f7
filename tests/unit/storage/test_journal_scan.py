"""Recovery scan: where a journal ends, what proves that it once went on, and that no damage becomes data (I8, I10)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from crc32c import crc32c

from controllerd.model.errors import Corrupt
from controllerd.model.records import HEADER_SIZE, Kind, Record, encode_header
from controllerd.storage.journal import Segment
from controllerd.storage.journal_format import DATA_START, SEGMENT_HEADER, SegmentHeader
from controllerd.storage.journal_scan import Numbering, Scan, scan_journal
from tests.simulation.disk import SimulatedDisk

GROUP, GENERATION = 5, 3
DATA = 40
SIZE = HEADER_SIZE + DATA
"""Bytes of one record of these tests."""


def content(sequence: int, incarnation: int = 1) -> bytes:
    return random.Random(sequence * 100 + incarnation).randbytes(DATA)


def record(sequence: int, *, durable: int = 0, incarnation: int = 1, generation: int = GENERATION) -> bytes:
    data = content(sequence, incarnation)
    return (
        encode_header(
            Kind.WRITE, sequence=sequence, time=sequence, generation=generation, incarnation=incarnation,
            durable=durable, volume=1, length=DATA, data_crc=crc32c(data),
        )
        + data
    )  # fmt: skip


def run(first: int, last: int, **fields: int) -> bytes:
    return b"".join(record(sequence, **fields) for sequence in range(first, last + 1))


def note(sequence: int, durable: int) -> bytes:
    return encode_header(Kind.NOTE, sequence=sequence, time=0, generation=0, incarnation=0, durable=durable)


@dataclass
class Directory:
    """A journal directory, and what the last scan handed on."""

    disk: SimulatedDisk = field(default_factory=lambda: SimulatedDisk(random.Random(1)))
    records: list[Record] = field(default_factory=list)
    segments: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk.make_directory("/j")
        self.files = self.disk.boot()

    def segment(
        self,
        ordinal: int,
        first: int,
        content: bytes,
        *,
        durable: int = 0,
        incarnation: int = 1,
        group: int = GROUP,
        name: str = "",
    ) -> str:
        """Write a segment file; returns its path."""
        path = f"/j/{name or f'{ordinal:08d}'}.seg"
        file = self.files.open(path, create=True)
        size = DATA_START + 20 * SIZE
        file.allocate(size)
        file.write(SegmentHeader(group, ordinal, first, durable, incarnation, size).encode(), 0)
        file.write(content, DATA_START)
        return path

    def damage(self, path: str, offset: int, value: int = 0xFF) -> None:
        self.disk.content(path).seen[offset] ^= value

    def scan(
        self,
        *,
        first: int = 1,
        durable: int = 0,
        start_ordinal: int = 1,
        incarnations: Sequence[tuple[int, int]] = ((1, 1),),
        own: bool = True,
    ) -> Scan:
        self.records.clear()
        self.segments.clear()

        def segment(found: Segment, proven: int) -> None:
            self.segments.append((found.ordinal, proven))

        steps = scan_journal(
            self.files,
            "/j",
            group_id=GROUP,
            start_ordinal=start_ordinal,
            first=first,
            durable=durable,
            intact=False,
            numbering=Numbering(incarnations, GENERATION, own),
            on_segment=segment,
            on_record=self.records.append,
            opened=ExitStack(),
        )
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                found: Scan = ended.value
                return found

    def found(self) -> list[int]:
        """Numbers of the records that were handed on, each with the content it was written with."""
        for each in self.records:
            assert bytes(each.data) == content(each.sequence, each.incarnation)
        return [each.sequence for each in self.records]


@pytest.fixture
def journal() -> Directory:
    return Directory()


# ---- where it ends ------------------------------------------------------------------


def test_whole_journal_over_segments(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 4))
    journal.segment(2, 5, run(5, 7), durable=4)
    scan = journal.scan(first=3)
    assert journal.found() == [3, 4, 5, 6, 7]
    assert (scan.last, scan.next_ordinal, len(scan.chain), scan.spares) == (7, 3, 2, [])
    assert journal.segments == [(1, 0), (2, 4)], "what is known to be durable before records are handed on"
    assert [(each.first, each.last, each.end) for each in scan.chain] == [
        (1, 4, DATA_START + 4 * SIZE),
        (5, 7, DATA_START + 3 * SIZE),
    ]


@pytest.mark.parametrize("cut", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, SIZE - 1])
@pytest.mark.parametrize("rest", ["zeros", "garbage", "older records"])
def test_torn_or_missing_tail_is_the_end(journal: Directory, cut: int, rest: str) -> None:
    behind = {
        "zeros": b"",
        "garbage": random.Random(cut).randbytes(3 * SIZE - cut),
        "older records": run(1, 3, generation=GENERATION - 1)[cut:],
    }[rest]
    journal.segment(1, 1, run(1, 5, durable=1) + record(6, durable=1)[:cut] + behind)
    assert journal.scan().last == 5
    assert journal.found() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("proof", ["catalogue", "record", "note", "segment"])
def test_end_before_what_is_known_to_be_durable_is_corruption(journal: Directory, proof: str) -> None:
    records = run(1, 2) + (record(3, durable=4) if proof == "record" else record(3))
    if proof == "note":
        records += note(3, 4)
    journal.segment(1, 1, records + bytes(SIZE) + record(5))
    if proof == "segment":
        journal.segment(2, 9, b"", durable=8)
    with pytest.raises(Corrupt, match="record 4 is damaged"):
        journal.scan(durable=4 if proof == "catalogue" else 0)
    assert journal.found() == [1, 2, 3]


def test_records_behind_the_hole_that_prove_nothing_are_not_taken(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 2) + bytes(SIZE) + run(4, 6, durable=2))
    assert journal.scan().last == 2, "after a power cut pages survive in any order"
    assert journal.found() == [1, 2]


def test_records_behind_the_hole_that_were_written_after_a_sync_hold_the_group(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 2) + bytes(SIZE) + record(4, durable=2) + record(5, durable=3))
    with pytest.raises(Corrupt, match="record 3 is damaged; the journal was durable through 3"):
        journal.scan()


def test_repeated_number_is_the_end(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3) + run(3, 5))
    assert journal.scan().last == 3


# ---- segments -------------------------------------------------------------------------


def test_missing_segment_in_the_middle_is_corruption_when_later_ones_prove_it(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    journal.segment(3, 7, run(7, 9), durable=6)
    with pytest.raises(Corrupt, match="record 4 is damaged"):
        journal.scan()
    assert journal.found() == [1, 2, 3]


def test_segment_behind_a_hole_that_proves_nothing_is_a_spare(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    path = journal.segment(3, 7, run(7, 9, durable=3), durable=3)
    scan = journal.scan()
    assert (scan.last, [file.path for file in scan.spares], scan.next_ordinal) == (3, [path], 4)


def test_missing_first_segment_is_corruption(journal: Directory) -> None:
    journal.segment(2, 5, run(5, 6))
    with pytest.raises(Corrupt, match="no journal segment holds record 1"):
        journal.scan()


def test_journal_that_ends_before_its_checkpoint_is_corruption(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    with pytest.raises(Corrupt, match="ends at record 3, its checkpoint is at 8"):
        journal.scan(first=9)


def test_same_segment_in_two_files_counts_once(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    copy = journal.segment(1, 1, run(1, 3), name="copy")
    scan = journal.scan()
    assert journal.found() == [1, 2, 3]
    assert [file.path for file in scan.spares] == [copy]


def test_segment_of_another_group_is_not_read(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    stranger = journal.segment(2, 4, run(4, 6, durable=6), group=GROUP + 1, durable=6)
    scan = journal.scan()
    assert scan.last == 3
    assert [file.path for file in scan.spares] == [stranger]


def test_segment_older_than_the_journal_is_a_spare(journal: Directory) -> None:
    old = journal.segment(1, 1, run(1, 3), durable=99)
    journal.segment(2, 1, run(1, 2))
    scan = journal.scan(start_ordinal=2)
    assert (scan.last, [file.path for file in scan.spares]) == (2, [old])


def test_other_files_are_left_alone(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    journal.files.open("/j/notes.txt", create=True)
    assert journal.scan().spares == []


# ---- incarnations ------------------------------------------------------------------------


def test_old_run_behind_the_end_is_not_taken_for_the_new_one(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 8, durable=2))  # power loss: 1..4 were found, 5..8 came to light later
    journal.segment(2, 5, run(5, 6, incarnation=2, durable=4), durable=4, incarnation=2)
    scan = journal.scan(incarnations=((1, 1), (5, 2)))
    assert scan.last == 6
    assert [(each.sequence, each.incarnation) for each in journal.records] == [
        (1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)
    ]  # fmt: skip
    journal.found()


def test_segment_of_the_old_run_is_not_the_next_one(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 4))
    old = journal.segment(2, 5, run(5, 9, durable=8), durable=8)
    journal.segment(3, 5, run(5, 6, incarnation=2), incarnation=2)
    scan = journal.scan(incarnations=((1, 1), (5, 2)))
    assert (scan.last, [each.ordinal for each in scan.chain]) == (6, [1, 3])
    assert [file.path for file in scan.spares] == [old]


def test_record_of_another_generation_is_the_end(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3) + run(4, 5, generation=GENERATION + 1, durable=5))
    assert journal.scan().last == 3


def test_fields_of_a_secondarys_records_speak_of_the_primarys_journal(journal: Directory) -> None:
    received = run(1, 3, durable=99, generation=77, incarnation=4)
    journal.segment(1, 1, note(0, 0) + received + note(3, 2))
    assert journal.scan(own=False).last == 3
    journal.segment(1, 1, note(0, 0) + received + note(3, 4))
    with pytest.raises(Corrupt, match="durable through 4"):
        journal.scan(own=False)


def test_note_from_before_the_records_it_lies_behind_is_the_end(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3) + note(9, 8) + run(4, 5))
    assert journal.scan().last == 3


# ---- damage at every byte -------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["primary", "secondary"])
@pytest.mark.parametrize("value", [0x01, 0x80, 0xFF])
def test_every_damaged_byte_of_a_segment_ends_the_journal_or_holds_the_group(own: bool, value: int) -> None:
    journal = Directory()
    pieces = [record(sequence, durable=max(0, sequence - 2)) for sequence in range(1, 7)]
    notes = [] if own else [note(sequence, sequence - 1) for sequence in (2, 4)]
    if not own:  # a NOTE begins each batch that was received
        pieces[4:4], pieces[2:2] = notes[1:], notes[:1]
    path = journal.segment(1, 1, b"".join(pieces))
    assert journal.scan(own=own).last == 6
    position = DATA_START
    starts = []
    for piece in pieces:
        starts.append(position)
        position += len(piece)
    for offset in [*range(SEGMENT_HEADER.size), *range(DATA_START, position + 8)]:
        journal.damage(path, offset, value)
        try:
            last = journal.scan(own=own).last
        except Corrupt:
            pass
        else:
            intact = [start for start in [*starts[1:], position] if start <= offset]
            expected = 6 if offset >= position else sum(1 for piece in pieces[: len(intact)] if len(piece) == SIZE)
            assert last == expected, f"byte {offset}: the records before the damage, and none behind it"
            assert offset >= DATA_START, f"byte {offset} of the segment's header"
        assert journal.found() == list(range(1, len(journal.records) + 1))
        journal.damage(path, offset, value)
    assert journal.scan(own=own).last == 6


def test_damage_below_what_later_records_prove_always_holds_the_group(journal: Directory) -> None:
    path = journal.segment(1, 1, run(1, 5) + record(6, durable=5))
    for offset in range(DATA_START, DATA_START + 5 * SIZE):
        journal.damage(path, offset)
        with pytest.raises(Corrupt):
            journal.scan()
        journal.damage(path, offset)
    assert journal.scan().last == 6


def test_damaged_header_of_the_newest_segment_does_not_hide_what_was_durable(journal: Directory) -> None:
    journal.segment(1, 1, run(1, 3))
    path = journal.segment(2, 4, run(4, 6, durable=3) + record(7, durable=6))
    assert journal.scan().last == 7
    for offset in range(SEGMENT_HEADER.size):
        journal.damage(path, offset)
        with pytest.raises(Corrupt, match="record 4 is damaged; the journal was durable through 6"):
            journal.scan()
        journal.damage(path, offset)
