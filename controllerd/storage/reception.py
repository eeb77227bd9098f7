"""Reception: a secondary group journals what its primary sends, and shows it when it is told to.

Owns: in which form received records get into the group's journal: as they are (asynchronous leg), or under
own numbers (synchronous leg).
Never: acknowledges to the primary (replication/intake.py does), or decides what may become visible
(model/apply_plan.py does).

Source: RC ¶34-39, ¶41, ¶57-59; spec §4.2, §4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crc32c import crc32c
from typing_extensions import Buffer

from controllerd.model.errors import Busy, Corrupt, JournalFailed
from controllerd.model.records import HEADER_BODY, HEADER_CRC, HEADER_SIZE, MAGIC, VERSION, Kind, encode_header
from controllerd.model.write_time import MAX_HEARD
from controllerd.storage.pending import Entry
from controllerd.storage.received import check_received, reserve

if TYPE_CHECKING:
    from controllerd.storage.group import Group


class Reception:
    """The side of ``group`` that its primary's records reach."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def append(self, raw: Buffer, entries: Sequence[Entry]) -> None:
        """Journal records of an asynchronous primary as they are: same bytes, numbers and times (spec §4.2).

        ``entries`` describe the records in ``raw`` in order; the first is ``last_seq + 1``.

        Raises:
            NoSpace: a pool has no room; nothing was appended.
            Corrupt: a record does not fit the group; nothing was appended.
            JournalFailed: the journal is unusable.
        """
        group = self._group
        journal = group.journal
        expected = group.last_seq
        latest = group.last_time
        ticks = 0
        for sequence, time, kind, key, offset, length, _, _ in entries:
            expected += 1
            if sequence != expected or time < latest:
                raise Corrupt(
                    f"group {group.name}: received record {sequence} at {time} ns after {expected - 1} at {latest} ns"
                )
            latest = time
            volume = check_received(group, kind, key, offset, length)
            if volume is not None:
                reserve(volume, kind, offset, length)
            else:
                ticks += 1
        view = memoryview(raw)
        if len(view) + HEADER_SIZE > journal.room and not journal.prepare(len(view) + HEADER_SIZE):
            group.on_pressure()
            raise Busy(f"journal of group {group.name} is full")
        note = encode_header(
            Kind.NOTE, sequence=group.last_seq, time=group.last_time, generation=group.generation, incarnation=0,
            durable=group.acks.durable.reached,
        )  # fmt: skip
        try:
            journal.append([note, view], len(view) + HEADER_SIZE, group.last_seq + 1, expected, pairs=False)
        except JournalFailed as error:
            group.acks.fail(error)
            raise
        group.records_written += expected - group.last_seq
        group.ticks_written += ticks
        group.last_seq = group.staged_seq = expected
        group.last_time = latest
        group.bytes_written += len(view)
        group.pending.extend(entries)
        group.write_time.observe(min(group.last_time, MAX_HEARD))
        group.acks.journaled = expected
        if journal.rolled or journal.room < group.margin:
            group.update_accepting()
        for listener in group.on_commit:
            listener()

    def stage_upstream(
        self, entries: Sequence[Entry], seals: Sequence[tuple[int, int]], arrivals: list[tuple[int, int, int]]
    ) -> None:
        """Stage what the synchronous primary sent: own numbers, its write times (spec §4.4, RC ¶57-59).

        ``entries`` continue ``last_origin`` without a gap; ``seals`` are their (flags,
        checksum of the data). (time, own number, kind) of each is added to ``arrivals``.

        When it raises, the entries before the one that could not be staged are staged.

        Raises:
            NoSpace: the pool or journal has no room.
            Corrupt: a record names a volume that is not in the group, or a range beyond its end.
            BadOrder: a record's time is too late.
        """
        group = self._group
        now, times = group.clock(), group.write_time
        pass_on, pass_on_tick = times.pass_on, times.pass_on_tick
        generation, incarnation = group.generation, group.facts.incarnations[-1][1]
        durable = group.acks.durable.reached
        pack, pack_crc, make = HEADER_BODY.pack, HEADER_CRC.pack, Entry._make
        iov, add, arrived = group.iov, group.received.append, arrivals.append
        room, size = group.journal.room, group.iov_size
        sequence, last_time, last_origin = group.staged_seq, group.last_time, group.last_origin
        ticks = 0
        try:
            for (origin, carried, kind, key, offset, length, _, data), (flags, data_crc) in zip(
                entries, seals, strict=True
            ):
                after = size + HEADER_SIZE + (0 if data is None else length)
                if after > room:
                    raise group.no_room(after - size)
                volume = check_received(group, kind, key, offset, length)
                if volume is not None:
                    reserve(volume, kind, offset, length)
                if volume is None:
                    time = pass_on_tick(carried, now)
                    ticks += 1
                else:
                    time = pass_on(carried, now)
                if time > last_time:
                    last_time = time
                sequence += 1
                body = pack(
                    MAGIC, VERSION, kind, flags, generation, incarnation, data_crc, key, length,
                    sequence, last_time, durable, offset, 0, origin,
                )  # fmt: skip
                iov += (body + pack_crc(crc32c(body)), b"" if data is None else data)
                add(make((sequence, last_time, kind, key, offset, length, origin, data)))
                arrived((last_time, sequence, kind))
                size, last_origin = after, origin
        finally:
            group.iov_size, group.staged_seq = size, sequence
            group.last_time, group.last_origin = last_time, last_origin
            group.ticks_written += ticks

    def apply(self, sequence: int) -> int:
        """Make pending records up to ``sequence`` visible; returns how many.

        Raises:
            NoSpace, Corrupt: see `Applied.apply`; what was applied before stays applied.
        """
        group = self._group
        applied = group.applied
        try:
            return applied.apply(group.volumes, group.pending, group.journal, sequence)
        finally:
            group.layer_bytes += applied.taken
            group.budget.used += applied.taken
            applied.taken = 0
            if group.layer_bytes >= group.layer_limit or group.budget.full:
                group.on_layer_full()
