"""Journal record format: the bytes of one write in the journal and on the transfer path.

Owns: the header layout, the kinds and flags, encoding, decoding and checksums.
Never: reads files or sockets, assigns numbers, or decides what may be applied.

The same bytes are on disk and on the wire, so a receiver can append what it has
checked without taking it apart. A record is the header followed by ``length``
bytes of data (WRITE only; the other kinds describe a range or carry nothing).
Multi-byte fields are little-endian.

Source: RC ¶28 fig. 5 (write data management information), ¶69 fig. 17 (marker
attribute and number), ¶45 (what may follow a gap).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from crc32c import crc32c

MAGIC: Final = 0x4A524352  # "RCRJ" in file order
MAGIC_BYTES: Final = MAGIC.to_bytes(4, "little")
VERSION: Final = 1

# Record header, 80 bytes, little-endian
#  0      4    5    6      8         12          16        20      24      28
#  +------+----+----+------+---------+-----------+---------+-------+-------+
#  | magic| ver|kind| flags|generat. |incarnation|data crc |volume |length |
#  +------+----+----+------+---------+-----------+---------+-------+-------+
#  28        36          44       52       60       68        76         80
#  +---------+-----------+--------+--------+--------+---------+----------+
#  | sequence| write time| durable| offset | marker | origin  |header crc|
#  +---------+-----------+--------+--------+--------+---------+----------+
# header crc = CRC-32C of bytes 0..75; data crc = CRC-32C of the data, and since
# it lies in the header, the header crc binds data to place, number and time.
HEADER: Final = struct.Struct("<IBBHIIIIIQQQQQQI")
HEADER_BODY: Final = struct.Struct("<IBBHIIIIIQQQQQQ")
HEADER_CRC: Final = struct.Struct("<I")
HEADER_SIZE: Final = HEADER.size
assert HEADER_SIZE == 80
assert HEADER_BODY.size + HEADER_CRC.size == HEADER_SIZE

MAX_DATA: Final = 1 << 20
"""Most data bytes in one record; a longer host write becomes several records."""
MAX_RANGE: Final = 1 << 30
"""Longest range of one ZEROES or TRIM record, in bytes."""
MAX_GENERATION: Final = (1 << 32) - 1
"""Greatest number of a group's generation; the least is 1."""


class Kind(enum.IntEnum):
    """What a record says."""

    WRITE = 1
    ZEROES = 2
    TRIM = 3
    MARKER = 4
    TICK = 5
    DOUBT = 6
    """The records before are those that a power loss left; lost ones come again, with later times, up to SURE."""
    SURE = 7
    """Nothing that was lost before the last DOUBT is missing any more."""
    NOTE = 16
    """Local to one journal: carries only ``durable``; has no sequence number of its own and is never applied."""


DATA_KINDS: Final = frozenset((int(Kind.WRITE), int(Kind.ZEROES), int(Kind.TRIM)))
"""What a host's write, of whatever kind, becomes."""
SILENT_KINDS: Final = frozenset((int(Kind.TICK), int(Kind.DOUBT), int(Kind.SURE)))
"""What only says when other records may be shown."""
EMPTY_KINDS: Final = SILENT_KINDS | {int(Kind.MARKER)}
"""What has a number and is about no volume."""


class Flag(enum.IntFlag):
    """Record flags."""

    HOST_TIME = 1
    """The host carried the write time (RC ¶26)."""


_WRITE: Final = int(Kind.WRITE)
_KINDS: Final = frozenset(int(kind) for kind in Kind)
_RANGES: Final = frozenset((int(Kind.ZEROES), int(Kind.TRIM)))


class RecordError(ValueError):
    """Bytes that are not a valid record. ``offset`` is where in the buffer."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Record:
    """One decoded record; ``data`` is a view of the buffer it was decoded from."""

    kind: int
    flags: int
    generation: int
    incarnation: int
    volume: int
    length: int
    sequence: int
    time: int
    durable: int
    offset: int
    marker: int
    origin: int
    data: memoryview

    @property
    def size(self) -> int:
        """Bytes on disk and on the wire, header included."""
        return HEADER_SIZE + len(self.data)


def encode_header(
    kind: int,
    *,
    sequence: int,
    time: int,
    generation: int,
    incarnation: int,
    durable: int = 0,
    flags: int = 0,
    volume: int = 0,
    offset: int = 0,
    length: int = 0,
    data_crc: int = 0,
    marker: int = 0,
    origin: int = 0,
) -> bytes:
    """Return the 80 header bytes of a record (``time`` in ns, ``offset`` and ``length`` in bytes)."""
    body = HEADER_BODY.pack(
        MAGIC, VERSION, kind, flags, generation, incarnation, data_crc, volume, length,
        sequence, time, durable, offset, marker, origin,
    )  # fmt: skip
    return body + HEADER_CRC.pack(crc32c(body))


class Place(NamedTuple):
    """What a record changes: ``length`` bytes of a volume from byte ``offset``; ``size``: its bytes in the journal."""

    kind: int
    volume: int
    offset: int
    length: int
    sequence: int
    size: int


def decode_place_untrusted(buffer: memoryview, position: int) -> Place:
    """Decode what the record at ``position`` changes. Only its header is looked at; its data may lie behind the buffer.

    Raises:
        RecordError: there is no whole, valid header.
    """
    if position + HEADER_SIZE > len(buffer):
        raise RecordError("record header cut short", position)
    (magic, version, kind, _, _, _, _, volume, length,
     sequence, _, _, offset, _, _, header_crc) = HEADER.unpack_from(buffer, position)  # fmt: skip
    if magic != MAGIC or crc32c(buffer[position : position + HEADER_SIZE - 4]) != header_crc:
        raise RecordError("no record header, or its checksum is wrong", position)
    if version != VERSION or kind not in _KINDS:
        raise RecordError(f"unknown record header version {version} or kind {kind}", position)
    size = HEADER_SIZE + length if kind == _WRITE else HEADER_SIZE
    return Place(kind, volume, offset, length, sequence, size)


def decode_untrusted(buffer: memoryview, position: int = 0) -> Record:
    """Decode the record at ``position``, checking both checksums.

    Raises:
        RecordError: the bytes there are not a whole, valid record.
    """
    end = len(buffer)
    if position + HEADER_SIZE > end:
        raise RecordError("record header cut short", position)
    (magic, version, kind, flags, generation, incarnation, data_crc, volume, length,
     sequence, time, durable, offset, marker, origin, header_crc) = HEADER.unpack_from(buffer, position)  # fmt: skip
    if magic != MAGIC:
        raise RecordError("no record magic", position)
    if crc32c(buffer[position : position + HEADER_SIZE - 4]) != header_crc:
        raise RecordError("record header checksum is wrong", position)
    if version != VERSION or kind not in _KINDS:
        raise RecordError(f"unknown record version {version} or kind {kind}", position)
    start = position + HEADER_SIZE
    if kind == Kind.WRITE:
        if not 0 < length <= MAX_DATA:
            raise RecordError(f"record data length {length} is out of range", position)
        data = buffer[start : start + length]
        if len(data) != length:
            raise RecordError("record data cut short", position)
        if crc32c(data) != data_crc:
            raise RecordError("record data checksum is wrong", position)
    else:
        if kind in _RANGES and not 0 < length <= MAX_RANGE:
            raise RecordError(f"record range length {length} is out of range", position)
        data = buffer[start:start]
    return Record(
        kind, flags, generation, incarnation, volume, length,
        sequence, time, durable, offset, marker, origin, data,
    )  # fmt: skip
