"""Intake: what a secondary group does with the records that arrive for it.

Owns: checking, journaling and making durable what arrives, on an asynchronous leg
(`AsyncIntake`: same numbers as the primary's) and on a synchronous one (`SyncIntake`:
own numbers, RC ¶57-59); and feeding the apply loop with what is durable.
Never: opens connections or sends; `Receiver` does, and asks here what to acknowledge.

All numbers in the interface are the primary's.

What a reader would get wrong: only durable records reach the apply loop, in both modes.
What is visible can reach a disk, and then a power cut must not take away a record of
another group that the same cut needs (architecture §4).

Source: RC ¶34-39, ¶45, ¶57-60; spec §4.2, §4.4; invariants I2, I5, F25.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from controllerd.model.apply_plan import Pending
from controllerd.model.arrival import Arrival
from controllerd.model.errors import Busy, Corrupt, NoSpace, RemoteCopyError
from controllerd.model.records import SILENT_KINDS, Kind
from controllerd.replication.batch import Batch, parse_batch_untrusted
from controllerd.replication.frames import MAX_DATA_PAYLOAD, Frame
from controllerd.replication.ports import GroupPort
from controllerd.replication.tally import Tally
from controllerd.storage.pending import Entry

RETRY_S: Final = 0.25
"""Wait before a record is tried again that found no room."""
SYNC_BYTES: Final = 4 << 20
"""Synchronous leg: bytes journaled after which a sync begins without being asked for."""


def _first_hidden(group: GroupPort) -> Entry | None:
    """The oldest write of the group that is pending: every record before it is visible, or shows nothing."""
    return next((entry for entry in group.pending if entry.kind not in SILENT_KINDS), None)


class IntakeEvents(Protocol):
    """Who is told what becomes of the records."""

    def progressed(self) -> None:
        """There is something new to acknowledge."""

    def received_run(self, first: int, incarnation: int) -> None:
        """Records from ``first`` on are of another run of the primary; kept durably before they are journaled."""

    def arrived(self, records: list[Pending]) -> None:
        """Records (own numbers) are durable: the apply loop may use them."""

    def gap_reported(self, reason: str) -> None:
        """The session has to ask again from `Intake.next_seq`."""

    def failed(self, error: RemoteCopyError) -> None:
        """The pair cannot go on."""

    def stalled(self, error: RemoteCopyError | None) -> None:
        """Nothing can be journaled for now; None: it goes on."""


class Intake(Protocol):
    """What a receiver needs to know of either mode."""

    received_bytes: int
    """Payload bytes taken from connections in this session."""

    @property
    def next_seq(self) -> int: ...
    @property
    def received_seq(self) -> int: ...
    @property
    def durable_seq(self) -> int: ...
    @property
    def applied_seq(self) -> int:
        """Every write up to here is visible (ticks show nothing, applied or not)."""

    def tally(self) -> Tally:
        """What has arrived without gaps, counted from this side's base."""

    @property
    def held_bytes(self) -> int:
        """Payload bytes taken and not yet durable."""

    def begin_session(self) -> None:
        """Forget what is not journaled: it is sent again."""

    def take_untrusted(self, frame: Frame, generation: int) -> None:
        """Take a DATA frame; `journal` has to follow.

        Raises:
            Corrupt: it is damaged or contradicts itself; the session has to ask again.
        """

    def journal(self) -> None:
        """Journal what was taken: all frames that came together with one write, one sync and one answer."""

    def sync(self) -> None:
        """Make durable what is journaled, now."""

    def settle(self) -> None:
        """Hand on what has become durable, without waiting for the callback (takeover)."""

    def missing_since(self) -> int | None:
        """First number of the gap that holds frames up, or None."""

    def close(self) -> None:
        """Take, sync and report nothing more: the group is no secondary any longer."""


class AsyncIntake:
    """Journals the primary's records as they are. ``window_bytes`` bounds what is held in front of a gap."""

    def __init__(self, group: GroupPort, events: IntakeEvents, window_bytes: int) -> None:
        self.received_bytes = 0
        self.duplicates = 0
        self._group = group
        self._events = events
        self._limit = window_bytes + MAX_DATA_PAYLOAD
        self._arrival: Arrival[Batch] = Arrival(group.last_seq + 1, self._limit)
        self._queue: deque[Batch] = deque()
        self._queued_bytes = 0
        self._undurable: deque[Batch] = deque()
        self._undurable_bytes = 0
        self._waiting = False
        self._closed = False
        self._retry: asyncio.TimerHandle | None = None
        self._incarnation = 0

    @property
    def next_seq(self) -> int:
        return self._group.last_seq + 1

    @property
    def received_seq(self) -> int:
        return self._group.last_seq

    @property
    def durable_seq(self) -> int:
        return self._group.durable_seq

    @property
    def applied_seq(self) -> int:
        hidden, durable = _first_hidden(self._group), self._group.durable_seq
        return durable if hidden is None else min(durable, hidden.sequence - 1)

    def tally(self) -> Tally:
        return Tally(self.next_seq - 1, self._group.writes_total, self._group.data_total)

    @property
    def held_bytes(self) -> int:
        return self._arrival.held_bytes + self._queued_bytes + self._undurable_bytes

    def begin_session(self) -> None:
        self.received_bytes = 0
        self._queue.clear()
        self._queued_bytes = 0
        self._incarnation = 0
        self._arrival = Arrival(self.next_seq, self._limit)

    def take_untrusted(self, frame: Frame, generation: int) -> None:
        batch = parse_batch_untrusted(frame.payload, frame.first, frame.records, generation)
        size = len(frame.payload)
        self.received_bytes += size
        arrival = self._arrival
        for ready in arrival.offer(batch.first, batch.last, size, batch):
            self._queue.append(ready)
            self._queued_bytes += len(ready.raw)
        self.duplicates = arrival.duplicates
        if arrival.ask_again:
            arrival.ask_again = False
            self._events.gap_reported("a frame overlaps what is here already")

    def journal(self) -> None:
        if self._queue and self._retry is None:
            self._drain()

    def missing_since(self) -> int | None:
        gap = self._arrival.gap()
        return None if gap is None else gap[0]

    def _drain(self) -> None:
        self._retry = None
        try:
            self._journal_queue()
        finally:
            self.sync()  # room may come only of what these records let be shown

    def _journal_queue(self) -> None:
        group, queue = self._group, self._queue
        while queue:
            batch = queue[0]
            try:
                for first, incarnation in batch.runs:
                    if incarnation != self._incarnation:
                        self._events.received_run(first, incarnation)
                        self._incarnation = incarnation
                group.append_received(batch.raw, batch.entries)
            except (Busy, NoSpace) as error:
                self._events.stalled(error)
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._drain)
                return
            except RemoteCopyError as error:
                queue.clear()
                self._events.failed(error)
                return
            queue.popleft()
            size = len(batch.raw)
            self._queued_bytes -= size
            self._undurable.append(batch)
            self._undurable_bytes += size
        self._events.stalled(None)

    def close(self) -> None:
        self._closed = True
        self.begin_session()
        if self._retry is not None:
            self._retry.cancel()

    def sync(self) -> None:
        if not self._waiting and self._undurable:
            self._waiting = True
            self._group.when_durable(self._undurable[-1].last, self._now_durable)

    def _now_durable(self, error: RemoteCopyError | None) -> None:
        self._waiting = False
        if self._closed:
            return
        if error is not None:
            self._events.failed(error)
            return
        self.settle()
        self._events.progressed()
        self.sync()

    def settle(self) -> None:
        durable, undurable = self._group.durable_seq, self._undurable
        while undurable and undurable[0].last <= durable:
            batch = undurable.popleft()
            self._undurable_bytes -= len(batch.raw)
            self._events.arrived(batch.arrivals)


class SyncIntake:
    """Journals the primary's records under own numbers; ``interval_s``: longest time without a journal sync.

    Acknowledged is what is journaled, or what is durable if the group's durability is ``stable``.
    """

    def __init__(self, group: GroupPort, events: IntakeEvents, interval_s: float) -> None:
        self.received_bytes = 0
        self._group = group
        self._events = events
        self._interval_s = interval_s
        self._queue: deque[Batch] = deque()
        self._queued_bytes = 0
        self._marks: deque[tuple[int, int, int, list[Pending]]] = deque()  # own number, origin, bytes, arrivals
        self._undurable_bytes = 0
        self._durable_origin = group.last_origin
        self._waiting = False
        self._closed = False
        self._sync_again = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._incarnation = 0
        self._expected = group.last_origin + 1

    @property
    def next_seq(self) -> int:
        return self._group.last_origin + 1

    @property
    def received_seq(self) -> int:
        if self._group.durability == "stable":
            return self._durable_origin
        return self._group.last_origin

    @property
    def durable_seq(self) -> int:
        return self._durable_origin

    @property
    def applied_seq(self) -> int:
        hidden, durable = _first_hidden(self._group), self._durable_origin
        return durable if hidden is None else min(durable, hidden.origin - 1)

    def tally(self) -> Tally:
        return Tally(self.next_seq - 1, self._group.writes_total, self._group.data_total)

    @property
    def held_bytes(self) -> int:
        return self._queued_bytes + self._undurable_bytes

    def begin_session(self) -> None:
        self.received_bytes = 0
        self._queue.clear()
        self._queued_bytes = 0
        self._incarnation = 0
        self._expected = self.next_seq
        if not self._marks:
            self._durable_origin = self._group.last_origin

    def missing_since(self) -> int | None:
        return None

    def take_untrusted(self, frame: Frame, generation: int) -> None:
        self.received_bytes += len(frame.payload)
        if frame.first > self._expected:
            raise Corrupt(f"frame from record {frame.first} on where {self._expected} has to come")
        batch = parse_batch_untrusted(frame.payload, frame.first, frame.records, generation)
        self._expected = max(self._expected, batch.last + 1)
        self._queue.append(batch)
        self._queued_bytes += len(batch.raw)

    def journal(self) -> None:
        if self._queue and self._retry is None:
            self._drain()

    def _drain(self) -> None:
        self._retry = None
        group, queue = self._group, self._queue
        arrivals: list[Pending] = []
        size = 0
        stalled: RemoteCopyError | None = None
        try:
            while queue:
                batch = queue[0]
                here = group.last_origin + 1 - batch.first  # so many of it are here already (I2)
                if batch.last > group.last_origin:
                    self._note_runs(batch, group.last_origin + 1)
                    entries, seals = batch.entries, batch.seals
                    if here > 0:
                        entries, seals = entries[here:], seals[here:]
                    group.stage_upstream(entries, seals, arrivals)
                queue.popleft()
                size += len(batch.raw)
        except (Busy, NoSpace) as error:
            stalled = error
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._drain)
        except RemoteCopyError as error:
            queue.clear()
            self._events.failed(error)
        try:
            group.commit()
        except RemoteCopyError as error:
            queue.clear()
            self._events.failed(error)
            return
        self._queued_bytes -= size
        if arrivals:
            self._marks.append((arrivals[-1][1], group.last_origin, size, arrivals))
            self._undurable_bytes += size
        self._events.stalled(stalled)
        if group.durability == "stable" or self._undurable_bytes >= SYNC_BYTES:
            self.sync()
        elif self._timer is None and self._marks:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._interval_over)
        self._events.progressed()

    def _note_runs(self, batch: Batch, needed: int) -> None:
        """Report the runs of the primary in the part of ``batch`` from record ``needed`` on."""
        for index, (first, incarnation) in enumerate(batch.runs):
            end = batch.runs[index + 1][0] if index + 1 < len(batch.runs) else batch.last + 1
            if incarnation != self._incarnation and end > needed:
                self._events.received_run(max(first, needed), incarnation)
                self._incarnation = incarnation

    def local_tick(self, time: int, kind: Kind = Kind.TICK) -> None:
        """The upstream link is down: promise downstream that nothing older than ``time`` follows (spec §4.3).

        ``kind``: of the record that says so, DOUBT or SURE around what is sent again after a power loss.
        """
        sequence = self._group.stage_tick(time, kind)
        self._group.commit()
        self._marks.append((sequence, self._group.last_origin, 0, [(self._group.last_time, sequence, int(kind))]))
        self.sync()

    def _interval_over(self) -> None:
        self._timer = None
        self.sync()

    def close(self) -> None:
        self._closed = True
        self.begin_session()
        for timer in (self._retry, self._timer):
            if timer is not None:
                timer.cancel()

    def sync(self) -> None:
        if self._waiting:
            self._sync_again = True
        elif self._marks:
            self._waiting = True
            self._sync_again = False
            self._group.when_durable(self._marks[-1][0], self._now_durable)

    def _now_durable(self, error: RemoteCopyError | None) -> None:
        self._waiting = False
        if self._closed:
            return
        if error is not None:
            self._events.failed(error)
            return
        self.settle()
        if self._sync_again or self._group.durability == "stable":
            self.sync()
        elif self._marks and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._interval_over)
        self._events.progressed()

    def settle(self) -> None:
        durable, marks = self._group.durable_seq, self._marks
        while marks and marks[0][0] <= durable:
            _, self._durable_origin, size, arrivals = marks.popleft()
            self._undurable_bytes -= size
            self._events.arrived(arrivals)
