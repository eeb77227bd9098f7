"""What a secondary keeps of its primary's present over a crash."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from controllerd.replication.contact import Contact, KeptContacts
from controllerd.replication.kept import KEEP_S, Clocks
from controllerd.replication.messages import Heartbeat
from controllerd.storage.catalogue import Catalogue

SECOND = 10**9


class Run:
    """One run of a secondary with pairs "p" and "q"; a crash is the next run.

    The monotonic clock shows ``now_s``, the wall clock ``ahead_s`` more; ``boot`` names the machine's run.
    """

    def __init__(self, catalogue: Catalogue, now_s: float = 0.0, ahead_s: float = 0.0, boot: str = "") -> None:
        self.now_s = now_s
        self.ahead_s = ahead_s
        self.events: list[str] = []
        self.thread_may_go = asyncio.Event()
        self.thread_may_go.set()
        clocks = Clocks(self.wall, lambda: self.now_s, boot)
        self.kept = KeptContacts(catalogue, self.run_blocking, lambda event, _facts: self.events.append(event), clocks)
        self.contacts = {name: Contact(1, self.wall, lambda: self.now_s, 1.0) for name in "pq"}
        for contact in self.contacts.values():
            contact.on_limit = lambda: self.kept.keep_limits(self.contacts, self.now_s)
        self.kept.restore(self.contacts)

    def wall(self) -> int:
        return round((self.now_s + self.ahead_s) * SECOND)

    async def run_blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A thread that comes to its work as late as the test wants."""
        await self.thread_may_go.wait()
        return function(*arguments)

    def heard(
        self, name: str, limit_time: int = 0, *, seq: int = 7, behind_s: int = 0, run: int = 1, under_way_s: float = 0.0
    ) -> None:
        """A heartbeat comes in that was ``under_way_s``."""
        wall_ns = round((self.now_s - under_way_s) * SECOND)
        beat = Heartbeat(seq, wall_ns, wall_ns, run, 0, 0, behind_ns=behind_s * SECOND, limit_time=limit_time)
        self.contacts[name].heartbeat(beat, self.now_s)

    async def keep(self) -> None:
        self.kept.keep(self.contacts, self.now_s)
        await self.kept.settle()


async def test_crash_right_after_a_limit_was_heard_does_not_lift_it() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    await run.keep()
    run.heard("p", 69)
    again = Run(catalogue)
    assert (again.contacts["p"].limit_time, again.contacts["q"].limit_time) == (69, 0)
    assert again.contacts["q"].beat is not None


def test_limit_that_stands_again_outlives_a_crash_and_its_end_before() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("p", 69)
    run.heard("p", 0)
    run.kept.keep_now(run.contacts, run.now_s)
    run.heard("p", 69)
    again = Run(catalogue)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].limit_time == 69


async def test_thread_that_comes_late_does_not_lift_a_limit_that_was_kept_meanwhile() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    run.thread_may_go.clear()
    run.kept.keep(run.contacts, run.now_s)
    await asyncio.sleep(0)
    run.heard("p", 69)
    run.thread_may_go.set()
    await run.kept.settle()
    assert Run(catalogue).contacts["p"].limit_time == 69


async def test_contacts_that_cannot_be_kept_are_reported_and_tried_again() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    catalogue._database.execute("PRAGMA query_only = 1")
    run.kept.keep(run.contacts, run.now_s)
    await run.kept.settle()
    assert run.events == ["contacts-keep-failed"]
    catalogue._database.execute("PRAGMA query_only = 0")
    run.now_s += 5
    run.kept.keep(run.contacts, run.now_s)
    await run.kept.settle()
    assert Run(catalogue).contacts["q"].beat is not None


async def test_idle_pairs_lose_no_more_than_the_interval_of_what_was_heard() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    for _ in range(60):
        run.now_s += 1.0
        run.heard("p")
        await run.keep()
    again = Run(catalogue, run.now_s)
    assert 0 <= again.contacts["p"].heard_age_s <= KEEP_S
    assert 0 <= again.contacts["p"].unknown_s <= KEEP_S


async def test_nothing_is_written_while_nothing_is_heard() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("p")
    await run.keep()
    catalogue.put_fact("replication-contacts", {})
    run.now_s += 100.0
    await run.keep()
    assert catalogue.get_fact("replication-contacts") == {}


def test_what_was_known_is_not_forgotten_when_a_restarted_primary_knows_less() -> None:
    run = Run(Catalogue(":memory:"), 100.0)
    run.heard("p")
    since = run.contacts["p"].unknown_since
    run.contacts["p"].applied(7)
    for now_s in (101.0, 102.0):
        run.now_s = now_s
        run.heard("p", behind_s=60, run=2)
        assert run.contacts["p"].unknown_since == since
        assert run.contacts["p"].lag.lag_seconds(run.now_s) == now_s - 100.0
    run.heard("p", seq=6, behind_s=60, run=3)  # it has lost what it told of: that tells of no image any more
    assert run.contacts["p"].unknown_s == 60.0


def test_late_heartbeat_of_a_copy_makes_it_newer_until_the_next_one_only() -> None:
    """What it heard of its own primary stays as old as the heartbeat says that came soonest (I14)."""
    run = Run(Catalogue(":memory:"), 100.0)
    run.heard("p")
    run.contacts["p"].applied(7)
    run.now_s = 104.0
    run.heard("p", behind_s=1, under_way_s=3.0)
    run.now_s = 105.0
    run.heard("p", behind_s=5)
    assert run.contacts["p"].unknown_s == 5.0
    assert run.contacts["p"].lag.lag_seconds(run.now_s) == 5.0


def test_lag_goes_on_after_a_restart_from_the_image_that_was_kept() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue, 100.0)
    run.heard("p", seq=7)
    run.contacts["p"].applied(7)
    run.now_s = 130.0
    run.heard("p", seq=9)
    assert run.contacts["p"].lag.lag_seconds(run.now_s) == 30.0
    run.kept.keep_now(run.contacts, run.now_s)
    again = Run(catalogue, 135.0)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].lag.lag_seconds(again.now_s) == 35.0


def test_clock_of_the_primary_that_is_set_back_makes_no_image_newer_over_a_restart() -> None:
    """The simulator's seed 41000279 (I14, F28)."""
    catalogue = Catalogue(":memory:")
    run = Run(catalogue, 100.0)
    run.heard("p", seq=7)
    run.contacts["p"].applied(7)
    run.now_s = 130.0
    run.contacts["p"].heartbeat(Heartbeat(9, 0, (130 - 60) * SECOND, 1, 0, 0), run.now_s)
    run.kept.keep_now(run.contacts, run.now_s)
    again = Run(catalogue, 135.0)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].lag.lag_seconds(again.now_s) == 35.0


def test_clock_of_the_primary_that_is_set_back_hides_no_time_from_what_is_missing() -> None:
    run = Run(Catalogue(":memory:"), 100.0)
    contact = run.contacts["p"]
    run.heard("p", seq=7)
    contact.applied(7)
    run.now_s = 130.0
    beat = Heartbeat(9, 0, (130 - 60) * SECOND, 1, 0, 0)
    contact.heartbeat(beat, run.now_s)
    assert contact.told_s == 30.0
    run.now_s = 132.0
    contact.last_word(replace(beat, wall_ns=(132 - 60) * SECOND))
    assert contact.told_s == 32.0


def test_record_in_the_journal_counts_as_heard_when_it_was_written() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue, 100.0)
    run.heard("p", seq=7)
    run.kept.keep_now(run.contacts, run.now_s)
    for sequence, time_s, timed, heard_age_s in (
        (8, 103, True, 2.0),
        (8, 103, False, 5.0),  # other clocks say nothing
        (8, 109, True, 5.0),  # later than now: a clock was set
        (7, 103, True, 5.0),  # of before what was kept
    ):
        again = Run(catalogue, 105.0)
        again.contacts["p"].proved(sequence, time_s * SECOND, timed=timed)
        assert again.contacts["p"].heard_age_s == heard_age_s
        assert again.contacts["p"].unknown_s == heard_age_s
        beat = again.contacts["p"].beat
        assert beat is not None
        assert beat.last_seq == sequence


def test_record_of_a_copy_proves_nothing_of_what_it_copies() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue, 100.0)
    run.heard("p", seq=7, behind_s=1)
    run.kept.keep_now(run.contacts, run.now_s)
    again = Run(catalogue, 105.0)
    again.contacts["p"].proved(8, 103 * SECOND, timed=True)
    assert again.contacts["p"].unknown_s == 6.0


def _heard_and_kept(catalogue: Catalogue) -> None:
    """A run that heard record 7 of "p", all of it shown, 3 s before its last figures were kept."""
    run = Run(catalogue, 100.0, boot="one")
    run.heard("p", seq=7)
    run.contacts["p"].applied(7)
    run.contacts["p"].last_word(Heartbeat(7, 0, 100 * SECOND, 1, 0, 0))
    run.now_s = 103.0
    run.kept.keep_now(run.contacts, run.now_s)


@pytest.mark.parametrize("set_s", [-3600.0, -2.0, 0.0, 3600.0])
def test_clock_that_was_set_between_two_runs_changes_no_age_while_the_machine_runs_on(set_s: float) -> None:
    """The simulator's seed 30000064: killed, and started after the clock had been set back (I14, F28)."""
    catalogue = Catalogue(":memory:")
    _heard_and_kept(catalogue)
    again = Run(catalogue, 110.0, ahead_s=set_s, boot="one")
    contact = again.contacts["p"]
    contact.applied(7)
    ages = contact.lag.lag_seconds(again.now_s), contact.heard_age_s, contact.unknown_s, contact.told_age_s
    assert ages == (10.0, 10.0, 10.0, 10.0)
    assert contact.heard_at == round((100.0 + set_s) * SECOND)


@pytest.mark.parametrize("boot", ["two", ""])
def test_over_a_reboot_the_wall_clock_tells_the_age(boot: str) -> None:
    catalogue = Catalogue(":memory:")
    _heard_and_kept(catalogue)
    again = Run(catalogue, 1.0, ahead_s=109.0, boot=boot)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].lag.lag_seconds(again.now_s) == 10.0


def test_over_a_reboot_no_lag_is_told_by_a_clock_that_was_set_back() -> None:
    """Its age is at least 0, and that is all that is known; 0 would claim an image of the present (I14)."""
    catalogue = Catalogue(":memory:")
    _heard_and_kept(catalogue)
    again = Run(catalogue, 1.0, ahead_s=0.0, boot="two")
    again.contacts["p"].applied(7)
    again.contacts["p"].proved(8, 104 * SECOND, timed=True)
    assert again.contacts["p"].lag.lag_seconds(again.now_s) == math.inf
    again.kept.keep_now(again.contacts, again.now_s)
    third = Run(catalogue, 2.0, boot="two")
    contact = third.contacts["p"]
    contact.applied(8)
    assert contact.lag.lag_seconds(third.now_s) == math.inf, "what was not known is not known later either"
    contact.last_word(Heartbeat(9, 0, 140 * SECOND, 1, 0, 0))
    assert contact.lag.lag_seconds(third.now_s) == 40.0, "the primary's clock tells it"
    third.heard("p", seq=9, behind_s=50, run=2)
    assert contact.unknown_s == 50.0
    third.heard("p", seq=9, run=2)
    contact.applied(9)
    assert contact.lag.lag_seconds(third.now_s) == 0.0
