"""What a secondary may claim when its primary, or the primary's own primary, is not heard (I14)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.lag import LEAST_S
from controllerd.model.pair_state import PairState
from controllerd.replication.contact import FACT, Contact
from controllerd.replication.status import PairStatus
from controllerd.storage.catalogue import Catalogue
from tests.integration.transfer_site import Site, caught_up, connect, pair, until


class Cascade:
    """C -sync-> A -async-> B with one group of one volume."""

    def __init__(self, directory: Path) -> None:
        self.c, self.a, self.b = (Site(name, directory / name) for name in "CAB")

    async def start(self) -> Cascade:
        for site in (self.c, self.a, self.b):
            await site.start()
            site.make({"g": ["v"]})
        connect(self.c, self.a, self.b)
        await pair(self.c, "g", self.a, mode="sync", sync_timeout_s=0.2)
        await pair(self.a, "g", self.b)
        return self

    async def stop(self) -> None:
        for site in (self.c, self.a, self.b):
            await site.stop()

    def at_b(self) -> PairStatus:
        return self.b.pairs.status()[0]

    async def all_shown(self) -> None:
        """Everything that C has is visible at B."""
        last = self.c.group("g").last_seq
        await until(lambda: self.a.group("g").last_origin >= last, self.c, self.a)
        await caught_up(self.a, self.b, "g")


@pytest.fixture
async def cascade(tmp_path: Path) -> AsyncIterator[Cascade]:
    found = await Cascade(tmp_path).start()
    yield found
    await found.stop()


async def test_last_site_of_a_cascade_claims_nothing_from_behind_the_first_ones_silence(cascade: Cascade) -> None:
    c, a, b = cascade.c, cascade.a, cascade.b
    await c.write("v", 0, b"one")
    await cascade.all_shown()
    assert cascade.at_b().unheard_why == ""
    await c.crash()
    newest = c.group("g").last_time
    await until(lambda: "lost its own primary" in cascade.at_b().unheard_why, a, b)
    assert "no connection to C" in cascade.at_b().unheard_why
    a.group("g").stage_tick(newest + 1)  # whatever A's ticker does, A's own time has passed C's
    a.group("g").commit()
    await until(lambda: a.pairs.secondaries["C:g-A:g"].record.adrift_time or a.group("g").last_time > newest)
    await until(lambda: (cascade.at_b().lag_s or 0) > 1.1, a, b)
    status = cascade.at_b()
    assert status.connected
    assert status.holder == "g"
    assert "no connection to C" in (status.holder_why or "")
    report = b.pairs.preview()
    assert report.rpo_known_s == 0
    assert report.rpo_s is not None
    assert report.rpo_s >= report.unknown_s > 1.0
    assert "C" in report.unheard_why
    await c.start()
    await until(lambda: not cascade.at_b().unheard_why, c, a, b)
    await c.write("v", 1, b"two")
    await cascade.all_shown()
    await until(lambda: cascade.at_b().lag_s == 0, c, a, b)


async def test_ticks_of_the_middle_site_do_not_move_what_is_claimed(cascade: Cascade) -> None:
    c, a, b = cascade.c, cascade.a, cascade.b
    await c.write("v", 0, b"one")
    await c.crash()
    await a.crash()
    await a.start()
    upstream = a.pairs.secondaries["C:g-A:g"]
    await until(lambda: upstream.record.adrift_time, a)
    limit = upstream.record.adrift_time
    assert limit <= c.group("g").last_time
    await until(lambda: b.group("g").applied_time > limit, a, b)
    status = cascade.at_b()
    assert status.cut_time is not None
    assert status.cut_time <= limit
    assert status.applied.time is not None
    assert status.applied.time <= limit
    await a.crash()
    await a.start()
    report = await b.pairs.takeover()
    assert report.cut_time <= limit
    assert all(group.cut_time <= limit for group in report.groups)
    assert await b.get("v", 0) == b"one"
    await c.start()


async def test_limit_of_what_is_claimed_is_kept_before_anything_past_it_is_shown(cascade: Cascade) -> None:
    c, a, b = cascade.c, cascade.a, cascade.b
    await c.write("v", 0, b"one")
    await cascade.all_shown()
    await c.crash()
    contact = b.pairs.secondaries["A:g-B:g"].contact
    await until(lambda: contact.limit_time, a, b)
    assert b.storage.catalogue.get_fact(FACT)["A:g-B:g"]["limit_time"] == contact.limit_time
    await c.start()


async def test_writes_acknowledged_without_the_middle_site_count_as_unknown_at_the_last(cascade: Cascade) -> None:
    c, a, b = cascade.c, cascade.a, cascade.b
    await c.write("v", 0, b"one")
    await cascade.all_shown()
    await a.crash()
    await until(lambda: cascade.at_b().holder_why, b)
    heard = cascade.at_b().unknown_since
    assert heard is not None
    await asyncio.sleep(0.5)  # what a heartbeat takes to be taken in counts as known
    await c.write("v", 1, b"alone")
    alone = c.group("g").last_time
    await a.start()
    await until(lambda: a.pairs.secondaries["C:g-A:g"].record.state == PairState.PSUE, c, a)
    await until(lambda: "PSUE" in cascade.at_b().unheard_why, a, b)
    report = b.pairs.preview()
    assert report.unknown_since < alone
    assert report.cut_time < alone
    assert "PSUE" in report.unheard_why


async def test_takeover_without_a_word_of_the_primary_counts_its_silence(cascade: Cascade) -> None:
    a, b = cascade.a, cascade.b
    await cascade.c.write("v", 0, b"one")
    await cascade.all_shown()
    await a.crash()
    await until(lambda: not cascade.at_b().connected)
    lag = cascade.at_b().lag_s
    assert lag is not None
    assert lag > 0
    assert "no connection to A" in (cascade.at_b().holder_why or "")
    before = b.pairs.preview()
    await asyncio.sleep(0.05)
    report = b.pairs.preview()
    assert (report.rpo_known_s, report.groups[0].missing_writes) == (0, 0)
    assert report.unknown_s > before.unknown_s > 0
    assert report.rpo_s == report.unknown_s
    assert "no connection to A" in report.unheard_why
    done = await b.pairs.takeover()
    assert done.rpo_s is not None
    assert done.rpo_s > report.unknown_s
    assert b.pairs.preview() == done
    await a.start()


async def test_last_contact_is_known_after_a_restart(cascade: Cascade) -> None:
    a, b = cascade.a, cascade.b
    await cascade.c.write("v", 0, b"one")
    await cascade.all_shown()
    await a.crash()
    await until(lambda: not cascade.at_b().connected)
    before = b.pairs.preview()
    for _ in range(2):
        await b.crash()
        await b.start()
        report = b.pairs.preview()
        assert (report.groups[0].primary_seq or 0) >= (before.groups[0].primary_seq or 0) > 0  # B has a later tick
        assert report.groups[0].missing_writes == 0
        assert report.unknown_s > before.unknown_s
        assert abs(report.unknown_since - before.unknown_since) < 10**9
        assert cascade.at_b().lag_s
    await a.start()


async def test_copy_says_that_it_is_one_however_new_it_is(cascade: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's time stands still during a turn, so a heartbeat may be 0 ns old; 0 says that nothing is copied."""
    monkeypatch.setattr(Contact, "unknown_s", 0.0)
    assert cascade.a.pairs.secondaries["C:g-A:g"].source().behind_ns > 0


async def test_last_site_does_not_forget_what_a_restarted_middle_site_has_forgotten(cascade: Cascade) -> None:
    c, a, b = cascade.c, cascade.a, cascade.b
    await c.write("v", 0, b"one")
    await cascade.all_shown()
    await until(lambda: cascade.at_b().lag_s == 0, c, a, b)
    await c.crash()
    await until(lambda: "lost its own primary" in cascade.at_b().unheard_why, a, b)
    known = cascade.at_b().unknown_since
    assert known is not None
    await a.crash()
    catalogue = Catalogue(f"{a.directory}/catalogue.sqlite")
    kept = catalogue.get_fact(FACT)
    for contact in kept.values():  # as a crash leaves it: what was heard last was not kept any more
        contact["heard_at"] -= 60 * 10**9
        contact["known_at"] -= 60 * 10**9
        contact["image"] = None
    catalogue.put_fact(FACT, kept)
    catalogue.close()
    await a.start()
    contact = b.pairs.secondaries["A:g-B:g"].contact
    await until(lambda: contact.beat is not None and contact.beat.behind_ns > 50 * 10**9, a, b)
    status = cascade.at_b()
    assert status.unknown_since is not None
    assert abs(status.unknown_since - known) < 10**9
    assert status.lag_s is not None
    assert status.lag_s < 50
    await c.start()


async def test_seconds_are_never_zero_while_writes_are_missing_at_a_primary_that_is_heard(tmp_path: Path) -> None:
    """Hosts that give their own times may give the same one to many writes (time source ``host``)."""
    a, b = (Site(name, tmp_path / name, storage={"time_source": "host"}, peer_timeout_s=30) for name in "AB")
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    identity = await pair(a, "g", b)
    await a.write("v", 0, b"one", time.time_ns())
    await caught_up(a, b, "g")
    intake = b.pairs.secondaries[identity].intake
    intake.journal = lambda: None  # type: ignore[method-assign]  # what arrives is not taken in any more
    same = a.group("g").last_time
    for number in range(20):
        a.put("v", number, b"not there", same)
        assert a.pairs.status()[0].missing_writes
        assert (lag_s := a.pairs.status()[0].lag_s) is None or lag_s >= LEAST_S
        report = b.pairs.preview()
        if report.groups[0].missing_writes:
            assert report.rpo_known_s is not None
            assert report.rpo_known_s >= LEAST_S
            assert (lag_s := b.pairs.status()[0].lag_s) is not None
            assert lag_s >= LEAST_S
        await asyncio.sleep(0.02)
    assert b.pairs.secondaries[identity].receiver.connected
    assert b.pairs.preview().groups[0].missing_writes
    for site in (a, b):
        await site.stop()


@pytest.mark.parametrize("rebooted", [False, True])
async def test_clock_set_back_while_a_controller_is_down_makes_no_lag_smaller(tmp_path: Path, rebooted: bool) -> None:
    """The monotonic clock tells how old kept figures are; over a reboot nobody does, and 0 would be a claim (I14)."""
    a, b = (Site(name, tmp_path / name, peer_timeout_s=30, boot="one") for name in "AB")
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    await pair(a, "g", b)
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await until(lambda: a.pairs.status()[0].lag_s == 0 == b.pairs.status()[0].lag_s, a, b)
    for site in (a, b):
        await site.crash()
    down_s = asyncio.get_running_loop().time()
    for site in (a, b):
        site.clock_set_ns -= 3600 * 10**9
        if rebooted:
            site.changes["boot"] = "two"
    await b.start()
    status, report = b.pairs.status()[0], b.pairs.preview()
    assert (status.lag_s is None) == (report.rpo_s is None) == rebooted
    if not rebooted:
        assert status.lag_s is not None
        assert 0 < status.lag_s < 600
    await b.crash()
    await a.start()
    status = a.pairs.status()[0]
    assert (status.lag_s is None) == rebooted
    if not rebooted:
        assert status.lag_s is not None
        assert status.lag_s >= asyncio.get_running_loop().time() - down_s - 0.1
        assert status.last_contact is not None
        assert abs(a.clock() - status.last_contact) < 600 * 10**9
    await b.start()
    await until(lambda: a.pairs.status()[0].lag_s == 0 == b.pairs.status()[0].lag_s, a, b)
    for site in (a, b):
        await site.stop()
