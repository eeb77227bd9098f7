"""Write times never go backwards, whatever clocks and hosts do."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.errors import BadOrder
from controllerd.model.write_time import LOST_STEP, MAX_CARRIED, MAX_HEARD, SHARED_MAX, Source, make_write_time

SOURCES: tuple[Source, ...] = get_args(Source)

Call = tuple[str, int, int]
"""What is called, the clock (it jumps as it likes), the carried time."""
calls = st.lists(
    st.tuples(
        st.sampled_from(("stamp", "carried", "pass on", "tick", "observe", "restart")),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    max_size=60,
)


@pytest.mark.parametrize("source", SOURCES)
@given(calls=calls)
def test_times_never_go_back_and_a_tick_is_above_all_of_them(source: Source, calls: list[Call]) -> None:
    times = make_write_time(source)
    last = 0
    written = -1  # the latest time given to a write
    for what, now, carried in calls:
        match what:
            case "stamp":
                time = written = times.stamp(now, None, 1)
            case "carried":
                time = written = times.stamp(now, carried, 1)
            case "pass on":
                time = written = times.pass_on(carried, now, 1)
            case "tick":
                time = times.tick(now)
                assert time > written
            case "observe":
                times.observe(carried)
                time = times.last
                written = max(written, carried)
                assert time >= carried
            case _:
                times = make_write_time(source, times.last)
                times.observe(max(written, 0))
                time = times.last
        assert time == times.last
        assert time >= last
        last = time


@given(calls=calls)
def test_clock_times_of_hosts_strictly_increase_and_follow_the_clock(calls: list[Call]) -> None:
    times = make_write_time("clock")
    for _, now, carried in calls:
        before = times.last
        assert times.stamp(now, carried, 1) == max(now, before + 1)
    assert times.clamped == 0


@given(calls=calls)
def test_sequence_counts_without_leaving_a_number_out(calls: list[Call]) -> None:
    times = make_write_time("sequence", 40)
    numbers = []
    for what, now, carried in calls:
        if what == "tick":
            numbers.append(times.tick(now))
        elif what == "pass on":
            numbers.append(times.pass_on(carried, now, 1))
        else:
            numbers.append(times.stamp(now, carried, 1))
    assert numbers == list(range(41, 41 + len(numbers)))


def test_number_that_was_lost_is_not_given_again() -> None:
    times = make_write_time("sequence", 40)
    times.pass_lost()
    first = times.last
    assert first == LOST_STEP
    lost = [times.stamp(0, None, 1) for _ in range(3)]
    again = make_write_time("sequence", 40)
    again.observe(first)
    again.pass_lost()
    assert again.stamp(0, None, 1) > lost[-1]


def test_host_time_is_remembered_for_writes_that_carry_none() -> None:
    times = make_write_time("host")
    assert times.stamp(999, 100, 1) == 100
    assert times.stamp(999, None, 1) == 100
    assert times.stamp(999, 200, 1) == 200
    assert times.stamp(999, 150, 1) == 200
    assert times.clamped == 1
    assert times.stamp(999, 200, 1) == 200
    assert times.clamped == 1


def test_host_time_far_ahead_of_the_controller_is_not_believed() -> None:
    times = make_write_time("host", 50, ahead_ns=1000)
    assert times.stamp(100, 1101, 1) == 50
    assert times.stamp(100, MAX_CARRIED, 1) == 50
    assert times.stamp(100, MAX_CARRIED + 1, 1) == 50
    assert times.clamped == 3
    assert times.stamp(100, 1100, 1) == 1100
    # The upstream controller has judged it already, and its clock may be another.
    assert times.pass_on(5000, 100, 1) == 5000


def test_host_tick_moves_the_time_once_and_comes_to_rest() -> None:
    times = make_write_time("host")
    times.stamp(0, 100, 1)
    assert times.tick(0) == 101
    assert times.tick(0) == 101
    assert times.stamp(0, None, 1) == 101
    assert times.tick(0) == 102


@given(sizes=st.lists(st.integers(1, SHARED_MAX + 80), min_size=1, max_size=60), passed_on=st.booleans())
def test_no_more_records_share_a_host_time_than_any_journal_holds(sizes: list[int], passed_on: bool) -> None:
    times = make_write_time("host")
    times.stamp(0, 100, 0)
    shared: dict[int, list[int]] = {}
    for size in sizes:
        time = times.pass_on(40, 0, size) if passed_on else times.stamp(0, None, size)
        shared.setdefault(time, []).append(size)
    assert all(sum(found) <= SHARED_MAX or len(found) == 1 for found in shared.values())
    assert list(shared) == list(range(min(shared), min(shared) + len(shared)))


def test_host_tick_after_recovery_is_above_what_was_written_before() -> None:
    assert make_write_time("host", 100).tick(0) == 101
    times = make_write_time("host")
    times.observe(0)
    assert times.tick(0) == 1


def test_times_of_an_upstream_controller_are_passed_on() -> None:
    times = make_write_time("host")
    assert times.pass_on(50, 9000, 1) == 50
    assert times.pass_on(40, 9000, 1) == 50
    assert times.clamped == 1
    assert times.tick(0) == 51


def test_an_upstream_controller_whose_clock_is_behind_does_not_stand_still() -> None:
    times = make_write_time("clock")
    assert times.pass_on(50, 9000, 1) == 50
    # Were it 50, nothing of that controller would show until another one writes.
    assert times.pass_on(40, 9000, 1) == 51
    assert times.pass_on(51, 9000, 1) == 52
    assert times.clamped == 2
    assert times.pass_on(60, 9000, 1) == 60


@pytest.mark.parametrize("source", ["host", "clock"])
def test_upstream_time_without_room_above_it_is_refused(source: Source) -> None:
    times = make_write_time(source)
    with pytest.raises(BadOrder):
        times.pass_on(MAX_CARRIED + 1, 0, 1)


@pytest.mark.parametrize("source", ["host", "clock"])
def test_time_at_the_end_of_all_times_leaves_room_for_those_of_others(source: Source) -> None:
    times = make_write_time(source)
    assert times.pass_on(MAX_CARRIED, 0, 1) == MAX_HEARD
    assert times.pass_on_tick(MAX_CARRIED, 0) in (MAX_HEARD, MAX_HEARD + 1)
    assert times.pass_on(MAX_CARRIED, 0, 1) < MAX_HEARD + 3


def test_carried_time_without_room_above_it_is_refused() -> None:
    host = make_write_time("host", 5)
    with pytest.raises(BadOrder):
        host.pass_on((1 << 64) - 1, 0, 1)
    assert host.last == 5


@pytest.mark.parametrize("source", SOURCES)
def test_source_is_named(source: Source) -> None:
    assert make_write_time(source).source == source


def test_write_clamped_on_the_synchronous_leg_is_passed_by_the_next_tick() -> None:
    """A group's tick overtook another group's write: the write has the tick's time, and a later tick must pass it."""
    times = make_write_time("host")
    assert times.pass_on_tick(2, 0) == 2
    assert times.pass_on(1, 0, 1) == 2
    assert times.pass_on_tick(2, 0) == 3
    assert times.pass_on_tick(2, 0) == 3


@pytest.mark.parametrize("source", ["host", "clock", "sequence"])
def test_tick_passed_on_is_never_older_than_a_write_before_it(source: Source) -> None:
    times = make_write_time(source)
    write = times.pass_on(100, 5, 1)
    tick = times.pass_on_tick(50, 5)
    assert tick > write
    assert times.pass_on(60, 5, 1) >= tick
