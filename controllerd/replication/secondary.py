"""Secondary side of one pair: what is pulled, and what becomes of the pair.

Owns: the pair's state on this side, what it keeps of the primary's identity, and the
fence that an old primary is told after a takeover.
Never: frames (receiver.py), journaling (intake.py), or applying (applier.py).

Source: RC ¶34-39, ¶57-61; spec §4, §7.5-7.6; invariants I13, I14, I16, F24, F27.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

from controllerd.model.apply_plan import Mode, Pending
from controllerd.model.errors import BadOrder, RemoteCopyError
from controllerd.model.pair_state import PairEvent, PairState, Role
from controllerd.model.records import Kind
from controllerd.replication.applier import DomainApplier
from controllerd.replication.contact import Contact
from controllerd.replication.context import Context, is_active
from controllerd.replication.frames import Frame, FrameType
from controllerd.replication.intake import AsyncIntake, SyncIntake
from controllerd.replication.links import tell
from controllerd.replication.messages import Accept, Fence, Fenced, Notice, Refuse, RefuseCode
from controllerd.replication.pair_record import PairRecord
from controllerd.replication.receiver import PullFacts, Receiver
from controllerd.replication.sender import Source
from controllerd.storage.group import Group

ASK_S: Final = 5.0
"""How often the primary of a suspended pair is asked how far it went on alone."""
_FAILURES = {RefuseCode.DIVERGED, RefuseCode.TRIMMED, RefuseCode.WRONG_GENERATION, RefuseCode.WRONG_PEER}


class SecondaryPair:
    """One pair whose S-VOLs are here, in apply domain ``domain``; ``others``: all pairs of that, this one too."""

    def __init__(
        self,
        record: PairRecord,
        group: Group,
        domain: DomainApplier,
        context: Context,
        *,
        others: Callable[[], Iterable[SecondaryPair]],
    ) -> None:
        self.record = record
        self.group = group
        self.domain = domain
        self.stall: str | None = None
        """Why nothing that arrives can be journaled, for people."""
        self.downstream_waits = False
        """In a cascade: whether the next site needs a tick of this group, which has to come from upstream."""
        self._context = context
        self._others = others
        self._confirms = False
        self._told = False
        self._asked_s = 0.0
        self._connected = False
        self._fencing: asyncio.Task[None] | None = None
        settings = context.settings
        self.intake: AsyncIntake | SyncIntake
        if record.spec.mode == "sync":
            self.intake = SyncIntake(group, self, settings.mirror_sync_interval_s)
        else:
            self.intake = AsyncIntake(group, self, settings.window_bytes)
        self.contact = Contact(
            record.created,
            context.clock,
            asyncio.get_running_loop().time,
            max(1.0, 3 * settings.heartbeat_interval_s),
        )
        self.receiver = Receiver(record.peer, settings, self.intake, self.contact, self, context.clock, context.rng)

    # ---- life --------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether records travel, or would if there was a connection."""
        return is_active(self.record.state)

    @property
    def mode(self) -> Mode | None:
        """How the primary's write times are to be applied; None before the first contact."""
        return self._mode_with(self.record.time_source) if self.record.time_source else None

    def _mode_with(self, time_source: str) -> Mode:
        # A synchronous secondary has given its own times, in its own group's order.
        source = self.group.write_time.source if self.record.spec.mode == "sync" else time_source
        return "sequence" if source == "sequence" else "time"

    @property
    def now(self) -> int:
        """Wall clock, ns."""
        return self._context.clock()

    def join_domain(self) -> None:
        """Take the group into its apply domain, with everything that is pending.

        Raises:
            BadOrder: the domain's groups have another kind of write times.
        """
        # A synchronous secondary gives the times itself: nothing that it does not have is older than what it shows.
        base = self.record.base_time if self.record.generation and self.record.spec.mode == "async" else 0
        self.domain.add(self.group, base, self.mode)

    def start(self) -> None:
        """Begin to pull, or to fence if this side was taken over."""
        self.start_fencing()
        if not self.group.recovered:
            self.stall = self.group.describe_fault()  # what it has is not known: after the next start it goes on
        elif self.record.state is not PairState.SSWS:
            self.receiver.start()

    async def stop(self, farewell: bytes = b"") -> None:
        """Pull and fence no more."""
        task, self._fencing = self._fencing, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.receiver.stop(farewell)

    # ---- events of the receiver ------------------------------------------------------

    @property
    def confirms(self) -> bool:
        """Whether what arrives may be called safe: a takeover drops it while any pair of the domain is in doubt."""
        if not self._confirms:  # doubt comes with a start only
            doubted = (pair.record.in_doubt and pair.record.state is not PairState.SSWS for pair in self._others())
            self._confirms = not any(doubted)
        return self._confirms

    def pull_facts(self) -> PullFacts | None:
        record = self.record
        if self.group.read_error is not None:
            # Not recovered: what is here is not known, so what is missing cannot be asked for.
            self.receiver.reason = self.group.say("is held", self.group.read_error)
            return None
        if not self.active and self._told:
            return None
        connections = record.spec.connections or self._context.settings.connections
        return PullFacts(
            record.spec.identity,
            record.spec.primary_group,
            record.generation,
            record.incarnation_of(self.intake.next_seq - 1),
            record.state.value,
            record.reason,
            1 if record.spec.mode == "sync" else connections,
        )

    async def adopt(self, accept: Accept) -> None:
        """First contact: take over the primary's generation and position, durably (nothing was received before).

        Raises:
            BadOrder: the domain's groups have another kind of write times. The pair is suspended, nothing is kept.
        """
        record, storage = self.record, self._context.storage
        # Meanwhile the group stays in its domain and holds the others back: what it will bring is not known yet.
        # The kind of its times counts from here on: other groups may have their first contact meanwhile.
        try:
            self.domain.add(self.group, 0, self._mode_with(accept.time_source))
        except BadOrder as error:
            self.suspend(PairEvent.FAIL, str(error))
            raise
        if record.spec.mode == "sync":
            await storage.change_role(self.group, Role.SECONDARY, last_origin=accept.start_seq)
        else:
            await storage.restart_group(
                self.group,
                role=Role.SECONDARY,
                generation=accept.generation,
                last_seq=accept.start_seq,
                last_time=accept.base_time,
                numbered_here=False,
            )
        record.generation = accept.generation
        record.start_seq = accept.start_seq
        record.base_time = accept.base_time
        record.time_source = accept.time_source
        record.runs = []
        self._context.save(record)
        self._context.report(
            "pair-adopted",
            {"pair": record.spec.identity, "generation": accept.generation, "start": accept.start_seq},
        )
        self.join_domain()

    def refused(self, refuse: Refuse) -> None:
        record = self.record
        if not self.active:
            self._told = refuse.code != RefuseCode.BUSY  # who is busy has taken no note of the state here
            return
        self._told = False
        if refuse.code in _FAILURES:
            self.suspend(PairEvent.FAIL, f"{record.peer} refuses: {refuse.text}")
        elif refuse.code == RefuseCode.UNKNOWN_PAIR and record.generation:
            record.peer_deleted = True
            self.suspend(PairEvent.FAIL, f"{record.peer} does not know the pair any more")
        elif refuse.code in (RefuseCode.SUSPENDED, RefuseCode.TAKEN_OVER):
            event = PairEvent.SPLIT if refuse.state == PairState.PSUS else PairEvent.FAIL
            self.suspend(event, f"at the primary: {refuse.text}")
        # Of another generation the primary still believes that the pair is in order (I14).
        self._told = refuse.code != RefuseCode.WRONG_GENERATION and not self.active

    def session_changed(self) -> None:
        record, connected = self.record, self.receiver.connected
        if connected == self._connected:
            return
        self._connected = connected
        facts: dict[str, object] = {"pair": record.spec.identity, "role": Role.SECONDARY.value}
        if connected:
            self._context.report("pair-connected", {**facts, "next": self.intake.next_seq, "in_doubt": record.in_doubt})
            self._caught_up()
        else:
            self._context.report("pair-disconnected", {**facts, "reason": self.receiver.reason})

    def not_connected(self, reason: str) -> None:
        facts: dict[str, object] = {"pair": self.record.spec.identity, "peer": self.record.peer}
        self._context.report("pair-not-connected", {**facts, "reason": reason})

    def damaged(self, what: str) -> None:
        self._context.report_damage(self.record, what)

    def noticed(self, notice: Notice) -> None:
        if notice.event == "delete":
            self.record.peer_deleted = True
            self._context.save(self.record)
        event = PairEvent.SPLIT if notice.event == "suspend" else PairEvent.FAIL
        self._told = True  # it is the primary who says so
        if self.active:
            self._context.move(self.record, event, f"at the primary: {notice.reason}")
            self.receiver.drop(notice.reason)

    def applied_time(self) -> int:
        return self.group.applied_time

    def tick_wanted(self) -> bool:
        return self.downstream_waits or self.domain.tick_wanted(self.group.name)

    # ---- events of the intake -----------------------------------------------------------

    def progressed(self) -> None:
        self.receiver.acknowledge()
        self._caught_up()

    def _caught_up(self) -> None:
        """Everything that the primary had when the session began is here: nothing it acknowledged is missing."""
        record = self.record
        if not (record.in_doubt or record.adrift_time):
            return
        if self.receiver.connected and self.intake.received_seq >= self.receiver.goal:
            try:
                self.end_doubt()
            except RemoteCopyError:
                return  # no room in the journal: with the next record
            record.in_doubt = False
            record.adrift_time = 0
            self._context.save(record)
            if self.confirms:  # perhaps since now: what the others have may be called safe, too
                for pair in self._others():
                    pair.receiver.acknowledge()

    def doubt(self) -> None:
        """Say in the journal that this side may lack what it acknowledged; what comes again follows (I5)."""
        if self.record.in_doubt and self.group.recovered and self.record.state is not PairState.SSWS:
            try:
                if self.group.write_time.source != "sequence":  # a number says nothing of how old the image is
                    self.drift()
                self._mark(Kind.DOUBT)
            except RemoteCopyError as error:
                if self.active:
                    self.suspend(PairEvent.FAIL, str(error))

    def end_doubt(self) -> None:
        """Say in the journal, after `doubt`, that nothing more will come that was lost.

        Raises:
            NoSpace, JournalFailed: it cannot be journaled.
        """
        if self.record.in_doubt:
            self._mark(Kind.SURE)

    def _mark(self, kind: Kind) -> None:
        assert isinstance(self.intake, SyncIntake)
        self.intake.local_tick(self.group.write_time.pass_on_tick(0, self.now), kind)

    def received_run(self, first: int, incarnation: int) -> None:
        # Kept before the records are: after a crash it may name a run whose records are not here, never the reverse.
        if self.record.note_run(first, incarnation):
            self._context.save(self.record)

    def arrived(self, records: list[Pending]) -> None:
        self.domain.arrived(self.group.name, records)

    def gap_reported(self, reason: str) -> None:
        self.receiver.drop(reason)

    def failed(self, error: RemoteCopyError) -> None:
        self.suspend(PairEvent.FAIL, str(error))

    def stalled(self, error: RemoteCopyError | None) -> None:
        if error is not None and self.stall is None:
            self._context.report("pair-stalled", {"pair": self.record.spec.identity, "reason": str(error)})
        self.stall = None if error is None else str(error)

    # ---- states ---------------------------------------------------------------------------

    def suspend(self, event: PairEvent, reason: str) -> None:
        """Split the pair by order (SPLIT) or failure (FAIL), durably; the primary is told when it is reached.

        Raises:
            BadOrder: not possible in the present state.
        """
        if self._context.move(self.record, event, reason):
            kind = "suspend" if event is PairEvent.SPLIT else "fail"
            self._told = False
            self.receiver.send(Notice(kind, reason).encode())
            self.receiver.drop(reason)
            self.receiver.poke()

    # ---- what is known of the primary ----------------------------------------------------------

    def drift(self) -> bool:
        """This side gives itself ticks from now on: they say nothing of what it knows. Returns whether that is new."""
        if self.record.adrift_time:
            return False
        # A number is given once, so the last one is known; with equal times only what is older than the last is.
        known = self.group.last_time + (self.group.write_time.source == "sequence")
        # The line of numbers passes those that other groups got since, and what was claimed stays so.
        self.record.adrift_time = max(1, known, self.domain.cut_time)
        self._context.save(self.record)
        return True

    def prove_contact(self) -> None:
        """Take the newest record that is here as heard, after a restart: the kept contact may be older."""
        record, group = self.record, self.group
        # Own ticks are no word of the primary.
        if record.generation and group.recovered and record.state is not PairState.SSWS and not record.adrift_time:
            # On a synchronous leg times may have been clamped: to another primary's clock, or this controller's.
            timed = record.time_source == "clock" and record.spec.mode == "async"
            self.contact.proved(self.intake.next_seq - 1, group.last_time, timed=timed)

    @property
    def limit_time(self) -> int:
        """Everything of the hosts that is older is known here, nothing else; 0: the records' times say it."""
        if self.record.state is PairState.SSWS:
            return 0
        return self.record.adrift_time or self.contact.limit_time

    def known_time(self, time: int) -> int:
        """What may be said of an image that is current up to ``time`` in this side's order."""
        # What is older than the base of the pair was in the first copy.
        return min(time, max(self.limit_time, self.record.base_time)) if self.limit_time else time

    @property
    def missing_unknown(self) -> bool:
        """Whether the primary may have any amount that is not here: the pair is suspended, and it told of nothing."""
        suspended = not self.active and self.record.state is not PairState.SSWS
        return suspended and self.contact.missing_records(self.intake.next_seq - 1) == 0

    def missing(self) -> tuple[int | None, int | None]:
        """(writes, bytes) that the primary told of and this side has not; None: not known."""
        return (None, None) if self.missing_unknown else self.contact.missing(self.intake.tally())

    def ask_again(self, now_s: float) -> None:
        """Ask the primary of a suspended pair how far it is, if it is time: hosts may write there all the time."""
        if not self.active and self._told and not self.record.peer_deleted and now_s - self._asked_s >= ASK_S:
            self._asked_s = now_s
            self._told = False
            self.receiver.poke()

    def newest(self) -> tuple[int | None, int | None]:
        """(number, write time) of the newest record the primary is known to have; what arrived here proves it, too."""
        told = self.contact.newest
        if told is None:
            return None, None
        if self.record.state is PairState.SSWS:
            return told.last_seq, told.last_time
        arrived = self.known_time(self.group.last_time)
        return max(told.last_seq, self.intake.next_seq - 1), max(told.last_time, arrived)

    def why_unheard(self) -> str:
        """Why nothing new of the hosts' writes can be known here, for people; "" if it can."""
        record, beat = self.record, self.contact.beat
        if record.state is PairState.SSWS:
            return ""
        if not self.active:
            return f"the pair with {record.peer} is {record.state.value}: {record.reason}"
        if not self.receiver.connected:
            return f"no connection to {record.peer}: {self.receiver.reason}"
        if beat is not None and beat.remark:
            return f"{record.peer} has lost its own primary: {beat.remark}"
        return ""

    def source(self) -> Source:
        """How old what is here is, for those who copy it from here."""
        if self.record.state is PairState.SSWS:
            return Source()
        behind_ns = max(1, round(self.contact.unknown_s * 1e9))  # 0 would say that this is no copy
        return Source(behind_ns, self.limit_time, self.why_unheard())

    # ---- fence ------------------------------------------------------------------------------

    def start_fencing(self) -> None:
        """Tell the old primary until it knows that it may take no more writes (I16)."""
        if self.record.fence is not None and self._fencing is None:
            self._fencing = asyncio.get_running_loop().create_task(self._fence(self.record.fence))

    async def _fence(self, facts: dict[str, object]) -> None:
        record = self.record
        cut_seq = int(str(facts["cut_seq"]))
        order = Fence(
            record.spec.identity, int(str(facts["generation"])), cut_seq, record.incarnation_of(cut_seq),
            str(facts["reason"]),
        )  # fmt: skip

        def heard(answer: Frame) -> bool:
            if answer.type == FrameType.FENCED:
                self._fence_told(Fenced.decode_untrusted(answer.payload))
            elif _is_unknown(answer):
                self._fence_told(None)
            else:
                return False
            return True

        await tell(self._context.settings, record.peer, order.encode(), self._context.rng, heard)

    def _fence_told(self, fenced: Fenced | None) -> None:
        """The old primary takes no more writes; ``fenced``: what it has behind the cut, None: it has no pair."""
        record = self.record
        record.fence = None
        size = fenced.bytes if fenced is not None and fenced.counted else None
        diverged = record.note_divergence(fenced.writes, size) if fenced is not None else ""
        self._context.save(record)
        facts: dict[str, object] = {"pair": record.spec.identity, "peer": record.peer}
        self._context.report("primary-fenced", facts)
        if fenced is not None and diverged:
            facts |= {"role": record.role.value, "writes": fenced.writes, "bytes": size, "reason": diverged}
            self._context.report("pair-diverged", facts)


def _is_unknown(frame: Frame) -> bool:
    return frame.type == FrameType.REFUSE and Refuse.decode_untrusted(frame.payload).code == RefuseCode.UNKNOWN_PAIR
