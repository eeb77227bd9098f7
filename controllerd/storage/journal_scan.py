"""Recovery scan: which bytes of the segment files are the journal.

Owns: the rule that separates the journal from what lies behind its end.
Never: writes to a segment, or skips a record that must be there.

The journal is the longest run of valid records with consecutive sequence numbers,
from the segment that holds the first number wanted. It may go on in the segment
with the next ordinal, if that one begins with the next number. Where it stops is the
end, unless something proves that the journal was once durable beyond it: a record or
segment header behind the hole, or a NOTE before it, that says so. Then the hole is
corruption: the group is held for the operator and nothing is skipped (architecture
§4, I8). After a power cut pages survive in any order, so valid records behind the
end are normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crc32c import crc32c

from controllerd.model.errors import Corrupt
from controllerd.model.records import (
    HEADER,
    HEADER_SIZE,
    MAGIC_BYTES,
    Kind,
    Record,
    RecordError,
    decode_untrusted,
)
from controllerd.storage.io import File, Files
from controllerd.storage.journal import Segment
from controllerd.storage.journal_format import (
    DATA_START,
    SEGMENT_HEADER,
    SegmentError,
    SegmentHeader,
    decode_segment_untrusted,
)


@dataclass(slots=True)
class Scan:
    """What a scan found. ``last`` is the number of the last valid record."""

    chain: list[Segment]
    spares: list[File]
    last: int
    next_ordinal: int
    records: int = 0


@dataclass(slots=True)
class _Walk:
    expected: int
    proven: int = 0
    records: int = 0


def scan_journal(
    files: Files,
    directory: str,
    *,
    group_id: int,
    start_ordinal: int,
    first: int,
    own_numbers: bool,
    on_record: Callable[[Record], None],
) -> Scan:
    """Read the journal in ``directory`` from record ``first`` on, and hand every valid record on in order.

    ``start_ordinal``: older segments are not part of the journal any more. ``own_numbers``:
    the records were numbered here, so their ``durable`` field speaks of this journal; else
    only NOTE records do.

    Raises:
        Corrupt: a record that was durable is damaged or missing.
    """
    found, spares = _open_segments(files, directory, group_id, start_ordinal)
    below = [ordinal for ordinal, (header, _) in found.items() if header.first <= first]
    if not below:
        raise Corrupt(f"{directory}: no journal segment holds record {first}")
    ordinal = max(below)
    walk = _Walk(found[ordinal][0].first)
    chain: list[Segment] = []
    while True:
        header, file = found.pop(ordinal)
        segment, rest = _walk_segment(header, file, walk, first, own_numbers, on_record)
        chain.append(segment)
        following = found.get(ordinal + 1)
        if following is None or following[0].first != walk.expected:
            break
        walk.proven = max(walk.proven, following[0].durable)
        ordinal += 1
    if walk.expected < first:
        raise Corrupt(f"{directory}: journal ends at record {walk.expected - 1}, its checkpoint is at {first - 1}")
    behind = [rest]
    next_ordinal = ordinal + 1
    for later, (header, file) in found.items():
        spares.append(file)
        if later > ordinal:
            next_ordinal = max(next_ordinal, later + 1)
            walk.proven = max(walk.proven, header.durable)
            behind.append(_content(file))
    if own_numbers:
        for view in behind:
            walk.proven = max(walk.proven, _proof_behind(view, walk.expected))
    if walk.proven >= walk.expected:
        raise Corrupt(
            f"{directory}: journal record {walk.expected} is damaged; the journal was durable through {walk.proven}",
            sequence=walk.expected,
        )
    return Scan(chain, spares, walk.expected - 1, next_ordinal, walk.records)


def _open_segments(
    files: Files, directory: str, group_id: int, start_ordinal: int
) -> tuple[dict[int, tuple[SegmentHeader, File]], list[File]]:
    found: dict[int, tuple[SegmentHeader, File]] = {}
    spares: list[File] = []
    for name in files.names(directory):
        if not name.endswith(".seg"):
            continue
        file = files.open(f"{directory}/{name}")
        data = memoryview(bytearray(SEGMENT_HEADER.size))
        file.read_now(data, 0)
        try:
            header = decode_segment_untrusted(bytes(data), group_id)
        except SegmentError:
            spares.append(file)
            continue
        if header.ordinal < start_ordinal or header.ordinal in found:
            spares.append(file)
        else:
            found[header.ordinal] = (header, file)
    return found, spares


def _content(file: File) -> memoryview:
    data = memoryview(bytearray(max(0, file.size() - DATA_START)))
    file.read_now(data, DATA_START)
    return data


def _walk_segment(
    header: SegmentHeader,
    file: File,
    walk: _Walk,
    first: int,
    own_numbers: bool,
    on_record: Callable[[Record], None],
) -> tuple[Segment, memoryview]:
    view = _content(file)
    segment = Segment(header.ordinal, header.first, file, last=header.first - 1)
    position = 0
    while True:
        try:
            record = decode_untrusted(view, position)
        except RecordError:
            break
        if record.kind == Kind.NOTE:
            if record.sequence >= walk.expected:
                break
            walk.proven = max(walk.proven, record.durable)
        else:
            if record.sequence != walk.expected:
                break
            segment.note_position(record.sequence, DATA_START + position)
            segment.last = record.sequence
            walk.expected += 1
            walk.records += 1
            if own_numbers:
                walk.proven = max(walk.proven, record.durable)
            if record.sequence >= first:
                on_record(record)
        position += record.size
    segment.end = DATA_START + position
    return segment, view[position:]


def _proof_behind(view: memoryview, expected: int) -> int:
    """Highest durable number that a record header behind the hole claims, if its record is from there."""
    data = bytes(view)
    proven = 0
    position = data.find(MAGIC_BYTES)
    while position >= 0 and position + HEADER_SIZE <= len(data):
        fields = HEADER.unpack_from(data, position)
        sequence, durable = fields[9], fields[11]
        if (
            sequence > expected
            and durable > proven
            and crc32c(data[position : position + HEADER_SIZE - 4]) == fields[-1]
        ):
            proven = durable
        position = data.find(MAGIC_BYTES, position + 4)
    return proven
