"""Volume group: numbers, times, journals and acknowledges the writes of its volumes.

Owns: the group's sequence numbers, its journal and horizons, and what its role lets
hosts and peers do. One *pass* of a host connection or transfer path stages many
writes, commits them with one journal write, and then answers (architecture §2).
Never: talks to hosts or peers, or writes to disks (the destager does).

What a reader would get wrong: at a primary a write is visible when its commit
returns. At a secondary it is pending until the apply loop says otherwise, so that
hosts see one cut over all groups (spec §5.1).

Source: RC ¶26-31 (numbers, times, acknowledge before destage and transfer), fig. 4.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from crc32c import crc32c
from typing_extensions import Buffer

from controllerd.model.errors import (
    BadOrder,
    Busy,
    Corrupt,
    DiskFailed,
    JournalFailed,
    NoSpace,
    ReadOnly,
    RemoteCopyError,
)
from controllerd.model.pair_state import Role
from controllerd.model.records import (
    HEADER_BODY,
    HEADER_CRC,
    HEADER_SIZE,
    MAGIC,
    MAX_DATA,
    MAX_RANGE,
    VERSION,
    Flag,
    Kind,
    Record,
    encode_header,
)
from controllerd.model.write_time import WriteTime
from controllerd.storage.acknowledge import Acknowledgement, Durability
from controllerd.storage.budget import CacheBudget
from controllerd.storage.differences import Differences
from controllerd.storage.journal import Journal, JournalRange
from controllerd.storage.layers import BLOCK, BLOCK_MASK, BLOCK_SHIFT
from controllerd.storage.pending import Entry, Pending
from controllerd.storage.received import Applied, check_received, reserve, show
from controllerd.storage.volume import Volume

_WRITE: Final = int(Kind.WRITE)
_HOST_TIME: Final = int(Flag.HOST_TIME)
RECOVERED: Final = "recovered"
"""Consumer that stands for all consumers of the run before, until they say themselves what they have."""


@dataclass(slots=True)
class GroupFacts:
    """What the catalogue keeps of a group. Sequence numbers and times are those of the checkpoint."""

    group_id: int
    durability: Durability = "cache"
    overflow: str = "suspend"
    journal_bytes: int = 1 << 30
    role: str = Role.PRIMARY.value
    numbered_here: bool = True
    generation: int = 0
    incarnations: list[tuple[int, int]] = field(default_factory=lambda: [(1, 1)])
    destaged: int = 0
    destaged_time: int = 0
    destaged_origin: int = 0
    retained: int = 0
    start_ordinal: int = 1
    bytes_written: int = 0


class Group:
    """One volume group. Sequence numbers begin with 1 and have no gaps (RC ¶26)."""

    def __init__(
        self,
        name: str,
        facts: GroupFacts,
        *,
        journal: Journal,
        budget: CacheBudget,
        write_time: WriteTime,
        clock: Callable[[], int],
        max_request_bytes: int,
        pending_memory: int,
    ) -> None:
        self.name = name
        self.facts = facts
        self.journal = journal
        self.budget = budget
        self.write_time = write_time
        self.clock = clock
        self.volumes: dict[int, Volume] = {}
        self.pending = Pending(pending_memory)
        self.role = Role(facts.role)
        self.generation = facts.generation
        self.write_error: RemoteCopyError | None = None
        """What a host that writes now is told: `refused`, `read_error` or `disk_error`."""
        self.refused: RemoteCopyError | None = None
        self.read_error: RemoteCopyError | None = None
        self.disk_error: DiskFailed | None = None
        self.last_seq = facts.destaged
        self.last_time = facts.destaged_time
        self.last_origin = facts.destaged_origin
        self.applied = Applied(facts.destaged, facts.destaged_time, facts.destaged_origin)
        self.destaged_mark = (facts.destaged, facts.destaged_time, facts.destaged_origin)
        """(sequence, time, origin) up to which the disks have everything, not yet synced."""
        self.layer_bytes = 0
        self.bytes_written = facts.bytes_written
        self.records_written = 0
        """Records journaled since the start, and those among them that are no writes."""
        self.ticks_written = 0
        self.accepting = True
        self.held: str | None = None
        self.on_commit: list[Callable[[], None]] = []
        self.copies: list[Differences] = []
        """What each copy of the group elsewhere may not have."""
        self.fed: list[Differences] = []
        """Those of them that have to be told what is written."""
        self.on_overflow: Callable[[], None] | None = None
        self.on_pressure: Callable[[], None] = _nothing
        self.on_layer_full: Callable[[], None] = _nothing
        self.on_segment_begun: Callable[[], None] = _nothing
        self.layer_limit = budget.limit // 4
        # Room for a request of the largest size must be left when `accepting` is still true.
        self._margin = min(max_request_bytes + (max_request_bytes >> 4), facts.journal_bytes // 4)
        self._next = self.last_seq
        self._iov: list[Buffer] = []
        self._iov_size = 0
        self._staged: list[tuple[Volume | None, int, int, int, memoryview | None]] = []
        self._received: list[Entry] = []
        """What is staged at a secondary, instead of ``_staged``."""
        self._accept_waiters: list[Callable[[], None]] = []
        self.acks = acks = Acknowledgement(journal, facts.durability, self.last_seq)
        self.when_complete = acks.when_complete
        self.when_flushed = acks.when_flushed
        self.when_durable = acks.when_durable
        self.make_durable = acks.make_durable
        acks.on_failed = self._stop_waiting
        self.set_mirror = acks.set_mirror
        self.mirror_progress = acks.mirror_progress
        self.fail_waiting = acks.fail_waiting
        self._retention = _retention_of(facts)
        budget.listen(self.update_accepting)

    # ---- what targets and replication ask ----------------------------------

    @property
    def refusal(self) -> RemoteCopyError | None:
        """Why hosts may not write now, or None."""
        if self.write_error is not None:
            return self.write_error
        if self.role is Role.SECONDARY:
            return ReadOnly(f"group {self.name} is a secondary: its volumes are read-only until takeover")
        return self.journal.failed

    @property
    def incarnation(self) -> int:
        """Number of this group's present run; a new one begins with each recovery."""
        return self.facts.incarnations[-1][1]

    @property
    def incarnations(self) -> list[tuple[int, int]]:
        """(first sequence number, incarnation), oldest first."""
        return self.facts.incarnations

    @property
    def complete_seq(self) -> int:
        """Writes up to here may be acknowledged to hosts."""
        return self.acks.complete.reached

    @property
    def durable_seq(self) -> int:
        """Writes up to here are durable in this controller's journal."""
        return self.acks.durable.reached

    @property
    def waiting(self) -> int:
        """How many acknowledgements wait for a horizon."""
        return len(self.acks.complete) + len(self.acks.flushed)

    @property
    def durability(self) -> Durability:
        """``cache`` or ``stable`` (spec §3.5)."""
        return self.acks.durability

    @property
    def mirrored(self) -> bool:
        """Whether acknowledgements wait for the synchronous peer."""
        return self.acks.mirrored

    @property
    def mirror_flush_wanted(self) -> Callable[[int], None] | None:
        """Called with a sequence number when a host flush waits for the synchronous peer's disk."""
        return self.acks.mirror_flush_wanted

    @mirror_flush_wanted.setter
    def mirror_flush_wanted(self, hook: Callable[[int], None] | None) -> None:
        self.acks.mirror_flush_wanted = hook

    @property
    def applied_seq(self) -> int:
        """Everything up to here is visible in the volumes."""
        return self.applied.sequence

    @property
    def applied_time(self) -> int:
        """Write time of ``applied_seq``."""
        return self.applied.time

    @property
    def writes_total(self) -> int:
        """Writes journaled here, of hosts or received, counted from an arbitrary base; ticks are none."""
        return max(0, self.records_written - self.ticks_written)  # a tick may be staged and not committed

    @property
    def data_total(self) -> int:
        """Bytes of data of those writes, counted from an arbitrary base."""
        return self.bytes_written - HEADER_SIZE * self.records_written

    @property
    def recovered(self) -> bool:
        """Whether the journal was read; if not, the group's numbers are those of the last checkpoint."""
        return bool(self.journal.chain)

    @property
    def apply_error(self) -> RemoteCopyError | None:
        """Why nothing may be applied now, or None: what is applied must be able to reach the disks."""
        return self.read_error or self.disk_error

    def has_pending(self, key: int) -> bool:
        """Whether a volume has records that are not applied yet."""
        return any(entry.volume == key for entry in self.pending)

    @property
    def broken(self) -> RemoteCopyError | None:
        """Why the group's own storage does not work, or None: it is held, or its journal or a disk takes nothing."""
        return self.read_error or self.journal.failed or self.disk_error

    def describe_fault(self) -> str | None:
        """One line for people when the group cannot work as it should; passing states (Busy) are no faults."""
        error = self.broken or self.write_error
        return None if error is None or isinstance(error, Busy) else str(error)

    def name_fault(self) -> str | None:
        """`describe_fault` for a list of many groups: it says once which one is meant."""
        fault = self.describe_fault()
        if fault is None or re.search(rf"\bgroup {re.escape(self.name)}(?![\w.-])", fault):
            return fault
        return f"group {self.name}: {fault}"

    def say(self, what: str, error: object) -> str:
        """``group g is held: ...``: what is so and because of what, without the group's name twice."""
        return f"group {self.name} {what}: {str(error).removeprefix(f'group {self.name}: ')}"

    # ---- staging -----------------------------------------------------------

    def stage_write(self, volume: Volume, offset: int, data: memoryview, carried: int | None = None) -> int:
        """Stage one host write; returns its sequence number (the last one if it takes several records).

        Keeps a reference to the memory of ``data``, which must not change afterwards.
        The caller has checked that the range lies within the volume. Nothing is staged
        when it raises.

        Raises:
            ReadOnly, JournalFailed, DiskFailed: hosts may not write to this group now.
            NoSpace: the pool or the journal has no room; before anything is journaled.
        """
        length = len(data)
        if not length:
            raise BadOrder("a write of no bytes")
        if self.write_error is not None or self.role is not Role.PRIMARY or volume.access != "read-write":
            raise self.refusal or ReadOnly(f"volume {volume.name} is read-only")
        size = length + HEADER_SIZE
        if length > MAX_DATA:
            return self._stage_long(volume, offset, data, carried)
        if self._iov_size + size > self.journal.room:
            raise self._no_room(size)
        shift = volume.shift
        first = offset >> shift
        last = (offset + length - 1) >> shift
        if not volume.map[first] or (last != first and 0 in volume.map[first + 1 : last + 1]):
            volume.reserve(first, last)
        time = self.write_time.stamp(self.clock(), carried)
        if time < self.last_time:
            time = self.last_time
        self.last_time = time
        self._next = sequence = self._next + 1
        data_crc = crc32c(data)
        body = HEADER_BODY.pack(
            MAGIC, VERSION, _WRITE, 0 if carried is None else _HOST_TIME,
            self.generation, self.facts.incarnations[-1][1],
            data_crc, volume.key, length, sequence, time, self.acks.durable.reached, offset, 0, 0,
        )  # fmt: skip
        self._iov += (body + HEADER_CRC.pack(crc32c(body)), data)
        self._iov_size += size
        self._staged.append((volume, _WRITE, offset, length, data))
        return sequence

    def _stage_long(self, volume: Volume, offset: int, data: memoryview, carried: int | None) -> int:
        length = len(data)
        records = (length + MAX_DATA - 1) // MAX_DATA
        if self._iov_size + length + records * HEADER_SIZE > self.journal.room:
            raise self._no_room(length)
        volume.reserve(offset >> volume.shift, (offset + length - 1) >> volume.shift)
        sequence = self._next
        for start in range(0, length, MAX_DATA):
            sequence = self.stage_write(volume, offset + start, data[start : start + MAX_DATA], carried)
        return sequence

    def _no_room(self, size: int) -> NoSpace:
        return NoSpace(
            f"journal of group {self.name} has no room for {size} bytes"
            f" ({self.journal.room} of {self.facts.journal_bytes} left)"
        )

    def stage_zeroes(
        self,
        volume: Volume,
        offset: int,
        length: int,
        *,
        trim: bool,
        no_hole: bool = False,
        carried: int | None = None,
    ) -> int:
        """Stage making a range read as zeros; returns the sequence number.

        ``no_hole``: the range is to have its space, now and later, so zeros are written like any other data; then
        ``length`` bytes of memory and journal are taken, and it is limited like that of a write. Else no space is.

        Raises: as `stage_write`.
        """
        if no_hole:
            return self.stage_write(volume, offset, memoryview(bytes(length)), carried)
        if self.write_error is not None or self.role is not Role.PRIMARY or volume.access != "read-write":
            raise self.refusal or ReadOnly(f"volume {volume.name} is read-only")
        if self._iov_size + HEADER_SIZE * (2 + length // MAX_RANGE) > self.journal.room:
            raise self._no_room(HEADER_SIZE)
        kind = Kind.TRIM if trim else Kind.ZEROES
        sequence = self._next
        for start in range(0, length, MAX_RANGE):
            time = max(self.write_time.stamp(self.clock(), carried), self.last_time)
            sequence = self._stage_record(kind, volume, offset + start, min(MAX_RANGE, length - start), time)
        if volume.pool.short:
            self.on_pressure()  # regions that were zeroed whole come back with a checkpoint
        return sequence

    def stage_tick(self, time: int, kind: Kind = Kind.TICK) -> int:
        """Stage a time tick or another silent record: nothing older than ``time`` (ns) will follow (spec §4.3)."""
        if self._iov_size + HEADER_SIZE > self.journal.room:
            raise self._no_room(HEADER_SIZE)
        self.ticks_written += 1
        return self._stage_record(kind, None, 0, 0, max(time, self.last_time))

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
        now, times = self.clock(), self.write_time
        pass_on, pass_on_tick = times.pass_on, times.pass_on_tick
        generation, incarnation, durable = self.generation, self.incarnation, self.acks.durable.reached
        pack, pack_crc, make = HEADER_BODY.pack, HEADER_CRC.pack, Entry._make
        iov, add, arrived = self._iov, self._received.append, arrivals.append
        room, size = self.journal.room, self._iov_size
        sequence, last_time, last_origin = self._next, self.last_time, self.last_origin
        ticks = 0
        try:
            for (origin, carried, kind, key, offset, length, _, data), (flags, data_crc) in zip(
                entries, seals, strict=True
            ):
                after = size + HEADER_SIZE + (0 if data is None else length)
                if after > room:
                    raise self._no_room(after - size)
                volume = check_received(self, kind, key, offset, length)
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
            self._iov_size, self._next, self.last_time, self.last_origin = size, sequence, last_time, last_origin
            self.ticks_written += ticks

    def _stage_record(self, kind: Kind, volume: Volume | None, offset: int, length: int, time: int) -> int:
        """Stage a record without data."""
        self._next += 1
        self.last_time = time
        key = 0 if volume is None else volume.key
        header = encode_header(
            kind,
            sequence=self._next,
            time=time,
            generation=self.generation,
            incarnation=self.incarnation,
            durable=self.acks.durable.reached,
            volume=key,
            offset=offset,
            length=length,
        )
        self._iov += (header, b"")
        self._iov_size += HEADER_SIZE
        if self.role is Role.PRIMARY:
            self._staged.append((volume, int(kind), offset, length, None))
        else:
            self._received.append(Entry(self._next, time, int(kind), key, offset, length, 0, None))
        return self._next

    def commit(self) -> None:
        """Journal what was staged since the last commit, with one write; then it is readable (at a primary).

        Raises:
            JournalFailed: none of it counts; the group takes no more writes.
        """
        staged, received = self._staged, self._received
        if not staged and not received:
            return
        iov, size = self._iov, self._iov_size
        first = self.last_seq + 1
        self._staged, self._received, self._iov, self._iov_size = [], [], [], 0
        try:
            self.journal.append(iov, size, first, self._next)
        except JournalFailed as error:
            self._next = self.last_seq
            origins = [entry.origin for entry in received if entry.origin]
            if origins:
                self.last_origin = origins[0] - 1  # it says what is here, and these are not
            self.acks.fail(error)
            raise
        self.last_seq = self._next
        self.bytes_written += size
        self.records_written += self._next + 1 - first
        for copy in self.fed:
            copy.note(staged, received)
        if self.role is Role.PRIMARY:
            cached = size
            for volume, _, offset, length, data in staged:
                if length == BLOCK and data is not None and volume is not None and not offset & BLOCK_MASK:
                    volume.layers.active[offset >> BLOCK_SHIFT] = data
                elif volume is not None:
                    cached += show(volume, offset, length, data)
            self.applied.sequence = self.last_seq
            self.applied.time = self.last_time
            self.layer_bytes += cached
            self.budget.used += cached
            if self.layer_bytes >= self.layer_limit:
                self.on_layer_full()
        else:
            self.pending.extend(received)
        if self.journal.rolled or self.journal.room < self._margin or self.budget.used >= self.budget.limit:
            self.update_accepting()
        self.acks.committed(self.last_seq)
        for listener in self.on_commit:
            listener()

    def stages(self, volume: Volume, low: int, high: int) -> bool:
        """Whether something is staged and not committed that touches bytes ``low`` to ``high`` of ``volume``.

        The disk regions it reserved must not be given back: nothing else shows yet that they are needed.
        """
        return any(
            staged is volume and offset < high and offset + length > low
            for staged, _, offset, length, *_ in self._staged
        )

    # ---- back-pressure -----------------------------------------------------

    def update_accepting(self) -> None:
        """Work out anew whether hosts may send writes, and wake those who waited."""
        refused = self.journal.failed is not None or self.write_error is not None
        if not self.journal.chain and not refused:
            self.accepting = False  # not recovered yet: which files are spare is not known
            return
        if not refused:
            self._prepare_room()
        ready = self.held is None and (refused or (not self.budget.full and self.journal.room >= self._margin))
        self.accepting = ready
        if self.budget.full:
            self.on_layer_full()
        if ready and self._accept_waiters:
            waiters, self._accept_waiters = self._accept_waiters, []
            for waiter in waiters:
                waiter()

    def _prepare_room(self) -> None:
        journal = self.journal
        if journal.rolled:
            journal.rolled = False
            if journal.half_full:
                self.on_pressure()
            elif not journal.spares:
                self.on_segment_begun()  # now, not when the next write needs it
        if journal.room < self._margin and not journal.prepare(self._margin):
            self.on_pressure()

    def when_accepting(self, waiter: Callable[[], None]) -> None:
        """Call ``waiter`` once hosts may send writes again."""
        if self.accepting:
            waiter()
        else:
            self._accept_waiters.append(waiter)

    def refuse_writes(self, error: RemoteCopyError | None) -> None:
        """Refuse host writes with ``error`` from now on; None takes them again, unless a disk does not."""
        self.refused = error
        self._refuse()

    def disk_failed(self, error: DiskFailed | None) -> None:
        """A disk does not take what is destaged: hosts get ``error``, nothing is applied. None: it does again."""
        self.disk_error = error
        self._refuse()

    def hold(self, error: RemoteCopyError) -> None:
        """Neither readable nor writable until a restart recovers it: what it would show cannot be trusted (I9)."""
        self.read_error = error
        self.release_cache()
        self._refuse()

    def begin_again(self) -> None:
        """Be as the catalogue has it, for another try at the recovery of a group that is held since the last one."""
        facts = self.facts
        self.last_seq = self._next = facts.destaged
        self.last_time, self.last_origin = facts.destaged_time, facts.destaged_origin
        self.applied = Applied(facts.destaged, facts.destaged_time, facts.destaged_origin)
        self._retention = _retention_of(facts)

    def let_go(self) -> None:
        """The recovery has ended well: readable and, if nothing else is in the way, writable from now on."""
        self.read_error = None
        self._refuse()

    def _refuse(self) -> None:
        self.write_error = self.refused or self.read_error or self.disk_error
        self.update_accepting()

    def release_cache(self, size: int = 0) -> None:
        """Leave what is cached, ``size`` bytes that are being destaged too, to this group's readers.

        It cannot be destaged, and other groups need not wait for the budget that it takes. It grows no more:
        hosts are refused, and the apply loop waits.
        """
        size, self.layer_bytes = size + self.layer_bytes, 0
        if size:
            self.budget.release(size)

    @property
    def overflowing(self) -> bool:
        """Whether the journal is full because a consumer has not got what it holds."""
        kept = self.kept_through()
        if self.read_error is not None or kept is None:
            return False  # a held group's journal is not known
        return self.journal.room < self._margin and kept < self.facts.destaged

    def _stop_waiting(self) -> None:
        """The journal failed: hosts that wait get the error."""
        self.release_cache()
        self.update_accepting()

    # ---- journal for peers ---------------------------------------------------

    def set_retention(self, consumer: str, acked: int | None) -> None:
        """Keep the journal above ``acked`` for ``consumer``; None: it needs nothing more."""
        if acked is None:
            self._retention.pop(consumer, None)
        else:
            self._retention[consumer] = acked
        self.journal.keep_tail = bool(self._retention)
        kept = self.kept_through()
        self.journal.trim_tail(self.last_seq if kept is None else kept)
        if not self.accepting:
            self.on_pressure()  # segments come back with a checkpoint, which must know first what is kept

    def kept_through(self) -> int | None:
        """Lowest number that all consumers have, or None without consumers."""
        return min(self._retention.values()) if self._retention else None

    def free_journal(self) -> None:
        """Recycle journal segments that neither recovery nor a consumer needs, as the last checkpoint knows them."""
        kept = self.kept_through()
        through = min(self.facts.retained, self.facts.destaged)
        if self.journal.free_through(through if kept is None else min(kept, through)):
            self.update_accepting()

    def read_journal(self, first: int, max_bytes: int) -> JournalRange | None:
        """Return whole records from ``first`` on for a peer, or None beyond the end.

        Raises:
            Trimmed, WouldBlock, Corrupt: see `Journal.read`.
        """
        return self.journal.read(first, max_bytes)

    async def read_journal_slow(self, first: int, max_bytes: int) -> JournalRange | None:
        """Like `read_journal`, waiting for the disk."""
        await asyncio.sleep(0)
        return self.journal.read(first, max_bytes, wait=True)

    # ---- secondary side -------------------------------------------------------

    def append_received(self, raw: Buffer, entries: Sequence[Entry]) -> None:
        """Journal records of an asynchronous primary as they are: same bytes, numbers and times (spec §4.2).

        ``entries`` describe the records in ``raw`` in order; the first is ``last_seq + 1``.

        Raises:
            NoSpace: a pool has no room; nothing was appended.
            Corrupt: a record does not fit the group; nothing was appended.
            JournalFailed: the journal is unusable.
        """
        expected = self.last_seq
        latest = self.last_time
        ticks = 0
        for sequence, time, kind, key, offset, length, _, _ in entries:
            expected += 1
            if sequence != expected or time < latest:
                raise Corrupt(
                    f"group {self.name}: received record {sequence} at {time} ns after {expected - 1} at {latest} ns"
                )
            latest = time
            volume = check_received(self, kind, key, offset, length)
            if volume is not None:
                reserve(volume, kind, offset, length)
            else:
                ticks += 1
        view = memoryview(raw)
        if len(view) + HEADER_SIZE > self.journal.room and not self.journal.prepare(len(view) + HEADER_SIZE):
            self.on_pressure()
            raise Busy(f"journal of group {self.name} is full")
        note = encode_header(
            Kind.NOTE, sequence=self.last_seq, time=self.last_time, generation=self.generation, incarnation=0,
            durable=self.acks.durable.reached,
        )  # fmt: skip
        try:
            self.journal.append([note, view], len(view) + HEADER_SIZE, self.last_seq + 1, expected, pairs=False)
        except JournalFailed as error:
            self.acks.fail(error)
            raise
        self.records_written += expected - self.last_seq
        self.ticks_written += ticks
        self.last_seq = self._next = expected
        self.last_time = latest
        self.bytes_written += len(view)
        self.pending.extend(entries)
        self.write_time.observe(self.last_time)
        self.acks.journaled = expected
        if self.journal.rolled or self.journal.room < self._margin:
            self.update_accepting()
        for listener in self.on_commit:
            listener()

    def apply_through(self, sequence: int) -> int:
        """Make pending records up to ``sequence`` visible; returns how many.

        Raises:
            NoSpace, Corrupt: see `Applied.apply`; what was applied before stays applied.
        """
        applied = self.applied
        try:
            return applied.apply(self.volumes, self.pending, self.journal, sequence)
        finally:
            self.layer_bytes += applied.taken
            self.budget.used += applied.taken
            applied.taken = 0
            if self.layer_bytes >= self.layer_limit or self.budget.full:
                self.on_layer_full()

    def close_reads(self) -> None:
        """Let reads of all volumes wait until `open_reads`; see `Volume.close_reads`."""
        for volume in self.volumes.values():
            volume.close_reads()

    def open_reads(self) -> None:
        """Let reads go on."""
        for volume in self.volumes.values():
            volume.open_reads()

    @property
    def apply_room(self) -> bool:
        """Whether the cache takes more applied records now; the budget's listeners hear when it does again."""
        return not self.budget.full

    # ---- checkpoint and recovery ----------------------------------------------

    def recover_record(self, record: Record, *, visible: bool) -> None:
        """Redo one journaled record (recovery, in order), ``visible`` or pending for the apply loop."""
        volume = check_received(self, record.kind, record.volume, record.offset, record.length)
        self.last_seq = self._next = record.sequence
        self.last_time = record.time
        self.last_origin = max(self.last_origin, record.origin)
        if volume is not None:
            reserve(volume, record.kind, record.offset, record.length)
        if not visible:
            self.pending.append_record(record)
            return
        made = 0
        if volume is not None:
            data = record.data if record.kind == Kind.WRITE else None
            made = show(volume, record.offset, record.length, data)
        applied = self.applied
        applied.sequence, applied.time, applied.origin = record.sequence, record.time, self.last_origin
        self.layer_bytes += record.size + made
        self.budget.used += record.size + made

    def end_recovery(self) -> None:
        """Everything the scan found is durable now; go on behind it in a new incarnation."""
        reached = self.journal.last
        self.last_seq = self._next = reached
        self.acks.recovered(reached)
        self.write_time.observe(self.last_time)
        self.journal.incarnation = self.incarnation
        self.journal.begin_segment()

    @property
    def applied_mark(self) -> tuple[int, int, int]:
        """(sequence, time, origin) of what is visible now."""
        applied = self.applied
        origin = self.last_origin if self.role is Role.PRIMARY else applied.origin
        return applied.sequence, applied.time, origin

    def checkpointed(self, mark: tuple[int, int, int], retained: int) -> None:
        """The catalogue has ``mark`` and ``retained`` durably: recovery needs nothing below both any more."""
        self.facts.destaged, self.facts.destaged_time, self.facts.destaged_origin = mark
        self.facts.retained = retained
        self.journal.release_retired()
        self.free_journal()

    def document(self, mark: tuple[int, int, int] | None = None) -> dict[str, Any]:
        """The group as the catalogue keeps it, destaged up to ``mark`` (default: the last checkpoint)."""
        facts = self.facts
        destaged, time, origin = mark or (facts.destaged, facts.destaged_time, facts.destaged_origin)
        return {
            "group_id": facts.group_id,
            "durability": facts.durability,
            "overflow": facts.overflow,
            "journal_bytes": facts.journal_bytes,
            "role": self.role.value,
            "numbered_here": facts.numbered_here,
            "generation": self.generation,
            "incarnations": [list(item) for item in facts.incarnations],
            "destaged": destaged,
            "destaged_time": time,
            "destaged_origin": origin,
            # A held group's journal is not known, so what its consumers say they need may long be gone from it.
            "retained": facts.retained if self.read_error else min([*self._retention.values(), destaged]),
            "start_ordinal": facts.start_ordinal,
            "bytes_written": self.bytes_written,
        }

    def restart(
        self, *, role: Role, generation: int, last_seq: int, last_origin: int, last_time: int, numbered_here: bool
    ) -> None:
        """Begin a new journal: the next record is ``last_seq + 1``.

        The caller has taken a checkpoint first, so that recovery needs nothing of the old
        journal, and takes another with this as its change.

        Raises:
            JournalFailed: no new segment could be begun.
        """
        incarnation = self.incarnation + 1
        self.facts.start_ordinal = self.journal.reset(last_seq, incarnation)
        self.facts.incarnations = [(last_seq + 1, incarnation)]
        self.pending.clear()
        self.role = role
        self.generation = generation
        self.last_seq = self._next = last_seq
        self.last_origin = last_origin
        self.last_time = max(self.last_time, last_time) if role is Role.PRIMARY else last_time
        self.applied = Applied(last_seq, self.last_time, last_origin)
        self.facts.numbered_here = numbered_here
        self.destaged_mark = (last_seq, self.last_time, last_origin)
        self._retention.clear()
        self.acks.restart(last_seq)
        self.update_accepting()

    def change_role(self, role: Role, last_origin: int | None) -> None:
        """Change the role in place: journal, numbers and consumers stay (synchronous secondaries).

        The caller has made everything visible before a group becomes primary, and takes a
        checkpoint with this as its change.
        """
        self.role = role
        if last_origin is not None:
            self.last_origin = self.applied.origin = last_origin
            self.destaged_mark = (self.destaged_mark[0], self.destaged_mark[1], last_origin)
        self.update_accepting()

    def add_volume(self, volume: Volume) -> None:
        """Take a volume into the group.

        Raises:
            BadOrder: its key is taken in this group.
        """
        if volume.key in self.volumes:
            raise BadOrder(f"group {self.name} has a volume with key {volume.key:#x} already")
        self.volumes[volume.key] = volume

    def close(self) -> None:
        """Leave the budget; the journal's files are closed."""
        self.budget.ignore(self.update_accepting)
        self.journal.close()


def _retention_of(facts: GroupFacts) -> dict[str, int]:
    """Until the pairs are loaded again, what they had not got is kept for them."""
    return {RECOVERED: facts.retained} if facts.retained < facts.destaged else {}


def _nothing() -> None:
    return None


def fresh_group_id(taken: set[int]) -> int:
    """Return the lowest group id that is not taken."""
    return next(number for number in itertools.count(1) if number not in taken)
