"""Apply loop of one apply domain at a secondary.

Owns: driving the planner (model/apply_plan.py): what is durable goes in, slices of what
may be visible come out and are applied, one slice per turn of the event loop.
Never: journals, talks to peers, or promotes; and never waits inside a slice.

What a reader would get wrong: ``arrived`` must be called with durable records only, in
order; after a restart everything the journals hold is durable (architecture §4).

Source: RC ¶40-47, ¶54; spec §5; invariants I1, I5, I11.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controllerd.model.apply_plan import ApplyDomain, FinalPlan, Mode, Order, Pending
from controllerd.model.errors import BadOrder, RemoteCopyError
from controllerd.model.records import SILENT_KINDS
from controllerd.replication.ports import GroupPort, Report

RETRY_S: Final = 1.0
STILL_NS: Final = 200_000_000


@dataclass(slots=True)
class _Member:
    group: GroupPort
    base_time: int
    mode: Mode | None
    fed: int
    """Last number given to the planner."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The group that holds the consistency line, at which write time, and since when (wall ns)."""

    group: str
    time: int
    since: int


class DomainApplier:
    """Applies the pending records of the groups of domain ``name`` at consistent cuts."""

    def __init__(
        self, name: str, *, order: Order, slice_records: int, report: Report, clock: Callable[[], int]
    ) -> None:
        self.name = name
        self.order: Order = order
        self.mode: Mode = "time"
        self.fault: str | None = None
        """Why nothing is applied, for people; None when all is well."""
        self.applied_records = 0
        self._slice = slice_records
        self._report = report
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._plan = ApplyDomain("time", order)
        self._line = 0
        """Sequence mode: the next number when something was shown last."""
        self._partial = True
        """What is shown may lie between two cuts: a plan was applied in part, perhaps by the run before."""
        self._scheduled = False
        self._frozen = False
        self._retry: asyncio.TimerHandle | None = None
        self._holder: Holder | None = None

    # ---- members -----------------------------------------------------------------

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return sorted(self._members)

    def add(self, group: GroupPort, base_time: int, mode: Mode | None) -> None:
        """Take in a group: everything older than ``base_time`` is in its volumes. ``mode`` None: not known yet.

        Raises:
            BadOrder: the domain's groups have another kind of write times.
        """
        if mode is not None and mode != self.mode:
            if any(member.mode for name, member in self._members.items() if name != group.name):
                raise BadOrder(
                    f"apply domain {self.name} has write times of kind {self.mode!r}, group {group.name} of {mode!r}:"
                    " choose another domain"
                )
            self.mode = mode
        if group.name in self._members:
            self.remove(group.name)
        group.budget.listen(self.wake)
        self._members[group.name] = _Member(group, base_time, mode, group.durable_seq)
        self._rebuild()

    def remove(self, name: str) -> None:
        """Leave a group out; it holds nobody back any more."""
        member = self._members.pop(name, None)
        if member is not None:
            member.group.budget.ignore(self.wake)
            member.group.open_reads()
            self._rebuild()

    def _rebuild(self) -> None:
        """Make the plan anew from what the groups have applied and what they hold."""
        heads: list[int] = []
        reached: list[int] = []
        shown = 0
        plan = ApplyDomain(self.mode, self.order)
        for name, member in self._members.items():
            group = member.group
            time = max(group.applied_time, member.base_time)
            plan.add_group(name, group.applied_seq, time)
            fed = [entry for entry in group.pending if entry.sequence <= member.fed]
            plan.arrive_many(name, [(entry.time, entry.sequence, entry.kind) for entry in fed])
            heads += [entry.time for entry in itertools.islice(group.pending, 1)]
            reached.append(time)
            if group.applied_time > member.base_time:
                shown = max(shown, group.applied_time)
        # Never too high: a number below the next one could never be applied. Too low is mended by passing numbers,
        # but only once every group has brought later ones. What is below a record that is shown has been passed, or
        # is pending here; what is below the base of a group may still be on its way in another one.
        plan.known = max(self._line, 1 + shown if shown else 0)
        plan.next_number = min([plan.known or 1 + min(reached, default=0), *heads])
        self._plan = plan
        self.wake()

    # ---- records -------------------------------------------------------------------

    def arrived(self, name: str, records: list[Pending]) -> None:
        """Records of a group are durable.

        Raises:
            Corrupt: they do not continue what arrived before.
        """
        member = self._members.get(name)
        if member is None or not records:
            return
        self._plan.arrive_many(name, records)
        member.fed = records[-1][1]
        self.wake()

    def wake(self) -> None:
        """Apply what may be applied, beginning in the next turn of the loop."""
        if not self._scheduled and not self._frozen:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        if not self._frozen and self._apply_slice():
            self.wake()

    def _apply_slice(self) -> bool:
        """Apply about ``slice_records``; returns whether there may be more."""
        if not all(member.group.apply_room for member in self._members.values()):
            self._hide_part()
            return False  # the cache is full; the budget wakes us
        broken = next(filter(None, (member.group.apply_error for member in self._members.values())), None)
        if broken is not None:  # nothing would leave the cache of that group, and the others must not run ahead
            self._failed(broken)
            return False
        before = self._positions()
        try:
            steps = self._plan.plan(self._slice)
            for name, through in steps:
                self.applied_records += self._members[name].group.apply_through(through)
            self._plan.confirm()
            self._line = self._plan.next_number
        except RemoteCopyError as error:
            self._partial |= self._positions() != before
            self._failed(error)
            return False
        if self._partial:
            self._partial = False
            for member in self._members.values():
                member.group.open_reads()
        if not steps:
            return False
        if self.fault is not None:
            self._report("apply-resumed", {"domain": self.name})
            self.fault = None
        return True

    def _positions(self) -> list[int]:
        return [member.group.applied_seq for member in self._members.values()]

    def _failed(self, error: RemoteCopyError) -> None:
        if self.fault is None:
            self._report("apply-stopped", {"domain": self.name, "error": str(error)})
        self.fault = str(error)
        self._hide_part()
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _hide_part(self) -> None:
        """Let readers wait while a plan is applied in part. A group by itself is always consistent."""
        if self._partial and len(self._members) > 1:
            for member in self._members.values():
                member.group.close_reads()

    def _try_again(self) -> None:
        self._retry = None
        self.wake()

    async def settle(self) -> None:
        """Apply everything that may be applied now, leaving the loop free in between (start-up)."""
        more = True
        while more:
            more = not self._frozen and self._apply_slice()
            await asyncio.sleep(0)

    # ---- takeover --------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether a takeover is under way: nothing may be added to the groups' journals."""
        return self._frozen

    def freeze(self) -> None:
        """Apply nothing more until `thaw`."""
        self._frozen = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._frozen = False
        self._rebuild()

    def final_plan(self) -> FinalPlan:
        """What a takeover would apply and drop now; changes nothing."""
        return self._plan.final_plan()

    # ---- what is asked for ---------------------------------------------------------------

    @property
    def cut_time(self) -> int:
        """Everything older than this write time is visible, nothing newer."""
        return self._plan.cut_time

    def pending(self, name: str) -> int:
        """Durable records of a group that are not applied."""
        return self._plan.pending(name) if name in self._members else 0

    def holder(self) -> Holder | None:
        """Which group holds the others back, or None when nothing waits."""
        waiting = [name for name in self._members if self._plan.pending(name)]
        found = self._oldest()
        if not waiting or found is None:
            self._holder = None
            return None
        name, time = found
        if self._holder is None or (self._holder.group, self._holder.time) != found:
            self._holder = Holder(name, time, self._clock())
        return self._holder

    def _oldest(self) -> tuple[str, int] | None:
        if self.mode == "time":
            return self._plan.holder()
        found = [(self._plan.position(name).arrived_time, name) for name in self._members]
        return (min(found)[1], min(found)[0]) if found else None

    def doubt_waits_for(self, name: str) -> bool:
        """Whether a later write time of group ``name``, and nothing else, would let what was lost and came be shown."""
        member = self._members.get(name)
        fed = member is not None and member.group.durable_seq == member.group.last_seq
        return fed and not self._frozen and self._plan.doubt_waits_for(name)

    def tick_wanted(self, name: str) -> bool:
        """Whether a later write time of group ``name`` would let something be shown."""
        member = self._members.get(name)
        if member is None or member.group.durable_seq < member.group.last_seq:
            return False  # what is here and not yet durable may do
        if not any(entry.kind not in SILENT_KINDS for other in self._members.values() for entry in other.group.pending):
            return False  # ticks are not worth a tick
        holder = self.holder()
        if holder is None or self.mode == "time":
            return holder is not None and holder.group == name
        # Numbers of several groups are under way all the time: only what stands still asks for a tick.
        waits = self._plan.position(name).arrived_time < self._plan.needed_number()
        return waits and self._clock() - holder.since > STILL_NS
