"""Volume group: numbers, times, journals and acknowledges the writes of its volumes.

Owns: the group's sequence numbers and its journal, and what its role lets hosts and peers
do. One *pass* of a host connection or transfer path stages many writes, commits them with
one journal write, and then answers (architecture §2). The other duties are its parts':
acknowledge.py, back_pressure.py, faults.py, reception.py, retention.py.
Never: talks to hosts or peers, or writes to disks (the destager does).

What a reader would get wrong: at a primary a write is visible when its commit
returns. At a secondary it is pending until the apply loop says otherwise, so that
hosts see one cut over all groups (spec §5.1).

Source: RC ¶26-31 (numbers, times, acknowledge before destage and transfer), fig. 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from crc32c import crc32c
from typing_extensions import Buffer

from controllerd.model.errors import (
    BadOrder,
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
    encode_header,
)
from controllerd.model.write_time import WriteTime
from controllerd.storage.acknowledge import Acknowledgement, Durability
from controllerd.storage.back_pressure import BackPressure
from controllerd.storage.budget import CacheBudget
from controllerd.storage.differences import Differences
from controllerd.storage.faults import Faults
from controllerd.storage.group_facts import GroupFacts
from controllerd.storage.journal import Journal
from controllerd.storage.journal_ranges import JournalRange
from controllerd.storage.layers import BLOCK, BLOCK_MASK, BLOCK_SHIFT
from controllerd.storage.pending import Entry, Pending
from controllerd.storage.received import Applied, show
from controllerd.storage.reception import Reception
from controllerd.storage.retention import Retention
from controllerd.storage.volume import Volume

_PRIMARY: Final = Role.PRIMARY  # looking a member up in its class takes 0.1 us with Python 3.11
_WRITE: Final = int(Kind.WRITE)
_HOST_TIME: Final = int(Flag.HOST_TIME)


class Group:
    """One volume group. Sequence numbers begin with 1 and have no gaps (RC ¶26)."""

    def __init__(  # noqa: PLR0915 - it names all that a group has, and which part does what
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
        self.margin = min(max_request_bytes + (max_request_bytes >> 4), facts.journal_bytes // 4)
        self.staged_seq = self.last_seq
        """Number of the newest record that is staged or journaled."""
        self.iov: list[Buffer] = []
        self.iov_size = 0
        self._staged: list[tuple[Volume | None, int, int, int, memoryview | None]] = []
        self.received: list[Entry] = []
        """What is staged at a secondary, instead of ``_staged``."""
        self.acks = acks = Acknowledgement(journal, facts.durability, self.last_seq)
        self.when_complete = acks.when_complete
        self.when_flushed = acks.when_flushed
        self.when_durable = acks.when_durable
        self.make_durable = acks.make_durable
        acks.on_failed = self._stop_waiting
        self.set_mirror = acks.set_mirror
        self.mirror_progress = acks.mirror_progress
        self.fail_waiting = acks.fail_waiting
        self.retention = retention = Retention(self)
        self.set_retention, self.kept_through, self.free_journal = retention.keep, retention.through, retention.free
        faults = Faults(self)
        self.describe_fault, self.name_fault, self.say = faults.describe, faults.name, faults.say
        self.refuse_writes, self.disk_failed = faults.refuse_writes, faults.disk_failed
        self.hold, self.let_go = faults.hold, faults.let_go
        gate = BackPressure(self)
        self.update_accepting, self.when_accepting = gate.update, gate.when_accepting
        reception = Reception(self)
        self.append_received, self.stage_upstream = reception.append, reception.stage_upstream
        self.apply_through = reception.apply
        self.read_journal = journal.read
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

    @property
    def broken(self) -> RemoteCopyError | None:
        """Why the group's own storage does not work, or None: it is held, or its journal or a disk takes nothing."""
        return self.read_error or self.journal.failed or self.disk_error

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
        if self.write_error is not None or self.role is not _PRIMARY or volume.access != "read-write":
            raise self.refusal or ReadOnly(f"volume {volume.name} is read-only")
        size = length + HEADER_SIZE
        if length > MAX_DATA:
            return self._stage_long(volume, offset, data, carried)
        if self.iov_size + size > self.journal.room:
            raise self.no_room(size)
        shift = volume.shift
        first = offset >> shift
        last = (offset + length - 1) >> shift
        if not volume.map[first] or (last != first and 0 in volume.map[first + 1 : last + 1]):
            volume.reserve(first, last)
        time = self.write_time.stamp(self.clock(), carried)
        if time < self.last_time:
            time = self.last_time
        self.last_time = time
        self.staged_seq = sequence = self.staged_seq + 1
        data_crc = crc32c(data)
        body = HEADER_BODY.pack(
            MAGIC, VERSION, _WRITE, 0 if carried is None else _HOST_TIME,
            self.generation, self.facts.incarnations[-1][1],
            data_crc, volume.key, length, sequence, time, self.acks.durable.reached, offset, 0, 0,
        )  # fmt: skip
        self.iov += (body + HEADER_CRC.pack(crc32c(body)), data)
        self.iov_size += size
        self._staged.append((volume, _WRITE, offset, length, data))
        return sequence

    def _stage_long(self, volume: Volume, offset: int, data: memoryview, carried: int | None) -> int:
        length = len(data)
        records = (length + MAX_DATA - 1) // MAX_DATA
        if self.iov_size + length + records * HEADER_SIZE > self.journal.room:
            raise self.no_room(length)
        volume.reserve(offset >> volume.shift, (offset + length - 1) >> volume.shift)
        sequence = self.staged_seq
        for start in range(0, length, MAX_DATA):
            sequence = self.stage_write(volume, offset + start, data[start : start + MAX_DATA], carried)
        return sequence

    def no_room(self, size: int) -> NoSpace:
        """What is said when ``size`` bytes cannot be staged."""
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
        if self.write_error is not None or self.role is not _PRIMARY or volume.access != "read-write":
            raise self.refusal or ReadOnly(f"volume {volume.name} is read-only")
        if self.iov_size + HEADER_SIZE * (2 + length // MAX_RANGE) > self.journal.room:
            raise self.no_room(HEADER_SIZE)
        kind = Kind.TRIM if trim else Kind.ZEROES
        sequence = self.staged_seq
        for start in range(0, length, MAX_RANGE):
            time = max(self.write_time.stamp(self.clock(), carried), self.last_time)
            sequence = self._stage_record(kind, volume, offset + start, min(MAX_RANGE, length - start), time)
        if volume.pool.short:
            self.on_pressure()  # regions that were zeroed whole come back with a checkpoint
        return sequence

    def stage_tick(self, time: int, kind: Kind = Kind.TICK) -> int:
        """Stage a time tick or another silent record: nothing older than ``time`` (ns) will follow (spec §4.3)."""
        if self.iov_size + HEADER_SIZE > self.journal.room:
            raise self.no_room(HEADER_SIZE)
        self.ticks_written += 1
        return self._stage_record(kind, None, 0, 0, max(time, self.last_time))

    def _stage_record(self, kind: Kind, volume: Volume | None, offset: int, length: int, time: int) -> int:
        """Stage a record without data."""
        self.staged_seq += 1
        self.last_time = time
        key = 0 if volume is None else volume.key
        header = encode_header(
            kind,
            sequence=self.staged_seq,
            time=time,
            generation=self.generation,
            incarnation=self.incarnation,
            durable=self.acks.durable.reached,
            volume=key,
            offset=offset,
            length=length,
        )
        self.iov += (header, b"")
        self.iov_size += HEADER_SIZE
        if self.role is _PRIMARY:
            self._staged.append((volume, int(kind), offset, length, None))
        else:
            self.received.append(Entry(self.staged_seq, time, int(kind), key, offset, length, 0, None))
        return self.staged_seq

    def commit(self) -> None:
        """Journal what was staged since the last commit, with one write; then it is readable (at a primary).

        Raises:
            JournalFailed: none of it counts; the group takes no more writes.
        """
        staged, received = self._staged, self.received
        if not staged and not received:
            return
        iov, size = self.iov, self.iov_size
        first = self.last_seq + 1
        self._staged, self.received, self.iov, self.iov_size = [], [], [], 0
        try:
            self.journal.append(iov, size, first, self.staged_seq)
        except JournalFailed as error:
            self.staged_seq = self.last_seq
            origins = [entry.origin for entry in received if entry.origin]
            if origins:
                self.last_origin = origins[0] - 1  # it says what is here, and these are not
            self.acks.fail(error)
            raise
        self.last_seq = self.staged_seq
        self.bytes_written += size
        self.records_written += self.staged_seq + 1 - first
        for copy in self.fed:
            copy.note(staged, received)
        if self.role is _PRIMARY:
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
        if self.journal.rolled or self.journal.room < self.margin or self.budget.used >= self.budget.limit:
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
        return self.journal.room < self.margin and kept < self.facts.destaged

    def _stop_waiting(self) -> None:
        """The journal failed: hosts that wait get the error."""
        self.release_cache()
        self.update_accepting()

    # ---- journal for peers ---------------------------------------------------

    async def read_journal_slow(self, first: int, max_bytes: int) -> JournalRange | None:
        """Like `read_journal`, waiting for the disk."""
        await asyncio.sleep(0)
        return self.journal.read(first, max_bytes, wait=True)

    # ---- secondary side -------------------------------------------------------

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

    @property
    def applied_mark(self) -> tuple[int, int, int]:
        """(sequence, time, origin) of what is visible now."""
        applied = self.applied
        origin = self.last_origin if self.role is _PRIMARY else applied.origin
        return applied.sequence, applied.time, origin

    def checkpointed(self, mark: tuple[int, int, int], retained: int) -> None:
        """The catalogue has ``mark`` and ``retained`` durably: recovery needs nothing below both any more."""
        self.facts.destaged, self.facts.destaged_time, self.facts.destaged_origin = mark
        self.facts.retained = retained
        self.journal.release_retired()
        self.free_journal()

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


def _nothing() -> None:
    return None
