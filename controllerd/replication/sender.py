"""Sender: the primary's side of the transfer path of one pair.

Owns: the session with the secondary, which records it was sent, its credit, and what it
said it has.
Never: changes the pair's state or the group's mirror; it tells `SenderEvents`.

A session is what one run of the receiver makes: one *epoch*, several connections, one
position, one credit. A new epoch takes the place of the old one, whose connections are
closed and can never come back (F25).

What a reader would get wrong: the journal is kept above what the secondary has
*durably*, whatever else it acknowledged (spec §4.2).

Source: RC ¶30-31, ¶39, ¶48; spec §4.1-4.2; architecture §6.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from controllerd.model.errors import Corrupt, DiskFailed, RemoteCopyError, Trimmed, WouldBlock
from controllerd.model.lag import LagClock
from controllerd.replication.frames import Frame, FrameError, FrameType, encode_data_header, encode_frame
from controllerd.replication.links import Link
from controllerd.replication.messages import (
    Ack,
    Heartbeat,
    Notice,
    Pull,
    Refuse,
    RefuseCode,
    decode_ack_untrusted,
)
from controllerd.replication.ports import GroupPort, RangePort
from controllerd.replication.tally import Tallies, Tally

FRAME_BYTES: Final = 1 << 20
"""Bytes of records asked of the journal for one frame."""


class SenderEvents(Protocol):
    """Who is told what happens on the transfer path."""

    def acknowledged(self, ack: Ack) -> None:
        """The secondary says what it has."""

    def session_changed(self) -> None:
        """A session began or ended."""

    def failed(self, error: RemoteCopyError) -> None:
        """The pair cannot go on (records no longer kept, or unreadable)."""

    def noticed(self, notice: Notice) -> None:
        """The secondary changed the pair."""

    def damaged(self, what: str) -> None:
        """Damaged data came from the secondary."""


@dataclass(frozen=True, slots=True)
class Source:
    """How old what this side has is, if it is a copy itself; the fields are those of `Heartbeat`."""

    behind_ns: int = 0
    limit_time: int = 0
    remark: str = ""


class Session:
    """One epoch of one secondary."""

    def __init__(self, epoch: int, generation: int, next_seq: int, credit: int) -> None:
        self.epoch = epoch
        self.generation = generation
        self.next_seq = next_seq
        self.credit = credit
        self.sent_bytes = 0
        self.links: list[Link] = []
        self.turn = itertools.count()

    def writable_link(self) -> Link | None:
        """The next connection in turn whose send buffer is not full."""
        links = self.links
        start = next(self.turn)
        for index in range(len(links)):
            link = links[(start + index) % len(links)]
            if link.writable and not link.closed:
                return link
        return None


class Sender:
    """Sends the journal of ``group`` to the secondary of pair ``pair_id``, which was ``created`` then (wall ns)."""

    def __init__(
        self,
        pair_id: str,
        group: GroupPort,
        events: SenderEvents,
        clock: Callable[[], int],
        report_lag_s: float,
        source: Callable[[], Source],
        created: int,
    ) -> None:
        self.consumer = f"pair {pair_id}"
        """Name under which the group keeps its journal for this pair."""
        self.group = group
        self.session: Session | None = None
        self.epoch = 0
        """Newest session epoch seen; an older one is refused."""
        self.ack = Ack(0, 0, 0, 0, 0)
        self.said: Ack | None = None
        """What the secondary acknowledged last, of this run or an earlier one; None: not known. For people only."""
        self.tick_wanted = False
        self.lag = LagClock(report_lag_s)
        self.connected_since: int | None = None
        self.last_contact: int | None = None
        self.sent_frames = 0
        self.corrupt_frames = 0
        self.reason = "not connected yet"
        """Why the last session ended, for people."""
        self._events = events
        self._clock = clock
        self._source = source
        self._created = created
        self._scheduled = False
        self._reading: asyncio.Task[None] | None = None
        self._tallies = Tallies()
        group.on_commit.append(self.wake)

    def stop(self, reason: str) -> None:
        """End the session and listen to the group no more."""
        self.group.on_commit.remove(self.wake)
        self.drop(reason)

    # ---- session -------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a secondary is being sent to."""
        return self.session is not None

    @property
    def transferred_seq(self) -> int | None:
        """Last number handed to a connection; what was sent and lost is sent again. None: not known."""
        if self.session is not None:
            return self.session.next_seq - 1
        return None if self.said is None else self.said.received

    def attach(self, link: Link, pull: Pull, start_seq: int) -> None:
        """Take over a connection whose PULL was accepted; it is sent records from the next iteration on."""
        session = self.session
        if session is None or session.epoch != pull.epoch:
            self.drop("a newer session took its place")
            self.epoch = pull.epoch
            session = self.session = Session(
                pull.epoch, pull.generation, max(pull.next_seq, start_seq + 1), pull.credit
            )
            self.connected_since = self._clock()
            journaled = session.next_seq - 1
            # A position is no confirmation: a stable mirror has journaled more than it may confirm (I4).
            received = min(journaled, max(self.ack.received, pull.durable_seq, start_seq))
            durable = min(max(self.ack.durable, pull.durable_seq), received)
            self.ack = Ack(received, durable, min(self.ack.applied, received), 0, pull.credit)
            self.group.set_retention(self.consumer, max(start_seq, self.ack.durable))
        session.links.append(link)
        link.on_frames = self._frames
        link.on_lost = self._lost
        link.on_writable = self.wake
        self.last_contact = self._clock()
        self._events.session_changed()
        self.wake()

    def check_epoch(self, pull: Pull) -> Refuse | None:
        """Why a PULL cannot join a session, or None."""
        stale = pull.epoch < self.epoch or (
            # The session of this epoch is over: its other connections are late.
            pull.epoch == self.epoch and self.session is None
        )
        if stale:
            return Refuse(RefuseCode.STALE_EPOCH, f"session epoch {pull.epoch} is over", "", self.epoch)
        return None

    def drop(self, reason: str, farewell: bytes = b"") -> None:
        """End the session. ``farewell`` is a frame sent on each connection first."""
        session, self.session = self.session, None
        if session is None:
            return
        self.reason = reason
        self.note()
        for link in session.links:
            link.on_lost = _ignore
            link.on_frames = _ignore_frames
            if farewell:
                link.send(farewell)
            link.close(reason)
        self.connected_since = None
        self.lag.cut()
        self._events.session_changed()

    def _lost(self, link: Link, reason: str) -> None:
        if link.damaged:
            self.corrupt_frames += 1
            self._events.damaged(reason)
        if self.session is not None and link in self.session.links:
            # One connection less means a gap at the secondary, which asks for everything again.
            self.drop(f"a connection was lost: {reason}")

    def check_silence(self, now_s: float, timeout_s: float) -> None:
        """Close the session when a connection has been silent for too long, or the group began anew (takeover)."""
        if self.session is not None and self.session.generation != self.group.generation:
            self.drop(f"group {self.group.name} has another generation now")
        if self.session is not None:
            for link in self.session.links:
                if now_s - link.heard_s > timeout_s:
                    self.drop(f"nothing heard for {timeout_s:g} s")
                    return

    # ---- sending ---------------------------------------------------------------

    def wake(self) -> None:
        """Send what there is, once, in the next iteration of the loop."""
        if not self._scheduled and self.session is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        session = self.session
        group = self.group
        while session is not None and session.sent_bytes < session.credit and self._reading is None:
            link = session.writable_link()
            if link is None:
                return
            try:
                found = group.read_journal(session.next_seq, FRAME_BYTES)
            except WouldBlock:
                self._reading = asyncio.get_running_loop().create_task(self._read_slow(session))
                return
            except (Trimmed, Corrupt) as error:
                self._events.failed(error)
                return
            if found is None:
                return
            self._send(session, link, found)

    def _send(self, session: Session, link: Link, found: RangePort) -> None:
        first, count, size = found.first, found.last - found.first + 1, found.nbytes
        buffers: list[Buffer] = [encode_data_header(self.group.generation, first, count, size)]
        buffers += found.buffers
        session.next_seq = found.last + 1
        session.sent_bytes += size
        self.sent_frames += 1
        link.send_many(buffers)

    async def _read_slow(self, session: Session) -> None:
        """Read from the disk what is no longer in memory, without holding up the loop."""
        try:
            found = await self.group.read_journal_slow(session.next_seq, FRAME_BYTES)
        except DiskFailed as error:
            if session is self.session:
                self.drop(str(error))  # the secondary asks again
            return
        except RemoteCopyError as error:
            if session is self.session:
                self._events.failed(error)
            return
        finally:
            self._reading = None
        if session is self.session and found is not None:
            link = session.writable_link() or session.links[0]
            self._send(session, link, found)
        self.wake()

    def send_sync(self, sequence: int) -> None:
        """Ask the secondary to make everything through ``sequence`` durable now."""
        if self.session is not None:
            self.session.links[0].send(encode_frame(FrameType.SYNC, first=sequence))

    def heartbeat(self) -> None:
        """Say on every connection where this side is."""
        self.note()
        if self.session is not None:
            beat = self._beat().encode()
            for link in self.session.links:
                link.send(beat)

    def last_word(self) -> bytes:
        """The frame that says where this side is, to go before one that tells of a suspension."""
        return self._beat().encode(last_word=True)

    def _beat(self) -> Heartbeat:
        group, source = self.group, self._source()
        return Heartbeat(
            group.last_seq, group.last_time, self._clock(), group.incarnation, group.writes_total, group.data_total,
            source.behind_ns, source.limit_time, source.remark,
        )  # fmt: skip

    # ---- what the secondary says --------------------------------------------------

    def _frames(self, link: Link, frames: list[Frame]) -> None:
        ack: Ack | None = None
        for frame in frames:
            if frame.type == FrameType.ACK:
                ack = decode_ack_untrusted(frame.payload, frame.flags)
                self._take_ack(ack)
            elif frame.type == FrameType.NOTICE:
                self._events.noticed(Notice.decode_untrusted(frame.payload))
            else:
                raise FrameError(f"frame type {frame.type} is not for a primary")
        self.last_contact = self._clock()
        if ack is not None and self.session is not None:
            self._after_ack(ack)

    def _take_ack(self, ack: Ack) -> None:
        session = self.session
        if session is None:
            return
        if ack.received >= session.next_seq:
            raise FrameError(f"ACK for record {ack.received}, only {session.next_seq - 1} were sent")
        known = self.ack
        # Connections overtake each other: nothing that was acknowledged is taken back.
        self.ack = Ack(
            max(known.received, ack.received),
            max(known.durable, ack.durable),
            max(known.applied, ack.applied),
            max(known.applied_time, ack.applied_time),
            max(known.credit, ack.credit),
            held=ack.held,
        )
        session.credit = max(session.credit, ack.credit)
        self.said = self.ack
        self.tick_wanted = ack.tick_wanted

    def _after_ack(self, ack: Ack) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.ack.received == self.group.last_seq:
            self.note()  # exactly what the secondary has, should it get no more
        self.group.set_retention(self.consumer, self.ack.durable)
        self.lag.heartbeat(self.group.last_seq, self._clock(), now_s)
        self.lag.applied(self.ack.applied)
        self._events.acknowledged(self.ack)
        self.wake()

    # ---- over restarts -----------------------------------------------------------------

    @property
    def heard_mark(self) -> tuple[float, float]:
        """See Keepable."""
        return self.lag.heard_s, 0.0

    def document(self) -> dict[str, Any] | None:
        """What is kept of what the secondary said, as JSON values; None: it said nothing yet."""
        if self.said is None or self.last_contact is None:
            return None
        return {
            "created": self._created,
            "heard_at": self.last_contact,
            "said": asdict(self.said),
            "image": self.lag.image,
            "dated": self.lag.dated,
        }

    def restore(self, document: dict[str, Any], set_ns: int | None) -> None:
        """See Keepable. What another pair of the same name kept is nothing to this one."""
        if document["created"] != self._created:
            return
        kept = Ack(**document["said"])
        last = self.group.last_seq  # what was not yet durable was lost here
        self.said = replace(
            kept, received=min(kept.received, last), durable=min(kept.durable, last), applied=min(kept.applied, last),
            held="",
        )  # fmt: skip
        heard_at, clock = document["heard_at"], self._clock()
        self.last_contact = min(heard_at + (set_ns or 0), clock)
        if document["image"] is not None:
            heard_s = asyncio.get_running_loop().time() - (clock - self.last_contact) / 1e9
            self.lag.restore(document["image"], heard_at, heard_s)
            self.lag.applied(document["image"][0])
            self.lag.cut()
            if set_ns is None or not document.get("dated", True):
                self.lag.undate()

    # ---- what was counted ---------------------------------------------------------

    def tally(self) -> Tally:
        """What the group has now."""
        return Tally(self.group.last_seq, self.group.writes_total, self.group.data_total)

    def note(self) -> None:
        """Remember what the group has now; the tally of what the secondary shows is never forgotten."""
        if self.group.recovered:  # else its last number is not known
            self._tallies.note(self.tally(), self.group.last_time, self.ack.applied)

    def tally_at(self, sequence: int) -> Tally | None:
        """The group's tally just behind record ``sequence``; None: not known in this run."""
        return self._tallies.at(sequence, self.tally())

    def bytes_behind(self, sequence: int) -> int | None:
        """Bytes of data behind record ``sequence``; None: not known.

        Of records of an earlier run that are all kept, the journal's average is taken.
        """
        now, at, first = self.tally(), self.tally_at(sequence), self._tallies.first
        if at is not None:
            return now.bytes - at.bytes
        journal = self.group.journal
        if first is None or (not self.epoch and self.said is None) or sequence + 1 < journal.first:
            return None
        average = journal.used_bytes / max(1, now.seq + 1 - journal.first)
        return now.bytes - first.bytes + round(average * (first.seq - sequence))

    def time_at(self, sequence: int) -> int | None:
        """A write time that record ``sequence`` is not older than, as near as heartbeats remember it."""
        return self.group.last_time if sequence >= self.group.last_seq else self._tallies.time_at(sequence)


def _ignore(link: Link, reason: str) -> None:
    return None


def _ignore_frames(link: Link, frames: list[Frame]) -> None:
    return None
