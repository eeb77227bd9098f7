"""Received records: what one of them needs of a volume, and does to it when it is shown.

Owns: checking received records against the group's volumes, reserving space for
them, and making pending ones visible when the apply loop says so.
Never: decides what may become visible (model/apply_plan.py does), or renumbers
(reception.py does, for the synchronous leg).

Source: RC ¶34-39 (receiving), ¶41 (applying); spec §4.2, §5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from controllerd.model.errors import Corrupt
from controllerd.model.records import EMPTY_KINDS, HEADER_SIZE, Kind
from controllerd.storage.journal import Journal
from controllerd.storage.pending import Pending
from controllerd.storage.volume import Volume

if TYPE_CHECKING:
    from controllerd.storage.group import Group

# Plain numbers: these run for every record, and looking a member up in an enumeration costs more than the comparison.
_WRITE: Final = int(Kind.WRITE)


def check_received(group: Group, kind: int, key: int, offset: int, length: int) -> Volume | None:
    """Return the volume a received or recovered record is for; None for records without data.

    Raises:
        Corrupt: the group has no such volume, or the range lies beyond its end.
    """
    if kind in EMPTY_KINDS:
        return None
    volume = group.volumes.get(key)
    if volume is None:
        raise Corrupt(f"group {group.name}: record for volume key {key:#x}, which the group does not have")
    if offset + length > volume.size:
        raise Corrupt(f"group {group.name}: record beyond the end of volume {volume.name}")
    return volume


def reserve(volume: Volume, kind: int, offset: int, length: int) -> None:
    """Reserve the disk regions that a record needs: a write those that it touches, zeros none (see `_show_zeros`).

    Raises:
        NoSpace: the pool is full.
    """
    if kind == _WRITE:
        shift, reserved = volume.shift, volume.map
        first, last = offset >> shift, (offset + length - 1) >> shift
        if not reserved[first] or (last != first and 0 in reserved[first + 1 : last + 1]):
            volume.reserve(first, last)


def show(volume: Volume, offset: int, length: int, data: memoryview | None) -> int:
    """Make one record visible: put it into the volume's cache. Returns the bytes of memory made for it besides."""
    if data is None:
        return _show_zeros(volume, offset, length)
    return volume.layers.write(offset, data)


def _show_zeros(volume: Volume, offset: int, length: int) -> int:
    """`show` for zeros. The zeros at the edges of the range, in regions covered only in part, are written as blocks.

    Not where the region is a hole: it reads as zeros already, and blocks would need space. A hole has nothing in the
    cache, since whatever is put there has its region from the moment it is staged; and what is staged already counts,
    since it is shown before.
    """
    shift, end = volume.shift, offset + length
    mask = (1 << shift) - 1
    if offset & mask and not volume.map[offset >> shift]:
        offset = min(end, (offset | mask) + 1)
    if end & mask and end > offset and not volume.map[end >> shift]:
        end = max(offset, end & ~mask)
    return volume.layers.zero(offset, end - offset) if end > offset else 0


class Applied:
    """How far a group's pending records have become visible."""

    def __init__(self, sequence: int, time: int, origin: int) -> None:
        self.sequence = sequence
        self.time = time
        self.origin = origin
        self.taken = 0
        """Bytes of cache that applied records took and that the group has not yet accounted for."""

    def apply(self, volumes: dict[int, Volume], pending: Pending, journal: Journal, through: int) -> int:
        """Show pending records up to ``through``; returns how many.

        Raises:
            NoSpace: a pool has no room for a region that was trimmed meanwhile; what
                was applied before stays applied, call again later.
            Corrupt: the journal could not be read back.
        """
        count = 0
        reread: dict[int, memoryview] = {}
        entries, pop = pending.entries, pending.pop
        taken = 0
        try:
            while entries and entries[0].sequence <= through:
                sequence, time, kind, key, offset, length, origin, data = entries[0]
                volume = volumes.get(key)
                if kind == _WRITE:
                    if volume is not None:
                        if data is None:
                            if sequence not in reread:
                                reread = {record.sequence: record.data for record in journal.records(sequence, through)}
                            data = reread[sequence]
                        reserve(volume, _WRITE, offset, length)
                        taken += volume.layers.write(offset, data)
                    taken += length
                elif volume is not None and kind not in EMPTY_KINDS:
                    taken += _show_zeros(volume, offset, length)
                pop()
                self.sequence = sequence
                self.time = time
                if origin:
                    self.origin = origin
                taken += HEADER_SIZE
                count += 1
        finally:
            self.taken += taken
        return count
