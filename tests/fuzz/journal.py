"""Any content of segment files: recovery takes a run of whole records as they were written, or holds the group.

The same files read twice give the same journal, and every file is either of the journal or a spare.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Generator
from typing import Final

from crc32c import crc32c

from controllerd.model.errors import Corrupt
from controllerd.model.records import HEADER_SIZE, Kind, Record, encode_header
from controllerd.storage.io import Files
from controllerd.storage.journal import Segment
from controllerd.storage.journal_format import DATA_START, SEGMENT_HEADER, SegmentHeader
from controllerd.storage.journal_scan import Numbering, Scan, scan_journal
from tests.fuzz.source import Source
from tests.simulation.disk import SimulatedDisk

_DIRECTORY: Final = "/j"
_GROUP: Final = 5
_GENERATION: Final = 3
_DATA: Final = 24
_SIZE: Final = DATA_START + 16 * (HEADER_SIZE + _DATA)
_RUNS: Final = (((1, 1),), ((1, 1), (4, 2)), ((1, 1), (3, 2), (6, 3)))
_SEQUENCES: Final = (1, 4, 7, 9, 0, (1 << 64) - 1)
_DURABLE: Final = (0, 1, 3, 8, (1 << 64) - 1)


def run(data: bytes) -> None:
    """Recover what ``data`` makes of a directory."""
    source = Source(data)
    disk = SimulatedDisk(random.Random(1))
    disk.make_directory(_DIRECTORY)
    files = disk.boot()
    numbering = Numbering(source.pick(_RUNS), _GENERATION, bool(source.number(1) % 4))
    for number in range(1, 2 + source.number(1) % 4):
        _write(files, f"{_DIRECTORY}/{number:08d}.seg", _segment(source, number))
    first, durable, start_ordinal = source.pick((1, 1, 1, 4, 12)), source.pick((0, 0, 2, 9)), source.pick((1, 1, 2))
    facts = (first, durable, start_ordinal, source.number(1) % 4 == 3)
    scanned, records, text = _scan(files, numbering, facts)
    again, same, same_text = _scan(files, numbering, facts)
    assert (records, text) == (same, same_text)
    for before, record in itertools.pairwise(records):
        assert record.sequence == before.sequence + 1
    for record in records:
        assert record.sequence >= first
        assert record.kind != Kind.NOTE
        assert record.kind != Kind.WRITE or bytes(record.data) == _content(record.sequence, record.incarnation)
    if scanned is not None and again is not None:
        assert scanned.last == again.last
        assert not records or records[-1].sequence == scanned.last
        assert scanned.last >= durable
        found = [each.file.path for each in scanned.chain] + [file.path for file in scanned.spares]
        assert sorted(found) == [f"{_DIRECTORY}/{name}" for name in files.names(_DIRECTORY)]


def _scan(
    files: Files, numbering: Numbering, facts: tuple[int, int, int, bool]
) -> tuple[Scan | None, list[Record], str]:
    records: list[Record] = []
    segments: list[int] = []

    def segment(found: Segment, _durable: int) -> None:
        segments.append(found.ordinal)

    first, durable, start_ordinal, intact = facts
    try:
        steps = scan_journal(
            files,
            _DIRECTORY,
            group_id=_GROUP,
            start_ordinal=start_ordinal,
            first=first,
            durable=durable,
            intact=intact,
            numbering=numbering,
            on_segment=segment,
            on_record=records.append,
            opened=contextlib.ExitStack(),
        )
        scan = _result(steps)
    except Corrupt as error:
        return None, records, str(error)
    assert segments == sorted(segments)
    assert scan.next_ordinal > max(segments)
    return scan, records, ""


def _result(steps: Generator[None, None, Scan]) -> Scan:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            scan: Scan = end.value
            return scan


def _segment(source: Source, number: int) -> bytes:
    kind = source.number(1) % 8
    if kind == 7:
        return source.take(source.number(1))
    first = source.pick((1 + 3 * (number - 1), 1, *_SEQUENCES))
    incarnation = source.pick((1, 1, 2, 3))
    header = SegmentHeader(
        _GROUP if kind else _GROUP + 1,
        source.pick((number, number, number, 1, (1 << 64) - 2)),
        first,
        source.pick(_DURABLE),
        incarnation,
        source.pick((_SIZE, _SIZE, 0, (1 << 64) - 1)),
    )
    content = b"".join(_piece(source, first + index, incarnation) for index in range(source.number(1) % 10))
    whole = bytearray(header.encode().ljust(DATA_START, b"\0") + content)
    for _ in range(source.pick((0, 0, 0, 1, 3))):
        place = source.number(2) % (SEGMENT_HEADER.size + len(content))
        if place >= SEGMENT_HEADER.size:
            place += DATA_START - SEGMENT_HEADER.size
        whole[place] ^= 1 + source.number(1) % 255
    if source.number(1) % 8 != 7:
        whole = whole.ljust(_SIZE, b"\0")
    return bytes(whole)


def _piece(source: Source, sequence: int, incarnation: int) -> bytes:
    sequence %= 1 << 64
    match source.number(1) % 10:
        case 0:
            return source.take(source.number(1))
        case 1:
            return bytes(HEADER_SIZE + _DATA)
        case 2:
            return _record(Kind.NOTE, source.pick((sequence - 1, *_SEQUENCES)), incarnation, source.pick(_DURABLE))
        case 3:
            return _record(Kind.WRITE, source.pick(_SEQUENCES), source.pick((1, 2, 3)), source.pick(_DURABLE))
        case 4:
            return _record(Kind.TICK, sequence, incarnation, source.pick(_DURABLE), source.pick((_GENERATION, 4)))
        case _:
            return _record(Kind.WRITE, sequence, incarnation, 0)


def _record(kind: Kind, sequence: int, incarnation: int, durable: int, generation: int = _GENERATION) -> bytes:
    sequence %= 1 << 64
    data = _content(sequence, incarnation) if kind is Kind.WRITE else b""
    header = encode_header(
        kind, sequence=sequence, time=1, generation=generation, incarnation=incarnation, durable=durable,
        volume=1, length=len(data), data_crc=crc32c(data),
    )  # fmt: skip
    return header + data


def _content(sequence: int, incarnation: int) -> bytes:
    return b"%20d %2d." % (sequence, incarnation)


def _write(files: Files, path: str, content: bytes) -> None:
    file = files.open(path, create=True)
    if content:
        file.write(content, 0)
    file.close()
