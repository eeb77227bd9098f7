"""Journal segment format: the header block at the start of each segment file.

A journal is a chain of equally long segment files, ``<ordinal>.seg``. A segment is
this header, padded to `DATA_START` bytes, and then records (model/records.py) back
to back; the rest is whatever the file held before. Multi-byte fields are
little-endian. What decides which bytes are valid is written in `journal_scan`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

SEGMENT_MAGIC: Final = 0x47455352  # "RSEG"
SEGMENT_VERSION: Final = 2
DATA_START: Final = 4096

# Segment header, 64 bytes, little-endian
#  0       4         8         16        24               32        40            44     52         60    64
#  +-------+---------+---------+---------+----------------+---------+-------------+------+----------+-----+
#  | magic | version | group id| ordinal | first sequence | durable | incarnation | size | reserved | crc |
#  +-------+---------+---------+---------+----------------+---------+-------------+------+----------+-----+
# ordinal counts segments of the group from 1, never reused; durable is the sequence
# number up to which the journal was durable when the segment was begun; incarnation is
# the group's run that began it; size is that of the file in bytes; crc is the CRC-32C of bytes 0..59.
SEGMENT_HEADER: Final = struct.Struct("<IIQQQQIQ8sI")
assert SEGMENT_HEADER.size == 64


class SegmentError(ValueError):
    """Bytes that are not a segment header of this group."""


class SegmentDamaged(SegmentError):
    """Bytes that are no segment header at all."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Identity of one segment. ``first``: sequence number of its first record; ``size``: of the file, in bytes."""

    group_id: int
    ordinal: int
    first: int
    durable: int
    incarnation: int
    size: int

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        body = SEGMENT_HEADER.pack(
            SEGMENT_MAGIC, SEGMENT_VERSION, self.group_id, self.ordinal, self.first, self.durable,
            self.incarnation, self.size, bytes(8), 0,
        )[:-4]  # fmt: skip
        return body + crc32c(body).to_bytes(4, "little")


def decode_segment_untrusted(data: bytes, group_id: int) -> SegmentHeader:
    """Decode a segment header.

    Raises:
        SegmentDamaged: it is none.
        SegmentError: it is of another version, or belongs to another group.
    """
    if len(data) < SEGMENT_HEADER.size:
        raise SegmentDamaged("segment shorter than its header")
    data = data[: SEGMENT_HEADER.size]
    magic, version, owner, ordinal, first, durable, incarnation, size, _, crc = SEGMENT_HEADER.unpack(data)
    if magic != SEGMENT_MAGIC or crc32c(data[:-4]) != crc:
        raise SegmentDamaged("no segment header")
    if version != SEGMENT_VERSION:
        raise SegmentError(f"segment version {version} is not known")
    if owner != group_id:
        raise SegmentError(f"segment belongs to group id {owner}")
    return SegmentHeader(owner, ordinal, first, durable, incarnation, size)
