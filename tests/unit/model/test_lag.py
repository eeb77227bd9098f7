"""The lag figure is never too low, and exactly zero when there is nothing to wait for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.lag import LEAST_S, LagClock

NS = 1_000_000_000
WALL = 1_700_000_000
FRESH_S = 1.0

Event = tuple[str, float, float]
"""What happens, seconds since the event before, seconds a heartbeat is under way (or, for "apply", a share)."""
events = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "beat", "beat", "apply", "step")),
        st.floats(0, 3, width=16),
        st.floats(0, 1, width=16),
    ),
    max_size=80,
)


def true_lag(writes: list[float], applied: int, now: float) -> float:
    """Age of the first write that is not applied."""
    return now - writes[applied] if applied < len(writes) else 0.0


@pytest.mark.parametrize("steps", [False, True], ids=["steady clock", "clock that steps"])
@given(events=events, samples_max=st.integers(4, 12))
def test_lag_is_never_reported_too_low(steps: bool, events: list[Event], samples_max: int) -> None:
    clock = LagClock(FRESH_S, samples_max)
    now = 100.0
    peer_ahead = float(WALL)
    writes: list[float] = []
    applied = 0
    told = 0
    for what, after, amount in events:
        now += after
        if what == "write":
            writes.append(now)
        elif what == "beat":
            made, told = now, len(writes)
            now += amount
            clock.heartbeat(told, round((made + peer_ahead) * NS), now, under_way_s=amount)
        elif what == "apply":
            applied = max(applied, round(amount * told))
            clock.applied(applied)
        elif steps:
            peer_ahead += (after - 1.5) * 100
        lag = clock.lag_seconds(now)
        if lag == 0.0:
            # Only writes that no heartbeat told of can be missing, and those are younger than fresh_s.
            assert applied >= told or true_lag(writes, applied, now) == 0.0
            assert true_lag(writes, applied, now) <= FRESH_S
        else:
            assert lag >= true_lag(writes, applied, now) - 1e-6


@given(events=events)
def test_error_is_at_most_the_time_under_way_if_it_is_not_known(events: list[Event]) -> None:
    clock = LagClock(FRESH_S)
    now = 100.0
    longest = 0.0
    writes: list[float] = []
    applied = told = 0
    for what, after, amount in events:
        now += after
        if what == "write":
            writes.append(now)
        elif what == "beat":
            made, told = now, len(writes)
            now += amount
            longest = max(longest, amount)
            clock.heartbeat(told, round((made + WALL) * NS), now)
        elif what == "apply":
            applied = max(applied, round(amount * told))
            clock.applied(applied)
        allowed = longest + (FRESH_S if applied >= told else 0.0)
        assert clock.lag_seconds(now) >= true_lag(writes, applied, now) - allowed - 1e-6


def test_idle_pair_shows_zero_and_a_cut_link_grows_after_fresh_s() -> None:
    clock = LagClock(FRESH_S)
    clock.heartbeat(7, WALL * NS, 10.0)
    assert clock.lag_seconds(10.0) == math.inf
    clock.applied(7)
    assert clock.lag_seconds(10.5) == 0.0
    clock.heartbeat(7, (WALL + 1) * NS, 11.0)
    assert clock.lag_seconds(11.9) == 0.0
    assert clock.lag_seconds(12.0) == pytest.approx(1.0)
    assert clock.lag_seconds(71.0) == pytest.approx(60.0)


def test_slow_apply_shows_the_age_of_the_image() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(10)
    for second in range(60):
        clock.heartbeat(10 + 5 * second, (WALL + second) * NS, 100.0 + second)
    assert clock.consistent_wall_ns == WALL * NS
    assert clock.lag_seconds(159.0) == pytest.approx(59.0)
    clock.applied(10 + 5 * 30 + 2)
    assert clock.consistent_wall_ns == (WALL + 30) * NS
    assert clock.lag_seconds(159.0) == pytest.approx(29.0)
    clock.applied(10 + 5 * 59)
    assert clock.lag_seconds(159.0) == 0.0


def test_samples_are_bounded_and_the_ends_are_kept() -> None:
    clock = LagClock(FRESH_S, samples_max=16)
    clock.applied(1)
    for second in range(1000):
        clock.heartbeat(1 + second, (WALL + second) * NS, float(second))
    assert clock.lag_seconds(999.0) == pytest.approx(999.0)
    clock.applied(500)
    assert 499.0 <= clock.lag_seconds(999.0) < 650.0
    clock.applied(1000)
    assert clock.lag_seconds(999.0) == 0.0


def test_late_heartbeat_does_not_make_the_lag_smaller() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(1)
    clock.heartbeat(1, WALL * NS, 0.0)
    clock.heartbeat(9, (WALL + 1) * NS, 6.0)  # was under way for 5 s
    assert clock.lag_seconds(6.0) == pytest.approx(6.0)


def test_peer_clock_that_steps_back_does_not_hide_the_lag_and_is_forgotten() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(1)
    clock.heartbeat(1, WALL * NS, 0.0)
    clock.heartbeat(2, (WALL - 3600) * NS, 1.0)
    assert clock.lag_seconds(5.0) >= 5.0
    clock.applied(2)
    assert clock.lag_seconds(1.5) == 0.0
    assert clock.lag_seconds(5.0) == pytest.approx(4.0)


def test_peer_clock_that_steps_back_is_forgotten_while_idle() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(1)
    clock.heartbeat(1, WALL * NS, 0.0)
    clock.heartbeat(1, (WALL - 3600) * NS, 1.0)
    assert clock.consistent_wall_ns == (WALL - 3600) * NS
    assert clock.lag_seconds(11.0) == pytest.approx(10.0)


def test_dropped_sample_still_tells_how_late_the_others_were() -> None:
    clock = LagClock(FRESH_S, samples_max=4)
    clock.applied(1)
    # All but the second were under way for 5 s; the second is the one that is dropped.
    for seq, made_s, came_s in ((1, 0, 5.0), (2, 6, 6.0), (3, 7, 12.0), (4, 14, 19.0), (5, 21, 26.0)):
        clock.heartbeat(seq, (WALL + made_s) * NS, came_s)
    assert clock.lag_seconds(30.0) == pytest.approx(30.0)


def test_replaced_sample_still_tells_how_late_the_others_were() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(1)
    for seq, made_s, came_s in ((1, 0, 5.0), (2, 6, 6.0), (2, 7, 12.0)):
        clock.heartbeat(seq, (WALL + made_s) * NS, came_s)
    assert clock.lag_seconds(30.0) == pytest.approx(30.0)


def test_nothing_known_is_infinite() -> None:
    clock = LagClock()
    assert clock.lag_seconds(5.0) == math.inf
    assert clock.consistent_wall_ns is None
    clock.heartbeat(3, WALL * NS, 5.0)
    clock.applied(2)
    assert clock.lag_seconds(5.0) == math.inf


def test_cut_link_shows_its_lag_at_once_until_the_next_heartbeat() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(7)
    clock.heartbeat(7, WALL * NS, 10.0)
    clock.cut()
    assert clock.lag_seconds(10.2) == pytest.approx(0.2)
    clock.heartbeat(7, (WALL + 1) * NS, 11.0)
    assert clock.lag_seconds(11.2) == 0.0


def test_peer_that_is_behind_itself_makes_the_image_older() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(9)
    for second in range(30):
        clock.heartbeat(7, (WALL + second) * NS, 100.0 + second, behind_s=float(second))
    assert clock.lag_seconds(129.0) == pytest.approx(29.0)
    assert clock.consistent_wall_ns == WALL * NS
    clock.heartbeat(9, (WALL + 30) * NS, 130.0, behind_s=0.1)
    assert clock.lag_seconds(130.0) == 0.0


def test_never_zero_when_something_is_known_to_be_missing() -> None:
    clock = LagClock(fresh_s=2.0)
    assert clock.told_s == math.inf
    clock.applied(5)
    clock.heartbeat(5, 100 * 10**9, 10.0)
    assert clock.lag_seconds(10.0) == 0.0
    assert clock.lag_seconds(10.0, missing=True) == LEAST_S
    assert clock.lag_seconds(10.5, missing=True) == pytest.approx(0.5)
    assert clock.told_s == 0.0
    clock.heartbeat(9, 101 * 10**9, 11.0)
    assert clock.told_s == pytest.approx(1.0)
    assert clock.lag_seconds(11.25, missing=True) == pytest.approx(1.25)


def test_clock_of_the_peer_alone_makes_the_image_older_and_never_newer() -> None:
    clock = LagClock(FRESH_S)
    clock.applied(7)
    clock.heartbeat(7, WALL * NS, 10.0)
    clock.cut()
    clock.read_clock((WALL + 30) * NS, 20.0)
    assert clock.lag_seconds(21.0) == pytest.approx(31.0)
    clock.read_clock((WALL + 1) * NS, 22.0)  # was under way for long
    assert clock.lag_seconds(22.0) == pytest.approx(32.0)
    assert clock.heard_s == 10.0


def test_samples_of_nobody_knows_when_tell_no_lag_until_the_clock_of_the_peer_is_read() -> None:
    clock = LagClock(FRESH_S)
    clock.undate()
    clock.read_clock(WALL * NS, 9.0)
    assert not clock.dated
    clock.applied(7)
    clock.heartbeat(7, WALL * NS, 10.0)
    clock.undate()
    assert clock.lag_seconds(10.0) == math.inf
    assert clock.consistent_wall_ns == WALL * NS
    clock.read_clock((WALL + 3) * NS, 10.0)
    assert clock.lag_seconds(10.0) == 0.0
    clock.cut()
    assert clock.lag_seconds(10.0) == pytest.approx(3.0)
