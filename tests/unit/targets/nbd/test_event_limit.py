"""Strangers cannot fill the log."""

from __future__ import annotations

from controllerd.targets.nbd.event_limit import EventLimit


def test_events_beyond_the_limit_are_counted_and_told_once() -> None:
    now = 5.0
    limit = EventLimit(lambda: now)
    answers = [limit.passes() for _ in range(1000)]
    assert answers[:100] == [(True, 0)] * 100
    assert answers[100:] == [(False, 0)] * 900
    now += 11
    assert limit.passes() == (True, 900)
    assert limit.passes() == (True, 0)
    now += 11
    assert limit.passes() == (True, 0)
