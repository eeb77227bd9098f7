"""Takeover: the secondary groups of an apply domain become primaries at one cut.

Owns: what a takeover would give (preview), its steps, and finishing it after a crash.
Never: decides that there is to be one.

The decision, with the cut of every group, is one catalogue document that is durable
before anything else changes. From then on a restart finishes the takeover; nothing of
the primary's that came later can get in, for no receiver is started again.

On a synchronous leg everything that is journaled here counts (spec §4.4): the primary
acknowledged nothing that is not, and the pairs of a domain are suspended together. If
the machine itself restarted since, unsynced records may be gone, and the rule of the
asynchronous leg applies to the whole domain, which is consistent whatever is missing.

Source: RC ¶45, ¶59-61; spec §5.1, §7.6; invariants I1, I3, I5, I16, I20.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from controllerd.model.apply_plan import FinalPlan
from controllerd.model.errors import NotFound, RemoteCopyError
from controllerd.model.lag import LEAST_S
from controllerd.model.pair_state import PairEvent, PairState, Role, next_state
from controllerd.model.records import DATA_KINDS
from controllerd.replication.applier import DomainApplier
from controllerd.replication.context import Context
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.status import find_holder
from controllerd.replication.takeover_report import MissingVolume, TakeoverGroup, TakeoverReport, read_report
from controllerd.storage.catalogue import Catalogue
from controllerd.storage.group import Group
from controllerd.storage.role_changes import Restart

TABLE: Final = "takeovers"
SLICE: Final = 256


@dataclass(slots=True)
class _Cut:
    """What is decided: per group the last record that counts, and how to get there."""

    time: int
    seqs: dict[str, int]
    steps: list[tuple[str, int]] = field(default_factory=list)


class Takeover:
    """Takes over the pairs ``pairs`` of one domain."""

    def __init__(self, domain: DomainApplier, pairs: list[SecondaryPair], context: Context) -> None:
        self._domain = domain
        self._pairs = sorted(pairs, key=lambda pair: pair.group.name)
        self._context = context
        self._by_group = {pair.group.name: pair for pair in pairs}
        # As it was before the takeover itself closes the connections.
        self._unheard = {pair.group.name: pair.why_unheard() for pair in pairs}

    # ---- what it would give ----------------------------------------------------------

    def preview(self) -> TakeoverReport:
        """Say what a takeover would give now; changes nothing.

        Raises:
            NotFound: the domain has no secondary group.
        """
        if not self._pairs:
            raise NotFound(f"apply domain {self._domain.name} has no secondary group here")
        return self._done() or self._report(self._decide(self._domain.final_plan()))

    def _done(self) -> TakeoverReport | None:
        """The report of the takeover if it has taken place."""
        kept = self._context.storage.catalogue.get_documents(TABLE).get(self._domain.name)
        if any(pair.record.state is not PairState.SSWS for pair in self._pairs) or kept is None:
            return None
        return None if is_undecided(kept) else read_report(kept["report"])

    @property
    def _in_doubt(self) -> bool:
        """Whether a group may lack what others depend on: nothing was confirmed since, so no more than a cut counts."""
        return any(pair.record.in_doubt for pair in self._pairs)

    def _decide(self, plan: FinalPlan) -> _Cut:
        cut = _Cut(plan.cut_time, dict(plan.cut_seqs), list(plan.steps))
        if self._in_doubt:
            return cut
        for pair in self._pairs:
            if pair.record.spec.mode == "sync":
                name, last = pair.group.name, pair.group.last_seq
                if last > cut.seqs.get(name, 0):
                    cut.steps.append((name, last))
                cut.seqs[name] = last
        if all(pair.record.spec.mode == "sync" for pair in self._pairs):
            cut.time = max(pair.group.last_time for pair in self._pairs)
        return cut

    def _report(self, cut: _Cut, rto_s: float | None = None, phases: dict[str, float] | None = None) -> TakeoverReport:
        groups = tuple(self._describe(pair, cut) for pair in self._pairs)
        held = find_holder(self._domain, self._by_group, self._unheard)
        known_s = self._known_rpo_s(groups)
        unheard = max(groups, key=lambda group: group.unknown_s)
        return TakeoverReport(
            domain=self._domain.name,
            preview=rto_s is None,
            cut_time=min(pair.known_time(cut.time) for pair in self._pairs),
            rpo_s=None if known_s is None else known_s + unheard.unknown_s,
            rpo_known_s=known_s,
            unknown_since=unheard.unknown_since,
            unknown_s=unheard.unknown_s,
            unheard_why=unheard.unheard_why,
            rto_s=rto_s,
            phases_s=phases or {},
            holder=None if held is None else held.group,
            holder_why=None if held is None else held.why,
            groups=groups,
            warnings=tuple(self._warnings()),
        )

    def _describe(self, pair: SecondaryPair, cut: _Cut) -> TakeoverGroup:
        group, record = pair.group, pair.record
        cut_seq = cut.seqs.get(group.name, group.applied_seq)
        cut_time = group.applied_time
        names = {volume.key: volume.name for volume in group.volumes.values()}
        lost: dict[int, tuple[int, int]] = {}
        for entry in group.pending:
            if entry.sequence <= cut_seq:
                cut_time = entry.time
            elif entry.kind in DATA_KINDS:
                writes, size = lost.get(entry.volume, (0, 0))
                lost[entry.volume] = (writes + 1, size + entry.length)
        contact = pair.contact
        primary_seq, primary_time = pair.newest()
        missing_writes, missing_bytes = pair.missing()
        return TakeoverGroup(
            pair_id=record.spec.identity,
            group=group.name,
            peer=record.peer,
            peer_group=record.peer_group,
            mode=record.spec.mode,
            state=record.state.value,
            cut_seq=cut_seq,
            cut_time=pair.known_time(cut_time),
            primary_seq=primary_seq,
            primary_time=primary_time,
            primary_age_s=contact.told_age_s,
            unknown_since=contact.unknown_since,
            unknown_s=contact.unknown_s,
            unheard_why=self._unheard[group.name],
            missing_writes=missing_writes,
            missing_bytes=missing_bytes,
            unusable_writes=sum(writes for writes, _ in lost.values()),
            unusable_bytes=sum(size for _, size in lost.values()),
            volumes=tuple(sorted(names.values())),
            unusable=tuple(
                MissingVolume(names.get(key, f"{key:#x}"), writes, size) for key, (writes, size) in sorted(lost.items())
            ),
        )

    def _known_rpo_s(self, groups: tuple[TakeoverGroup, ...]) -> float | None:
        """Seconds of write time between the newest the primary told of and what is in the image.

        Never 0 when something is missing: hosts' own times (time source ``host``) may stand still between two
        writes, so the time that passed at the primary counts as well.
        """
        if any(pair.record.time_source == "sequence" or pair.missing_unknown for pair in self._pairs):
            return None
        if not all(pair.contact.lag.dated for pair in self._pairs):
            return None
        if all(group.missing_writes == 0 and group.unusable_writes == 0 for group in groups):
            return 0.0
        known = [group.primary_time for group in groups if group.primary_time is not None]
        if len(known) < len(groups):
            return None
        lacking = [group for group in groups if group.missing_writes != 0 or group.unusable_writes]
        found_s = (max(known) - min(group.cut_time for group in lacking)) / 1e9
        if found_s < LEAST_S or any(pair.record.time_source == "host" for pair in self._pairs):
            found_s = max(found_s, *(self._by_group[group.group].contact.told_s for group in lacking))
        return max(LEAST_S, found_s) if math.isfinite(found_s) else None

    def _warnings(self) -> list[str]:
        found = []
        for pair in self._pairs:
            name, record = pair.group.name, pair.record
            if pair.receiver.connected:
                found.append(f"group {name}: {record.peer} is connected and still takes writes; stop its hosts first")
            if record.in_doubt:
                found.append(
                    f"group {name}: this machine restarted since the last contact with {record.peer};"
                    " acknowledged writes may be missing"
                )
            if not record.generation:
                found.append(f"group {name}: nothing ever came from {record.peer}; its volumes are empty")
            if record.state in (PairState.PSUE, PairState.PSUS):
                found.append(f"group {name}: the pair is {record.state.value} ({record.reason}); its image is old")
            fault = pair.group.name_fault()
            if fault is not None and pair.group.role is Role.SECONDARY:
                found.append(fault)
        return found

    # ---- doing it ----------------------------------------------------------------------

    async def run(self) -> TakeoverReport:
        """Take over; returns when the volumes are writable. May be called again after any failure.

        Raises:
            NotFound: the domain has no secondary group.
            BadOrder: a pair is in a state that does not allow it.
            JournalFailed, DiskFailed, NoSpace: what arrived cannot be made durable or visible; call
                again when it can.
        """
        domain = self._domain
        if not self._pairs:
            raise NotFound(f"apply domain {domain.name} has no secondary group here")
        done = self._done()
        if done is not None:
            return done
        try:
            return await self._run()
        except RemoteCopyError as error:
            if self._undecided() is not None:  # nothing is pulled any more, which needs a reason for people
                reason = f"the takeover of domain {domain.name} is not finished, order it again: {error}"
                for pair in self._pairs:
                    pair.receiver.reason = reason
            raise

    def _undecided(self) -> dict[str, Any] | None:
        return find_undecided(self._context.storage.catalogue, self._domain.name)

    async def _run(self) -> TakeoverReport:
        domain = self._domain
        decided = self._undecided()
        if decided is not None:
            self._close_reads()  # a run before may have applied a part of the cut
        for pair in self._pairs:  # before anything is decided: what such a group has is not known
            _check_group(pair.group)
        for pair in self._pairs:
            next_state(pair.record.state, PairEvent.TAKEOVER)
        clock = _Phases()
        try:
            intent = decided or await self._prepare(clock)
        except BaseException:
            domain.thaw()
            for pair in self._pairs:
                if pair.record.state is not PairState.SSWS:
                    pair.start()
            raise
        cut = _Cut(intent["cut_time"], intent["cuts"], [(name, seq) for name, seq in intent["steps"]])
        described = self._report(cut)
        await self._apply(cut)
        clock.end("apply")
        await self._promote(cut, intent["generations"])
        clock.end("promote")
        report = TakeoverReport(
            **{
                **{name: getattr(described, name) for name in described.__slots__},
                "preview": False,
                "rto_s": clock.total_s,
                "phases_s": clock.phases_s,
            }
        )
        self._finish(cut, intent["generations"], report)
        return report

    async def _prepare(self, clock: _Phases) -> dict[str, Any]:
        """Stop what arrives, make it durable, decide the cut, and keep the decision."""
        for pair in self._pairs:
            await pair.receiver.stop()
        clock.end("stop")
        for pair in self._pairs:
            if pair.group.role is Role.SECONDARY:
                await pair.group.make_durable()
                pair.intake.settle()
        clock.end("sync")
        await self._domain.settle()
        self._domain.freeze()
        cut = self._decide(self._domain.final_plan())
        used = {pair.group.generation for pair in self._pairs}
        generations: dict[str, int] = {}
        for pair in self._pairs:
            generation = next(g for g in iter(lambda: self._context.rng.randrange(1, 1 << 32), None) if g not in used)
            generations[pair.group.name] = pair.group.generation if pair.record.spec.mode == "sync" else generation
        intent: dict[str, Any] = {
            "cut_time": cut.time, "cuts": cut.seqs, "steps": [list(step) for step in cut.steps],
            "generations": generations, "report": None,
        }  # fmt: skip
        self._context.storage.catalogue.put_document(TABLE, self._domain.name, intent)
        self._context.report("takeover-decided", {"domain": self._domain.name, "cuts": cut.seqs, "time": cut.time})
        return intent

    async def _apply(self, cut: _Cut) -> None:
        """Make everything up to the cut visible, leaving the loop free in between; readers see all of it or nothing.

        When it fails half way the volumes stay closed to readers until the takeover is finished.
        """
        self._domain.freeze()
        self._close_reads()
        # After a restart the steps may be partly done, and less may be applied than they say: the cuts decide.
        for name, through in [*cut.steps, *sorted(cut.seqs.items())]:
            pair = self._by_group.get(name)
            if pair is None or pair.group.role is not Role.SECONDARY:
                continue
            group = pair.group
            while group.applied_seq < through:
                _check_group(group)
                if not group.apply_room:
                    await asyncio.sleep(0.01)
                    continue
                group.apply_through(min(through, group.applied_seq + SLICE))
                await asyncio.sleep(0)
        for pair in self._pairs:
            pair.group.open_reads()

    def _close_reads(self) -> None:
        for pair in self._pairs:
            pair.group.close_reads()

    async def _promote(self, cut: _Cut, generations: dict[str, int]) -> None:
        storage = self._context.storage
        waiting = [pair for pair in self._pairs if pair.group.role is Role.SECONDARY]
        restarts = [
            Restart(
                pair.group,
                Role.PRIMARY,
                generations[pair.group.name],
                cut.seqs[pair.group.name],
                last_time=pair.group.last_time,
            )
            for pair in waiting
            if pair.record.spec.mode == "async"
        ]
        if restarts:
            await storage.restart_groups(restarts)
        for pair in waiting:
            if pair.record.spec.mode == "sync":
                await self._promote_in_place(pair, cut)

    async def _promote_in_place(self, pair: SecondaryPair, cut: _Cut) -> None:
        """A synchronous secondary numbers its own records: its journal goes on, and so do those who pull it."""
        group = pair.group
        if self._in_doubt and cut.seqs[group.name] < group.last_seq:
            # Something is dropped: a new journal, which its own secondaries cannot go on with.
            generation = self._context.rng.randrange(1, 1 << 32)
            restart = Restart(group, Role.PRIMARY, generation, cut.seqs[group.name], last_time=group.last_time)
            await self._context.storage.restart_groups([restart])
        else:
            pair.end_doubt()
            group.apply_through(group.last_seq)
            await self._context.storage.change_role(group, Role.PRIMARY)

    def _finish(self, cut: _Cut, generations: dict[str, int], report: TakeoverReport) -> None:
        context = self._context
        for pair in self._pairs:
            if pair.record.state is PairState.SSWS:
                continue
            cut_seq = pair.intake.applied_seq if pair.record.spec.mode == "sync" else cut.seqs[pair.group.name]
            pair.record.fence = {
                "generation": generations[pair.group.name], "cut_seq": cut_seq, "reason": "takeover by order",
            }  # fmt: skip
            pair.record.diverged = {"cut_seq": cut_seq, "last_seq": cut_seq}
            context.move(pair.record, PairEvent.TAKEOVER, f"taken over at record {cut_seq}")
            self._domain.remove(pair.group.name)
            pair.intake.close()
            pair.start_fencing()
        context.storage.catalogue.put_document(
            TABLE, self._domain.name, {"cut_time": cut.time, "cuts": cut.seqs, "report": asdict(report)}
        )
        context.report(
            "takeover-done", {"domain": self._domain.name, "rpo_s": report.rpo_s, "rto_s": report.rto_s}
        )  # fmt: skip
        self._domain.thaw()


def _check_group(group: Group) -> None:
    if group.apply_error is not None:
        raise group.apply_error


class _Phases:
    """How long each step took, in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin = self._last = self._loop.time()
        self.phases_s: dict[str, float] = {}

    def end(self, name: str) -> None:
        """The step ``name`` is done."""
        now = self._loop.time()
        self.phases_s[name] = now - self._last
        self._last = now

    @property
    def total_s(self) -> float:
        """Since the beginning."""
        return self._last - self._begin


def is_undecided(document: dict[str, Any]) -> bool:
    """Whether a kept takeover was decided and not finished."""
    return document.get("report") is None


def find_undecided(catalogue: Catalogue, domain: str) -> dict[str, Any] | None:
    """The kept takeover of a domain that was decided and not finished."""
    kept = catalogue.get_documents(TABLE).get(domain)
    return kept if kept is not None and is_undecided(kept) else None
