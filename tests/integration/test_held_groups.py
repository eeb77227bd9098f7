"""A group whose journal was damaged while its controller was down: forgotten or recovered, and what the peers hear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.errors import Conflict, Corrupt
from controllerd.model.pair_state import PairState, Role
from tests.integration.transfer_site import Site, caught_up, connected, pair, spec, until


async def both_copied(a: Site, b: Site) -> None:
    """Pair both groups; the secondary has "x" and "y" of them."""
    for group in "gh":
        await pair(a, group, b)
    await a.write("v", 0, b"x")
    await a.write("w", 0, b"y")
    await caught_up(a, b, "g", "h")


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A primary and a secondary with two groups of one volume each, not paired yet."""
    a, b = Site("A", tmp_path / "A", peer_timeout_s=0.5), Site("B", tmp_path / "B", peer_timeout_s=0.5)
    async with connected(a, b, {"g": ["v"], "h": ["w"]}) as found:
        yield found


def journal_of(site: Site, group: str) -> Path:
    return Path(site.group(group).journal.directory)


async def hold(site: Site, group: str) -> Path:
    """Crash and start again without the group's journal; returns where it is now."""
    directory = journal_of(site, group)
    await site.crash()
    aside = directory.rename(directory.with_name("aside"))
    await site.start()
    assert site.group(group).read_error is not None
    return aside


def give_back(site: Site, group: str, aside: Path) -> None:
    journal_of(site, group).rmdir()
    aside.rename(journal_of(site, group))


def one(site: Site, group: str) -> str:
    """State and reason of the pair of ``group``."""
    found = next(status for status in site.pairs.status() if status.group == group)
    return f"{found.state}: {found.reason}"


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_secondary_is_forgotten_and_the_primary_hears_it(sites: tuple[Site, Site], mode: str) -> None:
    a, b = sites
    for group in "gh":
        await pair(a, group, b, mode=mode)
    await a.write("v", 0, b"x")
    await caught_up(a, b, "g", "h")
    await hold(b, "g")
    await until(lambda: a.pairs.primaries["A:h-B:h"].sender.connected, a, b)
    with pytest.raises(Conflict, match="works"):
        await b.pairs.forget_group("h")
    found = await b.pairs.forget_group("g")
    assert found.volumes == ["v"]
    assert [record.spec.identity for record, _ in found.pairs] == ["A:g-B:g"]
    await until(lambda: "forgotten at B" in one(a, "g"), a, b)
    assert a.pairs.primaries["A:g-B:g"].record.state is PairState.PSUE
    await a.write("v", 1, b"alone")
    await a.pairs.delete("A:g-B:g")  # without force: the peer has said that its side is gone
    await a.write("w", 0, b"goes on")
    await caught_up(a, b, "h")
    assert await b.get("w", 0) == b"goes on"
    assert b.count("peer-told-of-deletion") == 1
    await b.crash()
    await b.start()
    assert list(b.storage.groups) == ["h"]
    assert b.count("peer-told-of-deletion") == 1


async def test_primary_that_was_down_hears_later_that_its_secondary_was_forgotten(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    await a.write("v", 0, b"x")
    await caught_up(a, b, "g")
    await hold(b, "g")
    await a.crash()
    await b.pairs.forget_group("g")
    await b.crash()
    await b.start()
    await a.start()
    await until(lambda: "forgotten at B" in one(a, "g"), a, b)


async def test_pair_made_anew_is_not_told_of_the_end_of_the_one_before(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    order = spec(a, "g", b)
    await hold(b, "g")
    await a.crash()
    await b.pairs.forget_group("g")
    b.storage.create_group("g")
    b.storage.create_volume("v", 4 << 20, pool="pool", group="g")
    await b.pairs.create(Role.SECONDARY, order)
    await a.start()
    await a.pairs.delete("A:g-B:g", force=True)
    await a.pairs.create(Role.PRIMARY, order)
    await until(lambda: a.pairs.primaries["A:g-B:g"].sender.connected, a, b)
    await a.write("v", 0, b"anew")
    await caught_up(a, b, "g")
    assert await b.get("v", 0) == b"anew"
    assert not b.count("peer-told-of-deletion")


async def test_forced_deletion_at_a_secondary_reaches_its_primary_later(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    await a.crash()
    await until(lambda: not b.pairs.secondaries["A:g-B:g"].receiver.connected)
    await b.pairs.delete("A:g-B:g", force=True)
    await a.start()
    await until(lambda: one(a, "g") == "PSUE: at the secondary: deleted at B", a, b)


async def test_primary_is_forgotten_and_the_secondary_keeps_its_copy(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await both_copied(a, b)
    await hold(a, "g")
    found = await a.pairs.forget_group("g")
    assert [(record.role, told) for record, told in found.pairs] == [(Role.PRIMARY, False)]
    await until(lambda: one(b, "g").startswith("PSUE"), a, b)
    assert "does not know the pair any more" in one(b, "g")
    assert (await b.pairs.takeover()).rpo_known_s is None, "nobody tells how far its primary went on"
    assert (await b.get("v", 0), await b.get("w", 0)) == (b"x", b"y")


async def test_unfinished_takeover_goes_on_without_a_forgotten_group(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await both_copied(a, b)
    await a.crash()
    promote = b.storage.restart_groups

    async def refuse(_restarts: object) -> None:
        raise Corrupt("for the test")

    b.storage.restart_groups = refuse  # type: ignore[assignment]
    with pytest.raises(Corrupt):
        await b.pairs.takeover()
    b.storage.restart_groups = promote
    await hold(b, "g")
    with pytest.raises(Corrupt, match="no journal segment"):
        await b.pairs.takeover()
    await b.pairs.forget_group("g")
    report = await b.pairs.takeover()
    assert [group.group for group in report.groups] == ["h"]
    await b.write("w", 1, b"z")
    assert await b.get("w", 0) == b"y"
    await a.start()


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("side", ["primary", "secondary"])
async def test_pair_goes_on_when_its_group_is_recovered(sites: tuple[Site, Site], mode: str, side: str) -> None:
    a, b = sites
    for group in "gh":
        await pair(a, group, b, mode=mode)
    await a.write("v", 0, b"one")
    await caught_up(a, b, "g", "h")
    site = a if side == "primary" else b
    aside = await hold(site, "g")
    with pytest.raises(Corrupt, match="no journal segment"):
        await site.pairs.recover_group("g")
    give_back(site, "g", aside)
    await site.pairs.recover_group("g")
    await until(lambda: a.pairs.primaries["A:g-B:g"].sender.connected, a, b)
    await a.write("v", 1, b"two")
    await a.write("w", 1, b"three")
    await caught_up(a, b, "g", "h")
    assert [await b.get("v", 0), await b.get("v", 1), await b.get("w", 1)] == [b"one", b"two", b"three"]
    assert one(a, "g") == one(b, "g") == "PAIR: "
    for each in (a, b):
        assert each.storage.pools["pool"].free
        await each.storage.checkpointer.checkpoint(needed=list(each.storage.groups.values()))
