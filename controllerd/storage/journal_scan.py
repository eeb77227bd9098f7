"""Recovery scan: which bytes of the segment files are the journal.

Owns: the rule that separates the journal from what lies behind its end.
Never: writes to a segment, or skips a record that must be there.

The journal is the longest run of valid records with consecutive sequence numbers,
from the segment that holds the first number wanted. It may go on in the first segment
behind that begins with the next number. Records and segments count only in the
incarnation to which their numbers belong: a recovery goes on behind the end that it
found with a new one, so that what survived behind that end is never taken later.
Where the journal stops is the end, unless something proves that the journal was once durable beyond it: a record or
segment header behind the hole, or a NOTE before it, that says so. Then the hole is
corruption: the group is held for the operator and nothing is skipped (architecture
§4, I8). After a power cut pages survive in any order, so valid records behind the
end are normal; if only the process died (``intact``), they are such a proof themselves,
and so is a segment file that has become shorter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

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
    SegmentDamaged,
    SegmentError,
    SegmentHeader,
    decode_segment_untrusted,
)

SLICE: Final = 256
"""Records handed on in one step."""


@dataclass(slots=True)
class Scan:
    """What a scan found. ``last`` is the number of the last valid record."""

    chain: list[Segment]
    spares: list[File]
    last: int
    next_ordinal: int
    records: int = 0


@dataclass(frozen=True, slots=True)
class Numbering:
    """Which records are this journal's.

    ``incarnations``: (first sequence number, incarnation) as in the catalogue, oldest first.
    ``own``: the records were numbered here, so that their ``generation``, ``incarnation`` and
    ``durable`` fields speak of this journal; else only segment headers and NOTE records do.
    """

    incarnations: Sequence[tuple[int, int]]
    generation: int
    own: bool

    def incarnation(self, sequence: int) -> int:
        """Return the incarnation that a sequence number belongs to."""
        index = bisect_right(self.incarnations, sequence, key=_first)
        return self.incarnations[max(0, index - 1)][1]

    def accepts(self, generation: int, incarnation: int, sequence: int) -> bool:
        """Whether a record with these fields can be this journal's."""
        return not self.own or (generation == self.generation and incarnation == self.incarnation(sequence))


@dataclass(slots=True)
class _Walk:
    expected: int
    proven: int
    records: int = 0
    incarnation: int = 0


def scan_journal(
    files: Files,
    directory: str,
    *,
    group_id: int,
    start_ordinal: int,
    first: int,
    durable: int,
    intact: bool,
    numbering: Numbering,
    on_segment: Callable[[Segment, int], None],
    on_record: Callable[[Record], None],
    opened: ExitStack,
) -> Generator[None, None, Scan]:
    """Read the journal in ``directory`` from record ``first`` on, and hand every valid record on in order.

    ``start_ordinal``: older segments are not part of the journal any more. ``durable``: the
    journal is known to have been durable through this number. ``intact``: the machine has run
    on since the last append, so that nothing that was appended can be missing. Before the records of a segment
    are handed on, ``on_segment`` gets it with the number through which it is known to be durable. ``opened`` closes
    the files that were opened, should the caller not want them.

    It yields between its steps (a segment read, `SLICE` records handed on), so that others can go on meanwhile.

    Raises:
        Corrupt: a record that was durable is damaged or missing.
    """
    found, spares, damaged, next_ordinal = _open_segments(files, directory, group_id, start_ordinal, numbering, opened)
    below = [ordinal for ordinal, (header, _) in found.items() if header.first <= first]
    if not below:
        raise Corrupt(f"{directory}: no journal segment holds record {first}")
    ordinal = max(below)
    walk = _Walk(found[ordinal][0].first, durable)
    chain: list[Segment] = []
    while True:
        header, file = found.pop(ordinal)
        if intact and file.size() < header.size:
            raise Corrupt(f"{directory}: journal segment {ordinal} has {file.size()} bytes, it had {header.size}")
        walk.proven = max(walk.proven, header.durable)
        segment, records, rest = _walk_segment(header, file, walk, numbering)
        chain.append(segment)
        yield
        on_segment(segment, walk.proven)
        for index, record in enumerate(records, 1):
            if record.sequence >= first:
                on_record(record)
            if not index % SLICE:
                yield
        following = [later for later, (header, _) in found.items() if later > ordinal and header.first == walk.expected]
        if not following:
            break
        ordinal = min(following)
    if walk.expected < first:
        raise Corrupt(f"{directory}: journal ends at record {walk.expected - 1}, its checkpoint is at {first - 1}")
    behind = [rest, *map(_content, damaged)]
    for later, (header, file) in found.items():
        spares.append(file)
        if later > ordinal:
            walk.proven = max(walk.proven, header.durable)
            behind.append(_content(file))
    for view in behind:
        walk.proven = max(walk.proven, _proof_behind(view, walk.expected, numbering, intact=intact))
    if walk.proven >= walk.expected:
        raise Corrupt(
            f"{directory}: journal record {walk.expected} is damaged; the journal was durable through {walk.proven}",
            sequence=walk.expected,
        )
    return Scan(chain, spares, walk.expected - 1, next_ordinal, walk.records)


def _open_segments(
    files: Files, directory: str, group_id: int, start_ordinal: int, numbering: Numbering, opened: ExitStack
) -> tuple[dict[int, tuple[SegmentHeader, File]], list[File], list[File], int]:
    """Return the segments that can be the journal's by ordinal, the other files, and the next free ordinal.

    Those of the other files that may have been segments, and are damaged, are returned by themselves too.
    """
    found: dict[int, tuple[SegmentHeader, File]] = {}
    spares: list[File] = []
    damaged: list[File] = []
    next_ordinal = start_ordinal
    for name in files.names(directory):
        if not name.endswith(".seg"):
            continue
        file = files.open(f"{directory}/{name}")
        opened.callback(file.close)
        data = memoryview(bytearray(min(SEGMENT_HEADER.size, file.size())))
        file.read_now(data, 0)
        try:
            header = decode_segment_untrusted(bytes(data), group_id)
        except SegmentError as error:
            spares.append(file)
            if isinstance(error, SegmentDamaged) and any(data):
                damaged.append(file)
            continue
        next_ordinal = max(next_ordinal, header.ordinal + 1)
        current = header.incarnation == numbering.incarnation(header.first)
        if header.ordinal < start_ordinal or not current or header.ordinal in found:
            spares.append(file)
        else:
            found[header.ordinal] = (header, file)
    return found, spares, damaged, next_ordinal


def _content(file: File) -> memoryview:
    data = memoryview(bytearray(max(0, file.size() - DATA_START)))
    file.read_now(data, DATA_START)
    return data


def _walk_segment(
    header: SegmentHeader,
    file: File,
    walk: _Walk,
    numbering: Numbering,
) -> tuple[Segment, list[Record], memoryview]:
    view = _content(file)
    segment = Segment(header.ordinal, header.first, file, last=header.first - 1)
    records: list[Record] = []
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
            if record.sequence != walk.expected or record.incarnation < walk.incarnation:
                break
            if not numbering.accepts(record.generation, record.incarnation, record.sequence):
                break
            segment.note_position(record.sequence, DATA_START + position)
            segment.last = record.sequence
            walk.expected += 1
            walk.records += 1
            walk.incarnation = record.incarnation
            if numbering.own:
                walk.proven = max(walk.proven, record.durable)
            records.append(record)
        position += record.size
    segment.end = DATA_START + position
    return segment, records, view[position:]


def _proof_behind(view: memoryview, expected: int, numbering: Numbering, *, intact: bool) -> int:
    """Highest durable number that a record header behind the hole claims, if its record is from there.

    ``intact``: the record's own number counts too.
    """
    data = bytes(view)
    proven = 0
    position = data.find(MAGIC_BYTES)
    while position >= 0 and position + HEADER_SIZE <= len(data):
        fields = HEADER.unpack_from(data, position)
        kind, generation, incarnation, sequence, durable = fields[2], fields[4], fields[5], fields[9], fields[11]
        if kind == Kind.NOTE:
            ours = not numbering.own and sequence >= expected
        else:
            ours = sequence > expected and numbering.accepts(generation, incarnation, sequence)
            durable = max(durable if numbering.own else 0, sequence if intact else 0)
        if (
            ours
            and durable > proven
            and generation == numbering.generation
            and crc32c(data[position : position + HEADER_SIZE - 4]) == fields[-1]
        ):
            proven = durable
        position = data.find(MAGIC_BYTES, position + 4)
    return proven


def _first(incarnation: tuple[int, int]) -> int:
    return incarnation[0]
