"""Arrival against a set of numbers: in order, once, without gaps, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.arrival import Arrival
from controllerd.model.errors import Corrupt, Overflow

Frame = tuple[int, int]
LIMIT_BYTES = 100

frames = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8)), max_size=60)


@given(start=st.integers(1, 10), draws=frames)
def test_numbers_come_out_once_in_order_and_whatever_is_cut(start: int, draws: list[Frame]) -> None:
    arrival: Arrival[Frame] = Arrival(start, LIMIT_BYTES)
    expected = start
    offered: set[Frame] = set()
    for first, more in draws:
        last = first + more
        size = 5 * (more + 1)
        before = (arrival.next_sequence, arrival.held_bytes, arrival.held_frames)
        dropped = arrival.duplicates + arrival.overlaps
        overlaps = arrival.overlaps
        arrival.ask_again = False
        try:
            ready = arrival.offer(first, last, size, (first, last))
        except Overflow:
            assert before == (arrival.next_sequence, arrival.held_bytes, arrival.held_frames)
            assert first > expected
            continue
        offered.add((first, last))
        assert bool(ready) == (first == expected)
        for ready_first, ready_last in ready:
            assert (ready_first, ready_last) in offered
            assert ready_first == expected
            expected = ready_last + 1
        assert arrival.next_sequence == expected
        assert arrival.held_bytes <= LIMIT_BYTES
        # Each frame is given out, held or counted as dropped.
        gone = arrival.duplicates + arrival.overlaps - dropped
        assert 1 + before[2] == len(ready) + arrival.held_frames + gone
        assert arrival.ask_again == (arrival.overlaps > overlaps)
        gap = arrival.gap()
        assert (gap is None) == (arrival.held_frames == 0)
        if gap is not None:
            assert gap[0] == expected <= gap[1]
            assert any(held_first == gap[1] + 1 for held_first, _ in offered)


@given(data=st.data(), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_any_order_with_repeats_delivers_everything(data: st.DataObject, cuts: list[int]) -> None:
    sent = []
    first = 1
    for count in cuts:
        sent.append((first, first + count - 1))
        first += count
    repeats = data.draw(st.lists(st.sampled_from(sent), max_size=10))
    order = data.draw(st.permutations(sent + repeats))
    arrival: Arrival[Frame] = Arrival(1, 10_000)
    got = [frame for first, last in order for frame in arrival.offer(first, last, 10, (first, last))]
    assert got == sent
    assert arrival.duplicates == len(repeats)
    assert arrival.held_bytes == arrival.held_frames == 0
    assert not arrival.ask_again


@given(draws=frames)
def test_asking_again_for_what_is_missing_always_completes(draws: list[Frame]) -> None:
    """The sender's answer to a request begins at ``next_sequence``, so the run always goes on."""
    arrival: Arrival[None] = Arrival(1, 10_000)
    for first, more in draws:
        arrival.offer(first, first + more, 1, None)
    while arrival.next_sequence <= 40:
        gap = arrival.gap()
        last = gap[1] if gap is not None else 40
        assert arrival.offer(arrival.next_sequence, last, 1, None)
    assert arrival.gap() is None


def test_overlap_with_what_is_here_is_dropped_and_asked_for_again() -> None:
    arrival: Arrival[str] = Arrival(10, 1000)
    assert arrival.offer(8, 12, 50, "cut anew") == []
    assert (arrival.overlaps, arrival.ask_again, arrival.next_sequence) == (1, True, 10)
    arrival.ask_again = False
    assert arrival.offer(10, 12, 30, "asked again") == ["asked again"]
    assert not arrival.ask_again


def test_held_frame_that_became_an_overlap_is_dropped_and_asked_for_again() -> None:
    arrival: Arrival[str] = Arrival(1, 1000)
    assert arrival.offer(4, 9, 60, "ahead") == []
    assert arrival.offer(10, 12, 30, "further ahead") == []
    assert arrival.gap() == (1, 3)
    assert arrival.offer(1, 5, 50, "longer than the gap") == ["longer than the gap"]
    assert arrival.ask_again
    assert arrival.gap() == (6, 9)
    assert arrival.offer(6, 9, 40, "asked again") == ["asked again", "further ahead"]


def test_longer_frame_replaces_the_shorter_one_that_is_held() -> None:
    arrival: Arrival[str] = Arrival(1, 100)
    arrival.offer(3, 4, 60, "short")
    arrival.offer(3, 6, 90, "long")
    arrival.offer(3, 5, 80, "middle")
    assert (arrival.held_frames, arrival.held_bytes, arrival.duplicates) == (1, 90, 2)
    assert arrival.offer(1, 2, 20, "missing") == ["missing", "long"]
    assert arrival.held_bytes == 0


def test_limit_counts_only_what_is_held() -> None:
    arrival: Arrival[str] = Arrival(1, 100)
    arrival.offer(3, 3, 100, "held")
    with pytest.raises(Overflow) as caught:
        arrival.offer(5, 5, 1, "too much")
    assert caught.value.facts == {"limit_bytes": 100, "next_sequence": 1}
    assert arrival.offer(1, 2, 5000, "in order") == ["in order", "held"]


@pytest.mark.parametrize(("first", "last", "size"), [(5, 4, 80), (1, 1, 0), (3, 3, -1)])
def test_frame_that_is_no_run_of_records_is_refused(first: int, last: int, size: int) -> None:
    arrival: Arrival[str] = Arrival(1, 100)
    with pytest.raises(Corrupt):
        arrival.offer(first, last, size, "")
    assert arrival.next_sequence == 1
    assert arrival.gap() is None
