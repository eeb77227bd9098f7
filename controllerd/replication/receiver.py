"""Receiver: the secondary's side of the transfer path of one pair.

Owns: dialling the primary, the session (one epoch, several connections), credit, and
when to begin anew.
Never: journals (intake.py), applies (applier.py), or changes the pair's state; it tells
`ReceiverEvents`.

Whatever goes wrong on a connection has one answer: drop the whole session and ask again
from the next number needed, after a wait that grows until something arrives (spec §4.1).

Source: RC ¶36-39, ¶48; spec §4.1-4.2; invariants F20-F25.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, get_args

from controllerd.model.errors import Corrupt, RemoteCopyError, Unreachable
from controllerd.model.records import MAX_GENERATION
from controllerd.model.write_time import Source
from controllerd.replication.backoff import Backoff
from controllerd.replication.contact import Contact
from controllerd.replication.frames import MAX_DATA_PAYLOAD, Frame, FrameError, FrameFlag, FrameType
from controllerd.replication.intake import Intake
from controllerd.replication.links import Link, dial
from controllerd.replication.messages import (
    Accept,
    Ack,
    Notice,
    Pull,
    Refuse,
    RefuseCode,
    decode_heartbeat_untrusted,
)
from controllerd.replication.settings import ReplicationSettings
from controllerd.replication.tally import Tally

_TIME_SOURCES: Final = get_args(Source)


@dataclass(frozen=True, slots=True)
class PullFacts:
    """What a PULL says about the pair; ``generation`` 0: nothing of the primary is known yet."""

    pair: str
    group: str
    generation: int
    incarnation: int
    state: str
    reason: str
    connections: int


class ReceiverEvents(Protocol):
    """Who is told what happens on the transfer path."""

    @property
    def active(self) -> bool:
        """Whether records may come: the pair is not suspended here."""

    @property
    def confirms(self) -> bool:
        """Whether what is here may be acknowledged."""

    def pull_facts(self) -> PullFacts | None:
        """What to ask with; None: do not dial until `Receiver.poke`."""

    async def adopt(self, accept: Accept) -> None:
        """The primary answered a pair that knows nothing of it yet; the next PULL says what is kept of it.

        Raises:
            RemoteCopyError: nothing is kept of it.
        """

    def refused(self, refuse: Refuse) -> None:
        """The primary refused."""

    def session_changed(self) -> None:
        """A session began or ended."""

    def not_connected(self, reason: str) -> None:
        """There is no session, for another reason than before."""

    def damaged(self, what: str) -> None:
        """Damaged data came from the primary; it is asked for again."""

    def noticed(self, notice: Notice) -> None:
        """The primary changed the pair."""

    def applied_time(self) -> int:
        """Write time of the last applied record."""

    def tick_wanted(self) -> bool:
        """Whether records of other groups wait for a later write time of this one."""


class Receiver:
    """Pulls records of one pair from controller ``peer`` into ``intake``."""

    def __init__(
        self,
        peer: str,
        settings: ReplicationSettings,
        intake: Intake,
        contact: Contact,
        events: ReceiverEvents,
        clock: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.peer = peer
        self.intake = intake
        self.contact = contact
        self.connected_since: int | None = None
        self.last_contact: int | None = None
        self.goal = 0
        """The primary's last number when the session began."""
        self.reason = "not connected yet"
        """Why there is no session, for people."""
        self.corrupt_frames = 0
        self.sessions = 0
        self._settings = settings
        self._events = events
        self._clock = clock
        self._backoff = Backoff(settings.backoff_min_s, settings.backoff_max_s, rng)
        self._epoch = 0
        self._generation = 0
        self._links: list[Link] = []
        self._answers: dict[Link, asyncio.Future[Accept | Refuse]] = {}
        self._ended: asyncio.Future[str] | None = None
        self._poke = asyncio.Event()
        self._held = ""
        self._held_max = settings.window_bytes + MAX_DATA_PAYLOAD  # the last frame may go beyond the credit
        self._gap: tuple[int, float] | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether records can arrive."""
        return bool(self._links)

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"receiver from {self.peer}")

    async def stop(self, farewell: bytes = b"") -> None:
        """Dial no more; ``farewell`` is a frame sent on each connection first. Nothing arrives after this."""
        for link in self._links:
            if farewell:
                link.send(farewell)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.intake.begin_session()  # what waits for room is not journaled any more, either

    def poke(self) -> None:
        """Dial now, if there is no session."""
        self._backoff.reset()
        self._poke.set()

    def send(self, frame: bytes) -> None:
        """Send a frame to the primary, if it is connected."""
        if self._links:
            self._links[0].send(frame)

    def drop(self, reason: str) -> None:
        """End the session; a new one is tried after a wait."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)
        for link in self._links:
            link.on_frames = _ignore_frames

    async def _run(self) -> None:
        while True:
            self._poke.clear()
            facts = self._events.pull_facts()
            if facts is None:
                await self._poke.wait()
                continue
            before = self.intake.next_seq
            try:
                self.reason = await self._session(facts)
            except (RemoteCopyError, FrameError) as error:
                if str(error) != self.reason:
                    self.reason = str(error)
                    self._events.not_connected(self.reason)
            finally:
                self._events.session_changed()
            if self.intake.next_seq != before:
                self._backoff.reset()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_s()):
                    await self._poke.wait()

    # ---- session -----------------------------------------------------------------

    async def _session(self, facts: PullFacts) -> str:
        """Run one session to its end; returns why it ended."""
        self.intake.begin_session()
        self._generation = facts.generation
        self._gap = None
        # The wall clock makes the epoch newer than any of an earlier run of this controller.
        self._epoch = max(self._epoch + 1, self._clock())
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ended = ended
        try:
            for index in range(facts.connections if facts.generation else 1):
                link = await dial(self._settings, self.peer)
                # Anew for each connection: records came over the ones before meanwhile.
                present = self._events.pull_facts()
                if present is None:
                    link.close("the pair was suspended meanwhile")
                    return "suspended"
                answer = await self._pull(link, present, index)
                if isinstance(answer, Refuse):
                    link.close("refused")
                    return self._take_refusal(answer)
                if not facts.generation:
                    await self._events.adopt(answer)
                    self._poke.set()
                    return "adopted"
                if ended.done():
                    break
            return await ended
        finally:
            links, self._links = self._links, []
            for link in links:
                link.on_lost = _ignore
                link.on_frames = _ignore_frames
                link.close("session over")
            self._answers.clear()
            self.connected_since = None
            self.contact.lag.cut()

    async def _pull(self, link: Link, facts: PullFacts, index: int) -> Accept | Refuse:
        intake = self.intake
        link.on_frames = self._frames
        link.on_lost = self._lost
        answer: asyncio.Future[Accept | Refuse] = asyncio.get_running_loop().create_future()
        self._answers[link] = answer
        if link.closed:  # lost in the turn between the handshake and now
            raise Unreachable(f"{self.peer}: {link.reason}")
        fresh = not facts.generation
        pull = Pull(
            facts.pair, facts.group, facts.generation, facts.incarnation,
            0 if fresh else intake.next_seq, 0 if fresh or not self._events.confirms else intake.durable_seq,
            self._epoch, index, facts.connections, self._credit, facts.state, facts.reason,
        )  # fmt: skip
        link.send(pull.encode())
        try:
            async with asyncio.timeout(self._settings.handshake_timeout_s):
                return await answer
        except TimeoutError:
            link.abort("no answer to PULL")
            raise Unreachable(f"{self.peer} did not answer in {self._settings.handshake_timeout_s:g} s") from None
        except BaseException:
            link.abort("given up")
            raise
        finally:
            self._answers.pop(link, None)

    def _take_refusal(self, refuse: Refuse) -> str:
        if refuse.code == RefuseCode.STALE_EPOCH:
            self._epoch = max(self._epoch, refuse.epoch)
        else:
            self._events.refused(refuse)
        return f"{self.peer} refuses: {refuse.text}"

    def _lost(self, link: Link, reason: str) -> None:
        if link.damaged:
            self._damaged(reason)
        answer = self._answers.get(link)
        if answer is not None and not answer.done():
            answer.set_exception(Unreachable(f"{self.peer}: {reason}"))
        self.drop(f"connection to {self.peer} lost: {reason}")

    # ---- frames ------------------------------------------------------------------

    def _frames(self, link: Link, frames: list[Frame]) -> None:
        try:
            for frame in frames:
                if frame.type == FrameType.DATA:
                    if link not in self._links:
                        raise FrameError("DATA before ACCEPT")
                    self.intake.take_untrusted(frame, self._generation)
                    if self.intake.held_bytes > self._held_max:
                        raise FrameError(f"more records than there was credit for, over {self._held_max} bytes")
                else:
                    self._message(link, frame)
        except Corrupt as error:
            self._damaged(str(error))
            self.drop(f"damaged data from {self.peer}: {error}")
        finally:
            self.intake.journal()
        self.last_contact = self._clock()

    def _damaged(self, what: str) -> None:
        self.corrupt_frames += 1
        self._events.damaged(what)

    def _message(self, link: Link, frame: Frame) -> None:
        if frame.type == FrameType.HEARTBEAT:
            beat = decode_heartbeat_untrusted(frame.payload)
            if frame.flags & FrameFlag.LAST_WORD:
                self.contact.last_word(beat)
            else:
                self.contact.heartbeat(beat, asyncio.get_running_loop().time())
                if beat.last_seq == self.intake.next_seq - 1:
                    self.contact.counted(beat.run, Tally(beat.last_seq, beat.writes, beat.size), self.intake.tally())
        elif frame.type == FrameType.SYNC:
            self.intake.journal()
            self.intake.sync()
        elif frame.type == FrameType.NOTICE:
            self._events.noticed(Notice.decode_untrusted(frame.payload))
        elif frame.type in (FrameType.ACCEPT, FrameType.REFUSE):
            self._answer(link, frame)
        else:
            raise FrameError(f"frame type {frame.type} is not for a secondary")

    def _answer(self, link: Link, frame: Frame) -> None:
        answer = self._answers.get(link)
        if answer is None or answer.done():
            raise FrameError("an answer to nothing")
        if frame.type == FrameType.REFUSE:
            answer.set_result(Refuse.decode_untrusted(frame.payload))
            return
        accept = Accept.decode_untrusted(frame.payload)
        if not self._events.active:  # or a primary that goes on all the same could change what was split off
            raise FrameError("ACCEPT of a pair that is suspended here")
        if not 0 < accept.generation <= MAX_GENERATION or accept.time_source not in _TIME_SOURCES:
            raise FrameError(f"ACCEPT of generation {accept.generation}, write times from {accept.time_source!r}")
        if self._generation:
            if accept.generation != self._generation:
                raise FrameError(f"ACCEPT of generation {accept.generation}, asked for {self._generation}")
            if not self._links:
                self.contact.uncounted()
                if accept.counted:
                    at = Tally(self.intake.next_seq - 1, accept.writes_at_next, accept.bytes_at_next)
                    self.contact.counted(accept.run, at, self.intake.tally())
                self.goal = accept.last_seq
                self.sessions += 1
                self.connected_since = self._clock()
            self._links.append(link)
            if len(self._links) == 1:
                self._events.session_changed()
                self.acknowledge()  # what was confirmed on a connection that was lost may not have arrived
        answer.set_result(accept)

    # ---- acknowledging -------------------------------------------------------------

    @property
    def _credit(self) -> int:
        """Bytes that may be sent in this session; only grows, as what was received becomes durable."""
        intake = self.intake
        return max(0, self._settings.window_bytes + intake.received_bytes - intake.held_bytes)

    def _ack(self) -> bytes:
        intake = self.intake
        received, applied = intake.received_seq, intake.applied_seq
        self.contact.applied(applied)
        if not self._events.confirms:
            received = 0  # the primary takes nothing back that it heard before
        return Ack(
            received, min(intake.durable_seq, received), min(applied, received), self._events.applied_time(),
            self._credit, self._events.tick_wanted(), self._held,
        ).encode()  # fmt: skip

    def acknowledge(self) -> None:
        """Tell the primary what is here, now."""
        if self._links:
            self._links[0].send(self._ack())

    def heartbeat(self, now_s: float, held: str) -> None:
        """Say that this side is alive, and look whether the other one is and whether a gap has closed.

        ``held`` is what holds the consistency line, as `Ack` says it; every ACK until the next heartbeat says it.
        """
        self._held = held
        self.contact.applied(self.intake.applied_seq)
        self.contact.arrived(self.intake.tally())
        if not self._links:
            return
        ack = self._ack()
        for link in self._links:
            link.send(ack)
        silent_s = max(now_s - link.heard_s for link in self._links)
        if silent_s > self._settings.peer_timeout_s:
            self.drop(f"nothing heard of {self.peer} for {silent_s:.1f} s")
            return
        missing = self.intake.missing_since()
        if missing is None:
            self._gap = None
        elif self._gap is None or self._gap[0] != missing:
            self._gap = (missing, now_s)
        elif now_s - self._gap[1] > self._settings.gap_timeout_s:
            self.drop(f"record {missing} did not come")


def _ignore(link: Link, reason: str) -> None:
    return None


def _ignore_frames(link: Link, frames: list[Frame]) -> None:
    return None
