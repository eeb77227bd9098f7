"""What a primary says that its secondary may not have (I12): over restarts, losses, a full journal and a takeover."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.pair_state import PairState
from controllerd.replication.messages import Notice
from tests.integration.transfer_site import BLOCK, MIB, SMALL_JOURNAL, Site, caught_up, connect, connected, pair, until

PAIR = "A:g-B:g"
SIZE = 4 * MIB
GRANULE = 64 << 10
Runs = list[tuple[int, int]]
EVERYTHING: Runs = [(0, SIZE)]


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A with a journal of four segments of 4 MiB, and B."""
    a, b = Site("A", tmp_path / "A", storage=dict(SMALL_JOURNAL)), Site("B", tmp_path / "B")
    async with connected(a, b, {"g": ["v"]}) as found:
        yield found


async def dirty(site: Site) -> Runs:
    """As a host asks: (offset, length) of what differs."""
    volume = site.volume("v")
    if not volume.differences_known:
        await volume.learn_differences()
    found: Runs = []
    position = 0
    for length, differs in volume.differing(0, SIZE):
        if differs:
            found.append((position, length))
        position += length
    return found


async def clean(a: Site) -> None:
    """Wait until the secondary has everything durably."""
    pair = a.pairs.primaries[PAIR]
    await until(lambda: pair.sender.ack.durable >= a.group("g").last_seq, a)
    assert await dirty(a) == []


def write(site: Site, offset: int) -> None:
    site.put("v", offset // BLOCK, b"data")


async def test_after_a_restart_everything_differs_until_the_secondary_is_heard(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    write(a, MIB)
    await clean(a)
    await b.crash()
    write(a, 2 * MIB)
    assert await dirty(a) == [(2 * MIB, GRANULE)]
    await a.crash()
    await a.start()
    assert await dirty(a) == EVERYTHING
    await b.start()
    await until(lambda: a.pairs.primaries[PAIR].sender.connected)
    await clean(a)


async def test_a_new_pair_differs_by_what_was_written_before_the_first_contact(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    await b.crash()
    assert await dirty(a) == []
    write(a, 3 * MIB)
    assert await dirty(a) == [(3 * MIB, GRANULE)]
    await b.start()
    await clean(a)


async def test_what_a_synchronous_secondary_only_acknowledged_differs(tmp_path: Path) -> None:
    a, b = Site("A", tmp_path / "A"), Site("B", tmp_path / "B", mirror_sync_interval_s=3600.0)
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    try:
        await pair(a, "g", b, mode="sync")
        await a.write("v", 0, b"acknowledged")
        assert await dirty(a) == [(0, GRANULE)]
        await a.flush("v")
        assert await dirty(a) == []
    finally:
        for site in (a, b):
            await site.stop()


async def test_a_full_journal_that_suspends_the_pair_is_read_before_it_is_freed(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    write(a, 0)
    await clean(a)
    await b.crash()
    group = a.group("g")
    write(a, 3 * MIB)
    for index in range(20):
        await until(lambda: group.accepting, a)
        await a.write("v", 256, bytes([index]) * MIB)
    assert a.pairs.primaries[PAIR].record.state is PairState.PSUE
    expected = [(MIB, MIB), (3 * MIB, GRANULE)]
    assert await dirty(a) == expected
    await until(lambda: group.kept_through() is None, a)
    await a.storage.checkpointer.checkpoint()
    group.stage_zeroes(a.volume("v"), 0, 1, trim=True)
    group.commit()
    assert await dirty(a) == [(0, GRANULE), *expected]
    await b.start()


async def test_a_pair_suspended_before_a_restart_differs_in_everything(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b, keep_journal=True)
    await clean(a)
    await a.pairs.suspend(PAIR)
    write(a, MIB)
    assert await dirty(a) == [(MIB, GRANULE)]
    await a.crash()
    await a.start()
    write(a, MIB)
    assert await dirty(a) == EVERYTHING


async def test_a_secondary_that_has_what_was_lost_here_differs_in_everything(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    await clean(a)
    await a.group("g").make_durable()
    held = a.group("g").journal.chain[-1]
    kept = held.end
    write(a, MIB)
    await clean(a)
    await a.crash()
    with Path(held.file.path).open("r+b") as file:  # the power cut took what was not synced
        file.seek(kept)
        file.write(bytes(64 * 4096))
    await a.start()
    await until(lambda: a.pairs.primaries[PAIR].record.state is PairState.PSUE)
    assert await dirty(a) == EVERYTHING


async def test_a_secondary_that_hosts_write_to_differs_in_everything(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    write(a, MIB)
    await caught_up(a, b, "g")
    await clean(a)
    await b.pairs.takeover()
    await until(lambda: a.pairs.primaries[PAIR].record.state is PairState.SSWS)
    assert await dirty(a) == EVERYTHING
    await a.crash()
    await a.start()
    assert await dirty(a) == EVERYTHING


async def test_a_secondary_that_left_the_pair_differs_in_everything(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    write(a, MIB)
    await clean(a)
    await b.pairs.delete(PAIR)
    await until(lambda: a.pairs.primaries[PAIR].record.peer_deleted)
    assert await dirty(a) == EVERYTHING
    await a.pairs.delete(PAIR)
    assert not a.volume("v").copied


async def test_a_secondary_that_failed_keeps_what_it_had(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    write(a, MIB)
    await clean(a)
    primary = a.pairs.primaries[PAIR]
    primary.noticed(Notice("fail", "a disk there"))
    assert primary.record.state is PairState.PSUE
    assert await dirty(a) == []
    write(a, 2 * MIB)
    assert await dirty(a) == [(2 * MIB, GRANULE)]


async def test_the_middle_of_a_cascade_differs_by_what_came_from_its_own_primary(
    sites: tuple[Site, Site], tmp_path: Path
) -> None:
    a, b = sites
    c = Site("C", tmp_path / "C")
    await c.start()
    c.make({"g": ["v"]})
    connect(a, b, c)
    try:
        await pair(c, "g", a, mode="sync")
        await pair(a, "g", b)
        await c.write("v", 0, b"first")
        await clean(a)
        await b.crash()
        await c.write("v", 256, b"not at B yet")
        assert await dirty(a) == [(MIB, GRANULE)]
        await a.pairs.suspend(PAIR)
        await c.write("v", 512, b"nor this")
        assert await dirty(a) == [(MIB, GRANULE), (2 * MIB, GRANULE)]
        await b.start()
    finally:
        await c.stop()


async def test_two_secondaries_differ_by_what_either_lacks(sites: tuple[Site, Site], tmp_path: Path) -> None:
    a, b = sites
    c = Site("C", tmp_path / "C")
    await c.start()
    c.make({"g": ["v"]})
    connect(a, b, c)
    try:
        await pair(a, "g", b)
        await pair(a, "g", c)
        await clean(a)
        await a.pairs.suspend(PAIR)
        write(a, MIB)
        other = a.pairs.primaries["A:g-C:g"]
        await until(lambda: other.sender.ack.durable >= a.group("g").last_seq, a)
        assert await dirty(a) == [(MIB, GRANULE)]
        await c.crash()
        write(a, 2 * MIB)
        await c.start()
        assert (2 * MIB, GRANULE) in await dirty(a)
    finally:
        await c.stop()
