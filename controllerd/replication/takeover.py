"""Takeover: the secondary groups of an apply domain become primaries at one cut.

Owns: the cut, the steps of a takeover, and finishing it after a crash.
Never: decides that there is to be one, or says what is missing (takeover_report.py does).

The decision, with the cut of every group, is one catalogue document that is durable
before anything else changes. From then on a restart finishes the takeover; nothing of
the primary's that came later can get in, for no receiver is started again.

On a synchronous leg everything that is journaled here counts (spec §4.4): the primary
acknowledged nothing that is not, and the pairs of a domain are suspended together. If
the machine itself restarted since, unsynced records may be gone, and the rule of the
asynchronous leg applies, which is consistent whatever is missing.

Source: RC ¶45, ¶59-61; spec §5.1, §7.6; invariants I1, I3, I5, I16, I20.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, Final

from controllerd.model.apply_plan import FinalPlan
from controllerd.model.errors import Busy, NotFound
from controllerd.model.pair_state import PairEvent, PairState, Role, next_state
from controllerd.replication.applier import DomainApplier
from controllerd.replication.context import Context
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.takeover_report import Cut, TakeoverReport, describe, read_report
from controllerd.storage.group import Group
from controllerd.storage.system import Restart
from controllerd.storage.volume import Volume

TABLE: Final = "takeovers"
SLICE: Final = 256


class Takeover:
    """Takes over the pairs ``pairs`` of one domain."""

    def __init__(self, domain: DomainApplier, pairs: list[SecondaryPair], context: Context) -> None:
        self._domain = domain
        self._pairs = sorted(pairs, key=lambda pair: pair.group.name)
        self._context = context
        self._by_group = {pair.group.name: pair for pair in pairs}

    # ---- what it would give ----------------------------------------------------------

    def preview(self) -> TakeoverReport:
        """Say what a takeover would give now; changes nothing.

        Raises:
            NotFound: the domain has no secondary group.
        """
        if not self._pairs:
            raise NotFound(f"apply domain {self._domain.name} has no secondary group here")
        return self._done() or self._describe(self._decide(self._domain.final_plan()))

    def _done(self) -> TakeoverReport | None:
        """The report of the takeover if it has taken place."""
        kept = self._context.storage.catalogue.get_documents(TABLE).get(self._domain.name)
        if any(pair.record.state is not PairState.SSWS for pair in self._pairs) or kept is None:
            return None
        return None if is_undecided(kept) else read_report(kept["report"])

    def _decide(self, plan: FinalPlan) -> Cut:
        cut = Cut(plan.cut_time, dict(plan.cut_seqs), list(plan.steps))
        for pair in self._pairs:
            if pair.record.spec.mode == "sync" and not pair.record.in_doubt:
                name, last = pair.group.name, pair.group.last_seq
                if last > cut.seqs.get(name, 0):
                    cut.steps.append((name, last))
                cut.seqs[name] = last
        if all(pair.record.spec.mode == "sync" and not pair.record.in_doubt for pair in self._pairs):
            cut.time = max(pair.group.last_time for pair in self._pairs)
        return cut

    def _describe(self, cut: Cut) -> TakeoverReport:
        return describe(self._domain, self._pairs, cut, self._context.clock())

    # ---- doing it ----------------------------------------------------------------------

    async def run(self) -> TakeoverReport:
        """Take over; returns when the volumes are writable. May be called again after any failure.

        Raises:
            NotFound: the domain has no secondary group.
            BadOrder: a pair is in a state that does not allow it.
            JournalFailed, DiskFailed, NoSpace: what arrived cannot be made durable or visible; call
                again when it can.
        """
        domain, context = self._domain, self._context
        if not self._pairs:
            raise NotFound(f"apply domain {domain.name} has no secondary group here")
        done = self._done()
        if done is not None:
            return done
        kept = context.storage.catalogue.get_documents(TABLE).get(domain.name)
        if kept is not None and is_undecided(kept):
            self._close_reads()  # a run before may have applied a part of the cut
        for pair in self._pairs:  # before anything is decided: what such a group has is not known
            _check_group(pair.group)
        for pair in self._pairs:
            next_state(pair.record.state, PairEvent.TAKEOVER)
        clock = _Phases()
        try:
            intent = kept if kept is not None and is_undecided(kept) else await self._prepare(clock)
        except BaseException:
            domain.thaw()
            for pair in self._pairs:
                if pair.record.state is not PairState.SSWS:
                    pair.start()
            raise
        cut = Cut(intent["cut_time"], intent["cuts"], [(name, seq) for name, seq in intent["steps"]])
        described = self._describe(cut)
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

    async def _apply(self, cut: Cut) -> None:
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
        for volume in self._volumes():
            volume.open_reads()

    def _volumes(self) -> list[Volume]:
        return [volume for pair in self._pairs for volume in pair.group.volumes.values()]

    def _close_reads(self) -> None:
        for volume in self._volumes():
            volume.close_reads()

    async def _promote(self, cut: Cut, generations: dict[str, int]) -> None:
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

    async def _promote_in_place(self, pair: SecondaryPair, cut: Cut) -> None:
        """A synchronous secondary numbers its own records: its journal goes on, and so do those who pull it."""
        group = pair.group
        if pair.record.in_doubt and cut.seqs[group.name] < group.last_seq:
            # Something is dropped: a new journal, which its own secondaries cannot go on with.
            generation = self._context.rng.randrange(1, 1 << 32)
            restart = Restart(group, Role.PRIMARY, generation, cut.seqs[group.name], last_time=group.last_time)
            await self._context.storage.restart_groups([restart])
        else:
            group.apply_through(group.last_seq)
            await self._context.storage.change_role(group, Role.PRIMARY)

    def _finish(self, cut: Cut, generations: dict[str, int], report: TakeoverReport) -> None:
        context = self._context
        for pair in self._pairs:
            if pair.record.state is PairState.SSWS:
                continue
            cut_seq = pair.intake.applied_seq if pair.record.spec.mode == "sync" else cut.seqs[pair.group.name]
            pair.record.fence = {
                "generation": generations[pair.group.name], "cut_seq": cut_seq, "reason": "takeover by order",
            }  # fmt: skip
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


def refuse_during_takeover(document: dict[str, Any] | None, domain: str) -> None:
    """Refuse an order on a domain whose takeover is decided and not finished.

    Raises:
        Busy: it is so.
    """
    if document is not None and is_undecided(document):
        raise Busy(f"a takeover of domain {domain} is under way; order it again to finish it")
