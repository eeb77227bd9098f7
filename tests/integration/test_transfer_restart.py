"""What status says after a restart, and of a path that does not move: nothing that is not known (spec §5.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.errors import NoSpace
from controllerd.replication.kept_pairs import ACKS_FACT
from controllerd.replication.status import PairStatus, Position
from controllerd.storage.catalogue import Catalogue
from tests.integration.transfer_site import Site, caught_up, connected, pair, until


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    async with connected(Site("A", tmp_path / "A"), Site("B", tmp_path / "B"), {"g": ["v"]}) as (a, b):
        await pair(a, "g", b)
        yield a, b


def shown(site: Site) -> PairStatus:
    return site.pairs.status()[0]


async def test_restarted_primary_says_what_the_secondary_had_acknowledged(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await until(lambda: shown(a).applied.seq == a.group("g").last_seq, a, b)
    before = shown(a)
    await b.crash()
    for block in range(5):
        await a.write("v", block, b"two")
    await asyncio.sleep(0.3)
    await a.crash()
    await a.start()
    after = shown(a)
    assert after.arrived.seq == after.applied.seq == after.transferred.seq == before.applied.seq
    assert after.missing_writes is None, "writes of an earlier run are not counted"
    assert after.lag_bytes is not None
    assert after.lag_bytes > 0
    assert after.missing_bytes == after.lag_bytes
    assert after.lag_s is not None
    assert after.lag_s >= 0.3
    assert after.last_contact is not None
    assert after.holder == "g"
    assert after.holder_since is not None
    assert a.pairs.context.clock() - after.holder_since >= 0.3e9
    await b.start()
    await caught_up(a, b, "g")


async def test_what_was_never_kept_is_shown_as_unknown_not_as_nothing(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await b.crash()
    await a.crash()
    a.storage.catalogue = Catalogue(f"{a.directory}/catalogue.sqlite")
    a.storage.catalogue.put_fact(ACKS_FACT, {})
    a.storage.catalogue.close()
    await a.start()
    after = shown(a)
    assert after.arrived == after.applied == after.transferred == after.durable == Position()
    assert after.lag_bytes is after.missing_bytes is after.missing_writes is after.pending_writes is None
    await b.start()
    await caught_up(a, b, "g")


async def test_restarted_secondary_knows_its_lag_and_since_when_the_line_stands(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    await until(lambda: shown(b).lag_s == 0, a, b)
    await a.crash()
    await asyncio.sleep(0.5)
    since = shown(b).holder_since
    assert since is not None
    await b.crash()
    await b.start()
    after = shown(b)
    assert after.lag_s is not None
    assert after.lag_s >= 0.5
    assert after.holder == "g"
    assert after.holder_since is not None
    assert abs(after.holder_since - since) < 0.2e9
    assert after.last_contact is not None
    await a.start()


async def test_positions_are_in_order_and_carry_write_times_on_both_sides(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for block in range(50):
        await a.write("v", block, b"x")
        for status in (shown(a), shown(b)):
            times = [status.applied.time, status.arrived.time, status.transferred.time]
            known = [time for time in times if time is not None]
            assert known == sorted(known), status
    await caught_up(a, b, "g")
    assert shown(b).transferred.time == a.group("g").last_time


async def test_primary_names_the_secondarys_full_pool(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sites
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")

    def full(*_: object) -> None:
        raise NoSpace("pool p is full")

    monkeypatch.setattr(b.group("g"), "append_received", full)
    await a.write("v", 1, b"two")
    await until(lambda: shown(a).holder is not None, a, b)
    status = shown(a)
    assert status.connected
    assert status.holder == "B:g"
    assert "pool p is full" in (status.holder_why or "")
    assert status.lag_s is not None
    assert status.lag_s >= 1
    monkeypatch.undo()
    await caught_up(a, b, "g")
    await until(lambda: shown(a).holder is None, a, b)


async def test_primary_names_a_path_on_which_nothing_is_heard(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g")
    receiver = b.pairs.secondaries["A:g-B:g"].receiver
    receiver.heartbeat = lambda *_: None  # type: ignore[method-assign]
    await until(lambda: shown(a).holder is not None, a, b)
    status = shown(a)
    assert status.connected
    assert status.holder == "g"
    assert "nothing is heard of B" in (status.holder_why or "")


async def test_suspended_peer_is_not_said_to_be_silent(sites: tuple[Site, Site]) -> None:
    a, b = sites
    assert a.pairs.peer_link("C") == (None, "")
    await until(lambda: a.pairs.peer_link("B") == (True, ""), a, b)
    await a.pairs.suspend("A:g-B:g")
    assert a.pairs.peer_link("B") == (None, "no connection wanted: pair A:g-B:g is PSUS")
    await until(lambda: b.pairs.peer_link("A") == (None, "no connection wanted: pair A:g-B:g is PSUS"), a, b)
