"""The planner against brute force: what is visible is always a beginning of what the hosts wrote.

The history is one list of records in the order in which the controller accepted them. A host
may have looked at any record before it wrote a later one, so an image is consistent only if
the records in it are a beginning of that list, whatever their groups and times are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.apply_plan import ApplyDomain, Order, Step
from controllerd.model.errors import Conflict, Corrupt, NotFound
from controllerd.model.records import Kind

NAMES = ("b", "a", "d", "c")
ORDERS: tuple[Order, ...] = ("time", "sequence")


@dataclass(frozen=True)
class Event:
    """One record of the history, in the order of acceptance."""

    name: str
    seq: int
    time: int
    kind: int


Action = tuple[str, int, int]
"""What to do ("arrive", "promise", "plan", "plan again"), a group index, a count."""

histories = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40)
schedules = st.lists(
    st.tuples(
        st.sampled_from(("arrive", "arrive", "arrive", "promise", "plan", "plan again")),
        st.integers(0, 3),
        st.integers(1, 6),
    ),
    max_size=60,
)


def build_history(draws: Iterable[tuple[int, int, bool]], groups: int, *, numbers: bool = False) -> list[Event]:
    """Turn draws of (group, time step, is a tick) into a history over ``groups`` groups."""
    last_seq = dict.fromkeys(NAMES, 0)
    history = []
    time = 0
    for index, step, tick in draws:
        name = NAMES[index % groups]
        time += 1 if numbers else step
        last_seq[name] += 1
        history.append(Event(name, last_seq[name], time, Kind.TICK if tick else Kind.WRITE))
    return history


class World:
    """A domain, a history that arrives in it bit by bit, and what is visible."""

    def __init__(self, domain: ApplyDomain, history: list[Event], groups: int) -> None:
        self.domain = domain
        self.history = history
        self.names = NAMES[:groups]
        self.by_group = {name: [event for event in history if event.name == name] for name in self.names}
        self.arrived = dict.fromkeys(self.names, 0)
        self.promises: dict[str, list[tuple[int, int]]] = {name: [] for name in self.names}
        self.visible = dict.fromkeys(self.names, 0)
        self.cut = 0
        for name in self.names:
            domain.add_group(name, 0)

    def arrive(self, name: str, count: int) -> None:
        events = self.by_group[name][self.arrived[name] : self.arrived[name] + count]
        if count % 2:
            for event in events:
                self.domain.arrive(name, event.seq, event.time, event.kind)
        else:
            self.domain.arrive_many(name, [(event.time, event.seq, event.kind) for event in events])
        self.arrived[name] += len(events)

    def promise(self, name: str, ahead: int) -> None:
        """A heartbeat made when up to ``ahead`` more records had been sent than have arrived."""
        events = self.by_group[name]
        after = min(self.arrived[name] + ahead - 1, len(events))
        last = self.history[-1].time if self.history else 0
        time = events[after].time if after < len(events) else last
        self.domain.promise(name, after, time)
        self.promises[name].append((after, time))

    def line(self) -> int:
        """T by definition; the domain may leave promises out, so this is the highest it can be."""
        latest = []
        for name in self.names:
            arrived = self.by_group[name][: self.arrived[name]]
            promised = [time for after, time in self.promises[name] if self.arrived[name] >= after]
            latest.append(max([event.time for event in arrived] + promised, default=0))
        return min(latest)

    def expand(self, steps: list[Step]) -> list[Event]:
        """The records that the steps apply, in the order of the steps; checks the order inside each group."""
        applied = []
        at = dict(self.visible)
        for name, through in steps:
            assert at[name] < through <= self.arrived[name]
            applied += self.by_group[name][at[name] : through]
            at[name] = through
        return applied

    def show(self, steps: list[Step]) -> None:
        self.visible.update(steps)
        self.domain.confirm()

    def shown(self) -> set[Event]:
        return {event for name in self.names for event in self.by_group[name][: self.visible[name]]}

    def run(self, schedule: Iterable[Action]) -> Iterable[list[Step]]:
        """Do the schedule; yields each plan, which the caller shows."""
        for what, index, count in schedule:
            name = self.names[index % len(self.names)]
            if what == "arrive":
                self.arrive(name, count)
            elif what == "promise":
                self.promise(name, count)
            else:
                steps = self.domain.plan(count)
                if what == "plan again":
                    self.arrive(name, count)
                    assert self.domain.plan(1) == steps or not steps
                    steps = self.domain.plan(1)
                yield steps
            self.check_positions()

    def check_positions(self) -> None:
        for name in self.names:
            position = self.domain.position(name)
            assert position.applied_seq == self.visible[name]
            assert position.arrived_seq == self.arrived[name]
            assert position.pending == self.domain.pending(name) == self.arrived[name] - self.visible[name]
            remaining = list(self.domain.remaining(name))
            assert [seq for seq, _ in remaining] == list(range(self.visible[name] + 1, self.arrived[name] + 1))


def writes(events: Iterable[Event]) -> set[Event]:
    return {event for event in events if event.kind != Kind.TICK}


def assert_consistent(history: list[Event], image: set[Event]) -> None:
    """The writes in the image are a beginning of the writes in the history."""
    order = [event for event in history if event.kind != Kind.TICK]
    assert writes(image) == set(order[: len(writes(image))])


@pytest.mark.parametrize("order", ORDERS)
@given(draws=histories, schedule=schedules, groups=st.integers(1, 4))
def test_time_mode_shows_exactly_what_is_older_than_a_time_below_the_line(
    order: Order, draws: list[tuple[int, int, bool]], schedule: list[Action], groups: int
) -> None:
    history = build_history(draws, groups)
    world = World(ApplyDomain("time", order), history, groups)
    cut = 0
    for steps in world.run(schedule):
        image = world.shown() | set(world.expand(steps))
        assert all(event.time < world.line() for event in writes(image))
        assert all(event.time <= world.line() for event in image)
        world.show(steps)
        assert cut <= world.domain.cut_time <= world.line()
        cut = world.domain.cut_time
        assert writes(event for event in history if event.time < cut) <= image
        newer = writes(event for event in image if event.time >= cut)
        assert all(event.time == cut for event in newer)
        # Only order time may stop inside a time, and only if no other group has writes at it.
        assert not newer or order == "time"
        assert not newer or len({event.name for event in writes(history) if event.time == cut}) == 1
        assert_consistent(history, image)


@pytest.mark.parametrize("order", ORDERS)
@given(draws=histories, schedule=schedules, groups=st.integers(1, 4))
def test_time_mode_always_progresses_and_keeps_slices_small(
    order: Order, draws: list[tuple[int, int, bool]], schedule: list[Action], groups: int
) -> None:
    history = build_history(draws, groups)
    world = World(ApplyDomain("time", order), history, groups)
    for steps in world.run(schedule):
        world.show(steps)
        line = world.domain.oldest_arrived()
        pending = [
            event
            for name in world.names
            for event in world.by_group[name][world.visible[name] : world.arrived[name]]
            if event.time < line
        ]
        limit = 2
        applied = world.expand(world.domain.plan(limit))
        assert bool(pending) <= bool(applied)
        if pending:
            largest_tie = max(sum(event.time == other.time for other in pending) for event in pending)
            slack = groups if order == "sequence" else 0
            assert len(applied) <= limit + slack + largest_tie
        if pending and order == "time":
            assert applied == sorted(applied, key=lambda event: (event.time, event.name, event.seq))
        if order == "sequence":
            names = [name for name, _ in world.domain.plan(limit)]
            assert names == sorted(set(names))
        world.show(world.domain.plan(limit))


@pytest.mark.parametrize("order", ORDERS)
@given(draws=histories, groups=st.integers(1, 4))
def test_time_mode_comes_to_rest_when_all_groups_have_ticked(
    order: Order, draws: list[tuple[int, int, bool]], groups: int
) -> None:
    history = build_history(draws, groups)
    end = history[-1].time + 1 if history else 1
    for name in NAMES[:groups]:
        seq = sum(event.name == name for event in history)
        history += [Event(name, seq + 1, end, Kind.TICK), Event(name, seq + 2, end, Kind.TICK)]
    world = World(ApplyDomain("time", order), history, groups)
    for name in world.names:
        world.arrive(name, len(history))
    while steps := world.domain.plan(3):
        world.expand(steps)
        world.show(steps)
    assert world.visible == world.arrived
    assert world.domain.cut_time == end
    assert all(world.domain.position(name).applied_time == end for name in world.names)


@pytest.mark.parametrize("order", ORDERS)
@given(draws=histories, schedule=schedules, groups=st.integers(1, 4))
def test_takeover_uses_a_consistent_beginning_and_names_the_rest(
    order: Order, draws: list[tuple[int, int, bool]], schedule: list[Action], groups: int
) -> None:
    history = build_history(draws, groups)
    world = World(ApplyDomain("time", order), history, groups)
    for steps in world.run(schedule):
        world.show(steps)
    line = world.domain.oldest_arrived()
    final = world.domain.final_plan()
    assert final == world.domain.final_plan()
    image = world.shown() | set(world.expand(final.steps))
    assert_consistent(history, image)
    assert writes(event for event in history if event.time < line) <= image
    assert final.cut_time == line
    assert_final_positions(world, final.steps, final.cut_seqs, final.dropped)
    for name, (first, last) in final.dropped.items():
        assert writes(world.by_group[name][first - 1 : last])
    if groups == 1:
        assert final.dropped == {}


def assert_final_positions(
    world: World, steps: list[Step], cut_seqs: dict[str, int], dropped: dict[str, tuple[int, int]]
) -> None:
    assert cut_seqs == world.visible | dict(steps)
    for name in world.names:
        rest = (cut_seqs[name] + 1, world.arrived[name])
        assert dropped.get(name) == (rest if rest[0] <= rest[1] else None)


@pytest.mark.parametrize("order", ORDERS)
@given(draws=histories, schedule=schedules, groups=st.integers(1, 4))
def test_sequence_mode_leaves_no_number_out(
    order: Order, draws: list[tuple[int, int, bool]], schedule: list[Action], groups: int
) -> None:
    history = build_history(draws, groups, numbers=True)
    world = World(ApplyDomain("sequence", order), history, groups)
    for steps in world.run(schedule):
        following = len(world.shown()) + 1
        applied = world.expand(steps)
        numbers = [event.time for event in applied]
        assert (numbers if order == "time" else sorted(numbers)) == list(range(following, following + len(numbers)))
        arrived = {event.time for name in world.names for event in world.by_group[name][: world.arrived[name]]}
        world.show(steps)
        assert world.domain.next_number == world.domain.cut_time == following + len(numbers)
        assert world.domain.holder() is None
        limited = world.domain.plan(2)
        assert len(world.expand(limited)) <= 2
        assert bool(limited) == (world.domain.next_number in arrived)
        world.show(limited)
    final = world.domain.final_plan()
    image = world.shown() | set(world.expand(final.steps))
    assert {event.time for event in image} == set(range(1, len(image) + 1))
    assert final.cut_time == len(image) + 1
    assert_final_positions(world, final.steps, final.cut_seqs, final.dropped)
    world.show(world.domain.plan(len(history) + 1))
    assert world.shown() == image


def two_groups(order: Order = "time") -> ApplyDomain:
    domain = ApplyDomain("time", order)
    domain.add_group("a", 0)
    domain.add_group("b", 0)
    return domain


@pytest.mark.parametrize("order", ORDERS)
def test_a_time_shared_by_two_groups_is_never_split(order: Order) -> None:
    domain = two_groups(order)
    domain.arrive_many("a", [(5, 1, Kind.WRITE), (5, 2, Kind.WRITE), (9, 3, Kind.TICK)])
    domain.arrive_many("b", [(5, 1, Kind.WRITE), (9, 2, Kind.TICK)])
    assert domain.plan(1) == [("a", 2), ("b", 1)]


def test_a_shared_time_is_not_split_inside_its_second_group() -> None:
    domain = two_groups()
    domain.arrive_many("a", [(5, 1, Kind.WRITE), (9, 2, Kind.TICK)])
    domain.arrive_many("b", [(5, 1, Kind.WRITE), (5, 2, Kind.WRITE), (5, 3, Kind.WRITE), (9, 4, Kind.TICK)])
    assert domain.plan(2) == [("a", 1), ("b", 3)]


def test_a_time_of_one_group_is_split_in_order_time() -> None:
    domain = two_groups()
    domain.arrive_many("a", [(5, seq, Kind.WRITE) for seq in range(1, 9)])
    domain.promise("a", 8, 9)
    domain.promise("b", 0, 9)
    assert domain.plan(3) == [("a", 3)]
    domain.confirm()
    assert domain.cut_time == 5


def test_equal_times_wait_until_the_line_has_passed_them() -> None:
    domain = two_groups()
    domain.arrive("a", 1, 7)
    domain.arrive("b", 1, 7)
    assert domain.plan(10) == []
    domain.arrive("a", 2, 8)
    assert domain.plan(10) == []
    domain.arrive("b", 2, 8)
    assert domain.plan(10) == [("a", 1), ("b", 1)]


def test_idle_group_holds_the_line_until_it_promises() -> None:
    domain = two_groups()
    domain.arrive("a", 1, 100)
    domain.arrive("a", 2, 200)
    assert domain.holder() == ("b", 0)
    domain.promise("b", 0, 150)
    assert domain.holder() == ("b", 150)
    assert domain.plan(10) == [("a", 1)]


def test_promise_that_overtook_its_records_waits_for_them() -> None:
    domain = two_groups()
    domain.arrive("a", 1, 50)
    domain.promise("a", 1, 99)
    domain.promise("b", 2, 90)
    assert domain.oldest_arrived() == 0
    domain.arrive("b", 1, 10)
    assert domain.oldest_arrived() == 10
    domain.arrive("b", 2, 20)
    assert domain.oldest_arrived() == 90
    with pytest.raises(Corrupt):
        domain.arrive("b", 3, 89)


def test_takeover_of_one_group_loses_nothing_that_arrived() -> None:
    domain = ApplyDomain("time", "time")
    domain.add_group("a", 10, 3)
    domain.arrive_many("a", [(5, 11, Kind.WRITE), (7, 12, Kind.WRITE), (7, 13, Kind.WRITE)])
    assert domain.plan(10) == [("a", 11)]
    final = domain.final_plan()
    assert final.cut_seqs == {"a": 13}
    assert final.dropped == {}


def test_takeover_drops_what_another_group_may_have_had_before_it() -> None:
    domain = two_groups()
    domain.arrive_many("a", [(5, 1, Kind.WRITE), (8, 2, Kind.WRITE), (9, 3, Kind.WRITE)])
    domain.arrive_many("b", [(6, 1, Kind.WRITE), (8, 2, Kind.WRITE)])
    final = domain.final_plan()
    assert final.cut_seqs == {"a": 1, "b": 1}
    assert final.dropped == {"a": (2, 3), "b": (2, 2)}
    assert final.cut_time == 8


def test_takeover_drops_a_last_time_that_two_groups_share() -> None:
    domain = two_groups()
    domain.arrive_many("a", [(5, 1, Kind.WRITE), (8, 2, Kind.WRITE)])
    domain.arrive_many("b", [(8, 1, Kind.WRITE)])
    assert domain.final_plan().dropped == {"a": (2, 2), "b": (1, 1)}


@pytest.mark.parametrize("order", ORDERS)
def test_takeover_is_not_cut_short_by_a_group_with_most_of_the_records(order: Order) -> None:
    domain = two_groups(order)
    domain.arrive_many("a", [(time, time, Kind.WRITE) for time in range(1, 100)])
    domain.arrive_many("b", [(50, 1, Kind.WRITE), (200, 2, Kind.TICK)])
    final = domain.final_plan()
    assert final.cut_seqs == {"a": 99, "b": 2}
    assert final.dropped == {}


def test_number_that_comes_twice_stops_the_plan_before_it() -> None:
    domain = ApplyDomain("sequence", "time", next_number=7)
    domain.add_group("a", 0)
    domain.add_group("b", 0)
    domain.arrive_many("a", [(7, 1, Kind.WRITE), (8, 2, Kind.WRITE)])
    domain.arrive_many("b", [(8, 1, Kind.WRITE)])
    assert domain.plan(10) == [("a", 1)]
    domain.confirm()
    with pytest.raises(Corrupt, match="number 8 came twice"):
        domain.plan(10)
    assert domain.final_plan().dropped == {"a": (2, 2), "b": (1, 1)}


def test_refused_records_change_nothing() -> None:
    domain = two_groups()
    domain.arrive("a", 1, 5)
    for seq, time in ((1, 6), (3, 6), (2, 4)):
        with pytest.raises(Corrupt):
            domain.arrive("a", seq, time)
    with pytest.raises(Corrupt):
        domain.arrive_many("a", [(6, 2, Kind.WRITE), (7, 4, Kind.WRITE)])
    assert list(domain.remaining("a")) == [(1, 5)]
    assert domain.position("a").arrived_seq == 1
    with pytest.raises(NotFound):
        domain.arrive("z", 1, 1)
    with pytest.raises(Conflict):
        domain.add_group("a", 0)


def test_domain_without_groups_has_nothing_to_do() -> None:
    domain = ApplyDomain("time", "time")
    assert domain.holder() is None
    assert domain.oldest_arrived() == domain.cut_time == 0
    assert domain.plan(10) == []
