"""Apply planning at a secondary: which records may become visible now, over all groups of a domain.

Owns: the consistency line of an apply domain, and the choice of the next slice below it.
Never: applies anything, reads a journal, or knows what a record holds.

What a reader would get wrong: the whole plan becomes visible at once. Between its steps the
image can be inconsistent, in either order: writes of two groups that share a write time say
nothing about which was first (in host mode all writes do while no host carries a time). So a
slice never ends inside a time that several groups share, and ``limit`` is a wish, not a bound.

Time mode: T = the oldest of the latest arrived times of all groups; only what is *strictly*
older than T may be applied, as more writes with the time T may be on their way. A TICK shows
nothing, so one with the time T is passed once all that is older has been, and an idle group
comes to rest with nothing pending.

A synchronous secondary that lost its power has, of each group, what its disk kept, and gets the rest
again with later times. So a cut between what is in front of DOUBT in a group and SURE would show writes
without those before them: it goes from one side to the other in one plan (see `_Group.doubts`).

Feed ``arrive`` with what is durable here if the result may reach disks (architecture §4).

Source: RC ¶40-47 (claim 3), ¶54; spec §5.1-5.2; invariants I5, I11.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from controllerd.model.errors import Conflict, Corrupt, NotFound
from controllerd.model.records import SILENT_KINDS, Kind

Mode = Literal["time", "sequence"]
Order = Literal["time", "sequence"]
Step = tuple[str, int]
"""Group name, and the sequence number up to which its pending records are to be applied."""
Pending = tuple[int, int, int]
"""Write time, sequence number, kind of a record."""

Doubt = tuple[int, float]
"""(low, high): no cut lies above ``low`` and not above ``high``, the time of the last record that came again.

Infinite while SURE has not arrived.
"""

_DOUBT: Final = int(Kind.DOUBT)
_SURE: Final = int(Kind.SURE)
_TICKS: Final = frozenset({int(Kind.TICK)})
_SEAMS: Final = frozenset({_DOUBT, _SURE})


@dataclass(frozen=True, slots=True)
class Position:
    """Where a group stands (spec §5.5). Times in ns, or numbers in sequence mode."""

    arrived_seq: int
    arrived_time: int
    applied_seq: int
    applied_time: int
    pending: int


@dataclass(frozen=True, slots=True)
class FinalPlan:
    """What a takeover may still apply, and what it has to drop."""

    steps: list[Step]
    """To be made visible together, in this order."""
    cut_time: int
    """Everything older than this is in the image after ``steps``."""
    cut_seqs: dict[str, int]
    """For every group, the last sequence number that is in the image."""
    dropped: dict[str, tuple[int, int]]
    """For groups that lose writes: first and last sequence number of what arrived and cannot be used."""


@dataclass(slots=True)
class _Group:
    """Pending records of one group, oldest first; times never fall."""

    arrived_seq: int
    arrived_time: int
    applied_seq: int
    applied_time: int
    records: deque[Pending] = field(default_factory=deque)
    promise_seq: int = 0
    promise_time: int = 0
    doubts: list[Doubt] = field(default_factory=list)
    doubted_seq: int = 0
    """Number of the DOUBT that no SURE has followed."""

    def doubt(self, before: int) -> None:
        """The newest record is a DOUBT or SURE; the one in front of it has the time ``before``."""
        doubts = self.doubts
        _, seq, kind = self.records[-1]
        doubts[:] = [doubt for doubt in doubts if doubt[1] >= self.applied_time]
        if kind == _SURE:
            # Without DOUBT a crash came while all this was being applied.
            low = doubts.pop()[0] if doubts and doubts[-1][1] == math.inf else self.applied_time
            later = itertools.takewhile(lambda record: record[1] > self.doubted_seq, reversed(self.records))
            high = next((record[0] for record in later if record[2] not in SILENT_KINDS), None)
            if high is not None:  # else nothing came again: nothing was lost
                doubts.append((low, high))
            self.doubted_seq = 0
        elif not doubts or doubts[-1][1] != math.inf:
            doubts.append((before, math.inf))
            self.doubted_seq = seq

    def complete_time(self, doubts: list[Doubt]) -> int:
        """Return the time up to which nothing is missing; ``doubts``: those that count."""
        return min([self.settle(), *(doubt[0] for doubt in self.doubts if doubt in doubts)])

    def settle(self) -> int:
        """Return the latest arrived time, after taking in a promise that has become valid."""
        if self.promise_time > self.arrived_time and self.arrived_seq >= self.promise_seq:
            self.arrived_time = self.promise_time
        return self.arrived_time


class ApplyDomain:
    """Groups that are kept consistent with each other.

    ``mode`` is "sequence" if write times are controller-wide numbers, which are then applied
    without leaving one out, beginning with ``next_number``; else "time". Of the numbers below
    ``known`` none is missing: what is not pending has been applied. ``order`` chooses the order
    of the steps inside a plan: "time" is the order of the writes, "sequence" gives one step a
    group, which costs less (RC ¶47).
    """

    def __init__(self, mode: Mode, order: Order, next_number: int = 1) -> None:
        self.mode = mode
        self.order = order
        self.next_number = next_number
        self.known = 0
        self._groups: dict[str, _Group] = {}
        self._outstanding: list[Step] = []

    def add_group(self, name: str, applied_seq: int, applied_time: int = 0) -> None:
        """Add a group whose records are applied through ``applied_seq``, the last of them at ``applied_time``.

        The line stands at ``applied_time`` until something arrives, for all groups.

        Raises:
            Conflict: a group of this name is there already.
        """
        if name in self._groups:
            raise Conflict(f"group {name} is already in the apply domain", group=name)
        self._groups[name] = _Group(applied_seq, applied_time, applied_seq, applied_time)

    def arrive(self, name: str, seq: int, time: int, kind: int = Kind.WRITE) -> None:
        """Take in the next record of a group (ticks too), in sequence order without gaps.

        Raises:
            Corrupt: not the next number, or a time older than the one before or than a promise.
            NotFound: no such group.
        """
        group = self._groups.get(name) or self._group(name)
        if seq != group.arrived_seq + 1 or time < group.arrived_time:
            raise self._out_of_order(name, group.arrived_seq, group.arrived_time, seq, time)
        before = group.arrived_time
        group.arrived_seq = seq
        group.arrived_time = time
        group.records.append((time, seq, kind))
        if kind >= _DOUBT:
            group.doubt(before)

    def arrive_many(self, name: str, records: Iterable[Pending]) -> None:
        """Take in (time, seq, kind) of many records; like ``arrive`` for each, and nothing at all if one is refused."""
        group = self._group(name)
        accepted = list(records)
        last_seq, last_time = group.arrived_seq, group.arrived_time
        highest = 0
        for time, seq, kind in accepted:
            if seq != last_seq + 1 or time < last_time:
                raise self._out_of_order(name, last_seq, last_time, seq, time)
            last_seq = seq
            last_time = time
            if kind > highest:
                highest = kind
        if highest >= _DOUBT:
            for time, seq, kind in accepted:
                self.arrive(name, seq, time, kind)
            return
        group.arrived_seq = last_seq
        group.arrived_time = last_time
        group.records.extend(accepted)

    def promise(self, name: str, after_seq: int, time: int) -> None:
        """Take in a heartbeat: after the record ``after_seq`` nothing older than ``time`` follows.

        It counts once ``after_seq`` has arrived, for the heartbeat may have overtaken records; a
        later heartbeat takes the place of one that still waits. A promise is not journaled: after
        a restart the line is where the records put it. Of no effect in sequence mode.
        """
        group = self._group(name)
        group.settle()
        if self.mode == "time" and time > group.arrived_time:
            group.promise_seq = after_seq
            group.promise_time = time

    def oldest_arrived(self) -> int:
        """Return T, below which everything has arrived; 0 without groups. In sequence mode the next number."""
        if self.mode == "sequence":
            return self.next_number
        return _in_front_of(self._doubts(), self._line())

    def _line(self) -> int:
        return min((group.settle() for group in self._groups.values()), default=0)

    def _doubts(self) -> list[Doubt]:
        """What no cut may lie in. One group by itself is always consistent."""
        if len(self._groups) == 1:
            return []
        return [doubt for group in self._groups.values() for doubt in group.doubts if doubt[1] >= group.applied_time]

    def doubt_waits_for(self, name: str) -> bool:
        """Whether a later time of the group ``name`` is all that is needed to get past the doubts."""
        highest = max((high for _, high in self._doubts()), default=math.inf)
        return highest < math.inf and [n for n, group in self._groups.items() if group.settle() <= highest] == [name]

    def needed_number(self) -> int:
        """Sequence mode: the number that each group has to arrive at so that more is shown; 0 if nothing waits."""
        heads = [group.records[0][0] for group in self._groups.values() if group.records]
        if not heads:
            return 0
        needed = _behind(self._doubts(), min(heads))
        return min(heads) if needed is None else max(min(heads), needed - 1)

    def holder(self) -> tuple[str, int] | None:
        """Return the group that holds the line back, and T. None without groups.

        None in sequence mode too: which group the missing number belongs to is not known.
        """
        if self.mode == "sequence" or not self._groups:
            return None
        time, name = min((group.settle(), name) for name, group in self._groups.items())
        return name, time

    @property
    def cut_time(self) -> int:
        """Everything older than this is visible, nothing newer is, as of the last ``confirm``.

        Of what has exactly this time, a beginning of one group may be visible.
        It falls only when a group is added that is behind.
        """
        heads = [group.records[0][0] for group in self._groups.values() if group.records]
        return min([self.oldest_arrived(), *heads])

    def pending(self, name: str) -> int:
        """Return how many records of the group have arrived and are not applied."""
        return len(self._group(name).records)

    def position(self, name: str) -> Position:
        """Return where the group stands."""
        group = self._group(name)
        arrived_time = group.settle()
        return Position(group.arrived_seq, arrived_time, group.applied_seq, group.applied_time, len(group.records))

    def remaining(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield (seq, time) of what has arrived and is not applied, oldest first."""
        for time, seq, _ in self._group(name).records:
            yield seq, time

    def plan(self, limit: int) -> list[Step]:
        """Return the steps that may be made visible now, all at once, in this order; empty if there are none.

        Covers about ``limit`` records, and at least one if anything may be applied. Call
        ``confirm`` when it is done; until then the same plan is returned, so a plan that failed
        half-way is repeated (applying a record twice changes nothing, I2).

        Raises:
            Corrupt: sequence mode only: a number came twice. Nothing more can be planned.
        """
        if not self._outstanding:
            self._outstanding = self._choose(max(1, limit))
            if self.mode == "sequence" and not self._outstanding:
                self._refuse_repeated_numbers()
        return list(self._outstanding)

    def confirm(self) -> None:
        """The outstanding plan has been applied wholly: take its records off, and move the cut."""
        for name, through in self._outstanding:
            group = self._groups[name]
            records = group.records
            time = group.applied_time
            while records and records[0][1] <= through:
                time = records.popleft()[0]
            group.applied_seq = through
            group.applied_time = time
            if self.mode == "sequence" and time >= self.next_number:
                self.next_number = time + 1
        self._outstanding = []
        if self.next_number < self.known:
            self.next_number = min(
                [self.known, *(group.records[0][0] for group in self._groups.values() if group.records)]
            )

    def final_plan(self) -> FinalPlan:
        """Return what a takeover applies: everything that is consistent. Changes nothing here.

        Beyond ``plan``, the records with exactly the time T are used if no other group has or
        could have any: then only later ones of the same group are missing, as ever after a
        takeover. So one group by itself loses nothing that has arrived. A number that came
        twice ends the plan there, and is no error here.
        """
        groups = self._groups
        cut_seqs = {name: group.applied_seq for name, group in groups.items()}
        everything = 1 + sum(len(group.records) for group in groups.values())
        steps = self._choose(everything)
        cut_seqs.update(steps)
        cut_time = self.oldest_arrived()
        if self.mode == "time":
            rest = self._steps_at_line(cut_time, cut_seqs)
        else:
            rest = self._silent_through(math.inf, cut_seqs, _SEAMS)
            used = (time for name, group in groups.items() for time, seq, _ in group.records if seq <= cut_seqs[name])
            cut_time = max(cut_time, 1 + max(used, default=0))
        steps += rest
        cut_seqs.update(rest)
        dropped = {
            name: (cut_seqs[name] + 1, group.arrived_seq)
            for name, group in groups.items()
            if group.arrived_seq > cut_seqs[name]
        }
        return FinalPlan(steps, cut_time, cut_seqs, dropped)

    def _group(self, name: str) -> _Group:
        try:
            return self._groups[name]
        except KeyError:
            raise NotFound(f"group {name} is not in the apply domain", group=name) from None

    def _out_of_order(self, name: str, last_seq: int, last_time: int, seq: int, time: int) -> Corrupt:
        return Corrupt(
            f"group {name}: record {seq} at {time} cannot follow record {last_seq} at {last_time}",
            group=name, seq=seq, time=time, last_seq=last_seq, last_time=last_time,
        )  # fmt: skip

    def _choose(self, limit: int) -> list[Step]:
        doubts = self._doubts()
        if self.mode == "sequence":
            # Within a group numbers only rise: one that no group has is not to come once each has arrived beyond it.
            known = max(self.known, _in_front_of(doubts, self._line() + 1))
            steps = _merge_numbers(self._groups, self.next_number, limit, known, doubts)
            return steps if self.order == "time" else _one_step_each(steps)
        line = self.oldest_arrived()
        if self.order == "time":
            steps = _merge_times(self._groups, line, limit, doubts)
        else:
            steps = _steps_below(self._groups, _bound(self._groups, line, limit, doubts))
        return steps or self._silent_through(line, {}, _TICKS)

    def _silent_through(self, line: float, after: dict[str, int], kinds: frozenset[int]) -> list[Step]:
        """Steps over the records of ``kinds`` up to the time ``line`` that come next in each group behind ``after``."""
        steps = []
        for name, group in sorted(self._groups.items()):
            through = None
            for time, seq, kind in _later(group, after.get(name, 0)):
                if time > line or kind not in kinds:
                    break
                through = seq
            if through is not None:
                steps.append((name, through))
        return steps

    def _steps_at_line(self, line: int, cut_seqs: dict[str, int]) -> list[Step]:
        """Steps of a takeover beyond ``cut_seqs``, which covers what is older than ``line``."""
        # No more records come that a tick could be ahead of: what has only ticks left has lost nothing.
        newest = max((group.arrived_time for group in self._groups.values()), default=line)
        steps = self._silent_through(newest, cut_seqs, SILENT_KINDS)
        after = cut_seqs | dict(steps)
        doubts = [doubt for doubt in self._doubts() if doubt[1] >= line]
        holders = [name for name, group in self._groups.items() if group.complete_time(doubts) == line]
        writers = []
        for name, group in self._groups.items():
            record = next(_later(group, after[name]), None)
            if record is not None and record[0] == line:
                writers.append(name)
        if len(holders) == 1 and writers == holders:
            name = holders[0]
            records = _later(self._groups[name], after[name])
            here = itertools.takewhile(lambda record: record[0] == line and record[2] != _DOUBT, records)
            steps.append((name, max(seq for _, seq, _ in here)))
            steps += self._silent_through(newest, cut_seqs | dict(steps), SILENT_KINDS)
        return steps

    def _refuse_repeated_numbers(self) -> None:
        seen: dict[int, str] = {}
        for name, group in self._groups.items():
            if not group.records:
                continue
            number = group.records[0][0]
            other = seen.setdefault(number, name)
            if number < self.next_number or other != name:
                raise Corrupt(
                    f"group {name}: number {number} came twice; the next one is {self.next_number}",
                    group=name, number=number, next_number=self.next_number,
                )  # fmt: skip


def _in_front_of(doubts: list[Doubt], cut: int) -> int:
    """Return the latest cut up to ``cut`` that lies in no doubt."""
    while inside := [low for low, high in doubts if low < cut <= high]:
        cut = min(inside)
    return cut


def _behind(doubts: list[Doubt], cut: int) -> int | None:
    """Return the earliest cut from ``cut`` on that lies in no doubt, None if there is none yet."""
    while inside := [high for low, high in doubts if low < cut <= high]:
        if max(inside) == math.inf:
            return None
        cut = int(max(inside)) + 1
    return cut


def _later(group: _Group, seq: int) -> Iterator[Pending]:
    """Pending records above ``seq``."""
    return (record for record in group.records if record[1] > seq)


def _merge_times(groups: dict[str, _Group], line: int, limit: int, doubts: list[Doubt]) -> list[Step]:
    """Steps in the order (time, group, seq) over about ``limit`` records older than ``line``.

    Ends between two times, or inside a time that only one group has. A heap entry per group,
    none per record: 50 000 records a second pass here.
    """
    heads: list[tuple[int, str, int, Iterator[Pending]]] = []
    for name, group in groups.items():
        records = iter(group.records)
        first = next(records, None)
        if first is not None and first[0] < line:
            heads.append((first[0], name, first[1], records))
    heapq.heapify(heads)
    replace = heapq.heapreplace
    steps: list[Step] = []
    taken = through = 0
    last_name: str | None = None
    last_time: int | None = None
    shared = False  # the time last taken was met in more than one group
    while heads:
        time, name, seq, records = heads[0]
        if time != last_time:
            if taken >= limit and _behind(doubts, time) == time:
                break
            last_time = time
            shared = False
        elif name != last_name:
            shared = True
        elif (
            taken >= limit
            and not shared
            and all(head[0] != time or head[1] == name for head in heads)
            and _behind(doubts, time) == time
            and _behind(doubts, time + 1) == time + 1
        ):
            break
        if name != last_name:
            if last_name is not None:
                steps.append((last_name, through))
            last_name = name
        through = seq
        taken += 1
        following = next(records, None)
        if following is None or following[0] >= line:
            heapq.heappop(heads)
        else:
            replace(heads, (following[0], name, following[1], records))
    if last_name is not None:
        steps.append((last_name, through))
    return steps


def _merge_numbers(groups: dict[str, _Group], number: int, limit: int, known: int, doubts: list[Doubt]) -> list[Step]:
    """Steps over at most ``limit`` consecutive numbers from ``number``. Ends before a number that two groups have.

    Numbers below ``known`` that no group has are passed.
    """
    heads: dict[int, tuple[str, int, Iterator[Pending]]] = {}
    for name, group in groups.items():
        records = iter(group.records)
        first = next(records, None)
        if first is None:
            continue
        if first[0] < number or first[0] in heads:
            return []
        heads[first[0]] = (name, first[1], records)
    steps: list[Step] = []
    taken = 0
    while heads and (taken < limit or _behind(doubts, number) != number):
        if number not in heads:
            passed = min([known, *heads])
            if passed <= number or passed not in heads:
                break
            number = passed
        name, through, records = heads.pop(number)
        while True:
            taken += 1
            number += 1
            following = next(records, None)
            if following is None or following[0] != number or number in heads:
                break
            if taken >= limit and _behind(doubts, number) == number:
                break
            through = following[1]
        steps.append((name, through))
        if following is not None:
            if following[0] in heads:
                break
            heads[following[0]] = (name, following[1], records)
    return steps


def _one_step_each(steps: list[Step]) -> list[Step]:
    return sorted(dict(steps).items())


def _bound(groups: dict[str, _Group], line: int, limit: int, doubts: list[Doubt]) -> int:
    """Return a time up to ``line`` below which there are about ``limit`` pending records, at least one if any is."""
    active = [group.records for group in groups.values() if group.records and group.records[0][0] < line]
    if sum(map(len, active)) <= limit:
        return line
    share = max(1, limit // len(active))
    nearest = min(records[0][0] for records in active)
    shares = [records[share][0] for records in active if len(records) > share]
    # All that have the oldest time go together, however many they are.
    bound = _behind(doubts, max(nearest + 1, min([line, *shares])))
    return line if bound is None else min(line, bound)


def _steps_below(groups: dict[str, _Group], bound: int) -> list[Step]:
    """One step for each group that has pending records older than ``bound``."""
    steps = []
    for name, group in sorted(groups.items()):
        through = 0
        for time, seq, _ in group.records:
            if time >= bound:
                break
            through = seq
        if through:
            steps.append((name, through))
    return steps
