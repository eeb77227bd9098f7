"""Records of a synchronous primary, staged one by one as the intake stages frames of them."""

from __future__ import annotations

from crc32c import crc32c

from controllerd.model.records import Kind, Record
from controllerd.storage.group import Group
from controllerd.storage.pending import Entry


def stage_from_upstream(group: Group, record: Record) -> int:
    """Stage ``record``, the next one of the primary; returns its own number at the secondary."""
    is_write = record.kind == Kind.WRITE
    entry = Entry(
        record.sequence, record.time, int(record.kind), record.volume, record.offset, record.length,
        record.origin, record.data if is_write else None,
    )  # fmt: skip
    arrivals: list[tuple[int, int, int]] = []
    group.stage_upstream([entry], [(int(record.flags), crc32c(record.data) if is_write else 0)], arrivals)
    return arrivals[0][1]
