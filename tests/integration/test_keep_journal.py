"""``keep_journal``: after a suspension the primary's journal is kept for the secondary, but never at hosts' cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.pair_state import PairState
from tests.integration.transfer_site import MIB, SMALL_JOURNAL, Site, caught_up, connected, pair, until

PAIR = "A:g-B:g"


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A with a journal of four segments of 4 MiB, and B."""
    a, b = Site("A", tmp_path / "A", storage=dict(SMALL_JOURNAL)), Site("B", tmp_path / "B")
    async with connected(a, b, {"g": ["v"]}) as found:
        yield found


async def suspended(a: Site, b: Site, **options: object) -> int:
    """Make the pair, write a little, suspend it; returns the last number that B has."""
    await pair(a, "g", b, **options)
    await a.write("v", 0, b"before")
    await caught_up(a, b, "g")
    await a.pairs.suspend(PAIR)
    return a.group("g").last_seq


async def write_mibs(site: Site, count: int) -> None:
    """Be a host that writes a MiB at a time, when it may."""
    group = site.group("g")
    for index in range(count):
        await until(lambda: group.accepting, site)
        await site.write("v", 0, bytes([index]) * MIB)


def kept_from(site: Site) -> int:
    return site.group("g").journal.first


async def test_journal_is_kept_over_checkpoints_and_restarts(sites: tuple[Site, Site]) -> None:
    a, b = sites
    has = await suspended(a, b, keep_journal=True)
    await write_mibs(a, 6)
    await a.storage.checkpointer.checkpoint()
    assert kept_from(a) <= has + 1
    await a.crash()
    await a.start()
    await a.storage.checkpointer.checkpoint()
    assert kept_from(a) <= has + 1
    assert a.group("g").read_journal(has + 1, MIB) is not None


async def test_without_it_the_journal_is_freed(sites: tuple[Site, Site]) -> None:
    a, b = sites
    has = await suspended(a, b, keep_journal=False)
    await write_mibs(a, 6)
    await a.storage.checkpointer.checkpoint()
    assert kept_from(a) > has + 1


@pytest.mark.parametrize("overflow", ["suspend", "throttle"])
async def test_hosts_come_first_when_the_journal_is_full(sites: tuple[Site, Site], overflow: str) -> None:
    a, b = sites
    has = await suspended(a, b, keep_journal=True, overflow=overflow)
    await write_mibs(a, 20)
    assert kept_from(a) > has + 1
    assert a.count("pair-throttles-hosts") == 0, "there is no secondary that could catch up"
    assert a.pairs.primaries[PAIR].record.state is PairState.PSUS
    assert a.group("g").describe_fault() is None


async def test_deleting_the_pair_frees_what_was_kept(sites: tuple[Site, Site]) -> None:
    a, b = sites
    has = await suspended(a, b, keep_journal=True)
    await write_mibs(a, 6)
    await a.pairs.delete(PAIR, force=True)
    await a.storage.checkpointer.checkpoint()
    assert kept_from(a) > has + 1
