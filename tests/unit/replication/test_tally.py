"""Counts of writes and bytes at earlier moments: exact where remembered, in proportion between, else not known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controllerd.replication.tally import SAMPLES, Tallies, Tally, between


def test_nothing_is_known_from_before_the_first_moment() -> None:
    tallies, now = Tallies(), Tally(30, 20, 2000)
    assert tallies.at(5, now) is None
    assert tallies.at(30, now) == now
    tallies.note(Tally(10, 5, 500), 100, 0)
    assert tallies.at(9, now) is None
    assert tallies.at(10, now) == (10, 5, 500)
    assert (tallies.time_at(9), tallies.time_at(10), tallies.time_at(11)) == (None, 100, 100)


def test_what_the_secondary_has_is_remembered_however_long_it_lasts() -> None:
    tallies = Tallies()
    for seq in range(10, 20_000, 7):
        tallies.note(Tally(seq, seq * 2, seq * 300), seq, 10)
    now = Tally(20_000, 40_000, 6_000_000)
    assert tallies.at(10, now) == (10, 20, 3000)
    assert len(tallies._samples) <= SAMPLES
    tallies.note(now, 20_000, 15_000)
    assert tallies.at(10, now) is None, "nobody asks for it any more"
    found = tallies.at(15_000, now)
    assert found is not None
    assert abs(found.writes - 30_000) <= 1


def test_new_journal_begins_anew() -> None:
    tallies = Tallies()
    tallies.note(Tally(100, 100, 100), 1, 0)
    tallies.note(Tally(7, 101, 101), 2, 0)
    assert tallies.at(100, Tally(120, 200, 200)) == (100, 182, 182)
    assert tallies.first == (7, 101, 101)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_bytes_fit_the_writes_between_two_moments(ticks: int, writes: int, place: int) -> None:
    low, high = Tally(3, 2, 4096), Tally(3 + ticks + writes, 2 + writes, 4096 + writes * 4096)
    seq = min(3 + place, high.seq)
    found = between(low, high, seq)
    assert found.bytes - low.bytes == (found.writes - low.writes) * 4096
    assert low.writes <= found.writes <= high.writes
