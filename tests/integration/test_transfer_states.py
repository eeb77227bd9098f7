"""What becomes of a pair: orders, failures on either side, and what the other side shows on contact (I13-I16)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.errors import BadOrder, Conflict, Corrupt, DiskFailed, MirrorLost, NotFound, ReadOnly
from controllerd.model.pair_state import PairState, Role
from controllerd.replication.pair_record import PairVolume
from controllerd.replication.pairs import PairManager
from tests.integration.transfer_site import MIB, SMALL_JOURNAL, Site, caught_up, connect, connected, pair, spec, until


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A primary and a secondary with two groups of one volume each, not paired yet."""
    a, b = Site("A", tmp_path / "A", peer_timeout_s=0.5), Site("B", tmp_path / "B", peer_timeout_s=0.5)
    async with connected(a, b, {"g": ["v"], "h": ["w"]}) as found:
        yield found


def state(pairs: PairManager, group: str = "g") -> str:
    """State of the pair of ``group``."""
    return next(status.state for status in pairs.status() if status.group == group)


def reason(pairs: PairManager, group: str = "g") -> str:
    """Reason of the state of the pair of ``group``."""
    return next(status.reason for status in pairs.status() if status.group == group)


# ---- create and delete -------------------------------------------------------------


async def test_create_refuses_a_volume_that_holds_data(sites: tuple[Site, Site]) -> None:
    a, b = sites
    order = spec(a, "g", b)
    a.put("v", 0, b"data")
    with pytest.raises(Conflict, match="holds data"):
        await a.pairs.create(Role.PRIMARY, order)
    assert not a.pairs.status()


async def test_create_refuses_what_cannot_work(sites: tuple[Site, Site]) -> None:
    a, b = sites
    order = spec(a, "g", b)
    other_size = (dataclasses.replace(order.volumes[0], size=MIB),)
    other_key = (dataclasses.replace(order.volumes[0], key=1),)
    cases = [
        (BadOrder, Role.PRIMARY, dataclasses.replace(order, volumes=other_size), "both must be equal"),
        (BadOrder, Role.PRIMARY, dataclasses.replace(order, volumes=other_key), "has key"),
        (BadOrder, Role.PRIMARY, dataclasses.replace(order, volumes=()), "at least one"),
        (NotFound, Role.PRIMARY, dataclasses.replace(order, volumes=(PairVolume("x", "x", 5, MIB),)), "no volume x"),
        (NotFound, Role.PRIMARY, dataclasses.replace(order, primary_group="nope"), "no group named nope"),
        (BadOrder, Role.PRIMARY, dataclasses.replace(order, secondary_controller="Z"), "no peer named Z"),
        (BadOrder, Role.SECONDARY, order, "this controller is A"),
        (BadOrder, Role.PRIMARY, dataclasses.replace(order, pair_id="a b"), "pair id"),
    ]
    for kind, role, wrong, text in cases:
        with pytest.raises(kind, match=text):
            await a.pairs.create(role, wrong)
    assert not a.pairs.status()
    b.storage.create_volume("extra", MIB, pool="pool", group="g")
    with pytest.raises(BadOrder, match="missing: extra"):
        await b.pairs.create(Role.SECONDARY, order)


async def test_create_is_idempotent_and_refuses_other_parameters(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    order = spec(a, "g", b)
    assert (await a.pairs.create(Role.PRIMARY, order)).state == PairState.PAIR
    assert (await b.pairs.create(Role.SECONDARY, order)).state == PairState.PAIR
    with pytest.raises(Conflict, match="other parameters"):
        await a.pairs.create(Role.PRIMARY, dataclasses.replace(order, domain="other"))
    assert len(a.pairs.status()) == 1


async def test_volumes_of_a_paired_group_cannot_be_changed(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    for site in (a, b):
        with pytest.raises(Conflict, match="is in pair"):
            site.storage.create_volume("more", MIB, pool="pool", group="g")
        with pytest.raises(Conflict, match="is in pair"):
            site.storage.resize_volume("v", 8 * MIB)
        with pytest.raises(Conflict):
            await site.storage.delete_volume("v")


async def test_deleted_pair_leaves_two_ordinary_groups(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await a.write("v", 1, b"one")
    await caught_up(a, b, "g")
    await a.pairs.delete(identity)
    await until(lambda: state(b.pairs) == PairState.PSUE)
    assert "deleted at A" in reason(b.pairs)
    await b.pairs.delete(identity)
    assert not a.pairs.status()
    assert not b.pairs.status()
    await b.write("v", 2, b"two")
    await a.write("v", 2, b"other")
    assert await b.get("v", 1) == b"one"
    assert a.group("g").kept_through() is None
    await b.crash()
    await b.start()
    assert await b.get("v", 1) == b"one"
    assert await b.get("v", 2) == b"two"
    assert b.group("g").role is Role.PRIMARY


async def test_delete_without_the_peer_needs_force(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await b.crash()
    await until(lambda: not a.pairs.primaries[identity].sender.connected)
    with pytest.raises(Conflict, match="force"):
        await a.pairs.delete(identity)
    await a.pairs.delete(identity, force=True)
    await b.start()
    await until(lambda: state(b.pairs) == PairState.PSUE)
    assert "does not know the pair any more" in reason(b.pairs)
    await b.pairs.delete(identity)


async def test_secondary_created_first_waits_for_its_primary(sites: tuple[Site, Site]) -> None:
    a, b = sites
    order = spec(a, "g", b)
    await b.pairs.create(Role.SECONDARY, order)
    await until(lambda: "no pair" in b.pairs.status()[0].link_reason)
    assert state(b.pairs) == PairState.PAIR
    await b.crash()
    await b.start()
    await a.pairs.create(Role.PRIMARY, order)
    await a.write("v", 0, b"x")
    await caught_up(a, b, "g")


# ---- split, failure and contact --------------------------------------------------------


@pytest.mark.parametrize("at_primary", [True, False])
async def test_split_by_order_is_shown_on_both_sides_and_survives_restart(
    sites: tuple[Site, Site], at_primary: bool
) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await (a if at_primary else b).pairs.suspend(identity, "for a test")
    await until(lambda: state(a.pairs) == state(b.pairs) == PairState.PSUS)
    await a.write("v", 0, b"goes on")
    assert a.group("g").kept_through() is None
    for site in (a, b):
        await site.crash()
        await site.start()
        assert state(site.pairs) == PairState.PSUS


async def test_secondary_learns_of_a_split_it_did_not_see(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await b.crash()
    await a.pairs.suspend(identity, "while B was away")
    await b.start()
    await until(lambda: state(b.pairs) == PairState.PSUS)
    assert "while B was away" in reason(b.pairs)


async def test_primary_that_lost_unsynced_writes_is_found_out(sites: tuple[Site, Site], tmp_path: Path) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await until(lambda: a.pairs.primaries[identity].sender.ack.durable >= a.group("g").last_seq)
    await a.group("g").make_durable()
    held = a.group("g").journal.chain[-1]
    kept, position = held.end, held.last
    for index in range(10):
        a.put("v", index, b"lost")
    await until(lambda: b.group("g").last_seq >= position + 10)
    await a.crash()
    path = Path(held.file.path)
    with path.open("r+b") as file:  # the power cut took what was not synced
        file.seek(kept)
        file.write(bytes(64 * 4096))
    await a.start()
    await until(lambda: state(a.pairs) == state(b.pairs) == PairState.PSUE)
    assert "were lost here" in reason(a.pairs)
    assert "were lost here" in reason(b.pairs)


async def test_lost_writes_are_found_out_by_the_run_when_others_took_their_numbers(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await until(lambda: a.pairs.primaries[identity].sender.ack.durable >= a.group("g").last_seq)
    await a.group("g").make_durable()
    held = a.group("g").journal.chain[-1]
    kept = held.end
    for index in range(3):
        a.put("v", index, b"lost")
    await until(lambda: b.group("g").last_seq >= a.group("g").last_seq)
    port, b.changes["backoff_min_s"] = b.port, 0.5
    await b.crash()
    await a.crash()
    with Path(held.file.path).open("r+b") as file:
        file.seek(kept)
        file.write(bytes(64 * 4096))
    await a.start()
    for index in range(20):
        a.put("v", index, b"new")
    await b.start()
    assert b.port == port
    await until(lambda: state(a.pairs) == state(b.pairs) == PairState.PSUE)
    assert "of run" in reason(b.pairs)


async def test_record_for_an_unknown_volume_suspends_both_sides(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b)
    volume = a.volume("v")
    volume.key ^= 1
    a.put("v", 0, b"x")
    await until(lambda: state(a.pairs) == state(b.pairs) == PairState.PSUE)
    assert "does not have" in reason(a.pairs)
    assert await b.get("v", 0) == b""


# ---- overflow ------------------------------------------------------------------------------


async def test_full_journal_suspends_the_pair_and_hosts_go_on(tmp_path: Path) -> None:
    small = {"journal_bytes": 16 * MIB, "segment_bytes": 8 * MIB}
    a, b = Site("A", tmp_path / "A", storage=small), Site("B", tmp_path / "B", storage=small)
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    await pair(a, "g", b)
    await b.crash()
    await write_much(a, 24 * MIB)
    assert state(a.pairs) == PairState.PSUE
    assert "journal of group g is full" in reason(a.pairs)
    await b.start()
    await until(lambda: state(b.pairs) == PairState.PSUE)
    assert "is full" in reason(b.pairs)
    for site in (a, b):
        await site.stop()


async def test_throttle_lets_hosts_wait_and_then_suspends(tmp_path: Path) -> None:
    small = {"journal_bytes": 16 * MIB, "segment_bytes": 8 * MIB}
    a, b = (Site(name, tmp_path / name, storage=small, throttle_timeout_s=0.4) for name in "AB")
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]}, overflow="throttle")
    connect(a, b)
    await pair(a, "g", b)
    await b.crash()
    await write_much(a, 24 * MIB)
    assert a.count("pair-throttles-hosts") == 1
    assert state(a.pairs) == PairState.PSUE
    await b.start()
    for site in (a, b):
        await site.stop()


async def test_more_writes_without_times_of_their_own_than_a_secondarys_journal_holds_are_shown(tmp_path: Path) -> None:
    """Ticks, which let writes that share a time be shown, are given while the secondary is connected only."""
    host_times = {"time_source": "host"}
    a = Site("A", tmp_path / "A", storage={**host_times, "journal_bytes": 64 * MIB})
    b = Site("B", tmp_path / "B", storage={**host_times, **SMALL_JOURNAL})
    async with connected(a, b, {"g": ["v"]}):
        await pair(a, "g", b)
        await b.crash()
        await write_much(a, 20 * MIB)
        await b.start()
        await caught_up(a, b, "g")
        assert await b.image("v") == await a.image("v")


async def write_much(site: Site, size: int) -> None:
    """Write as a target does: only while the group accepts."""
    group, volume = site.group("g"), site.volume("v")
    data = memoryview(bytes(range(256)) * 256)
    async with asyncio.timeout(30):
        for index in range(size // len(data)):
            if not group.accepting:
                waiting = asyncio.get_running_loop().create_future()
                group.when_accepting(lambda waiting=waiting: waiting.done() or waiting.set_result(None))  # type: ignore[misc]
                await waiting
            group.stage_write(volume, index % 32 * len(data), data)
            group.commit()
            await asyncio.sleep(0)


# ---- synchronous leg -----------------------------------------------------------------------


async def test_sync_loss_suspends_all_pairs_of_the_domain_and_hosts_go_on(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for group in "gh":
        await pair(a, group, b, mode="sync", sync_timeout_s=0.3)
    await a.write("v", 0, b"both")
    await b.crash()
    await a.write("v", 1, b"alone")  # waits for the time-out, then is acknowledged
    assert state(a.pairs, "g") == state(a.pairs, "h") == PairState.PSUE
    assert not a.group("h").acks.mirrored
    await a.crash()
    await a.start()
    assert state(a.pairs, "h") == PairState.PSUE
    await a.write("w", 0, b"at once")
    await b.start()
    await until(lambda: state(b.pairs, "g") == state(b.pairs, "h") == PairState.PSUE)


async def test_group_of_a_suspended_sync_pair_holds_the_others_back(sites: tuple[Site, Site]) -> None:
    a, b = sites
    for group in "gh":
        await pair(a, group, b, mode="sync")
    await a.write("v", 0, b"before")
    await caught_up(a, b, "g", "h")
    await a.pairs.suspend("A:g-B:g")
    await a.write("v", 0, b"only here")
    await a.write("w", 0, b"depends on it")
    await until(lambda: b.group("h").durable_seq >= 1)
    await asyncio.sleep(0.3)  # many tick intervals
    assert await b.get("w", 0) == b""


async def test_both_sides_learn_that_their_generations_differ(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    a.group("g").generation += 1  # as after a takeover at a site that had lost something
    b.pairs.secondaries[identity].receiver.drop("for the test")
    await until(lambda: state(b.pairs) == state(a.pairs) == PairState.PSUE, a, b)


async def test_held_group_says_nothing_of_its_position_until_it_works_again(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await a.write("v", 0, b"x")
    await caught_up(a, b, "g")
    for site in (a, b):  # as recovery leaves a group whose journal could not be read
        receiver = b.pairs.secondaries[identity].receiver
        site.group("g").read_error = Corrupt("the journal could not be read")
        receiver.drop("for the test")
        await until(lambda: "is held" in receiver.reason)  # noqa: B023
        assert state(a.pairs) == state(b.pairs) == PairState.PAIR
        site.group("g").read_error = None
        receiver.poke()
        await until(lambda: receiver.connected)  # noqa: B023


async def test_idle_sync_pair_with_a_cut_link_stays_a_pair(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b, mode="sync", sync_timeout_s=0.2)
    await a.write("v", 0, b"x")
    await b.crash()
    await asyncio.sleep(0.5)
    assert state(a.pairs) == PairState.PAIR
    await b.start()
    await a.write("v", 1, b"y")
    assert b.group("g").last_origin >= 2


async def test_block_fails_writes_until_the_secondary_has_caught_up(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b, mode="sync", sync_timeout_s=0.2, on_sync_loss="block")
    await b.crash()
    with pytest.raises(MirrorLost):
        await a.write("v", 0, b"in doubt")
    with pytest.raises(MirrorLost):
        a.put("v", 1, b"refused")
    assert state(a.pairs) == PairState.PAIR
    assert a.pairs.status()[0].blocked
    await b.start()
    await until(lambda: a.group("g").write_error is None)
    await a.write("v", 2, b"again")
    await caught_up(a, b, "g")
    assert await b.get("v", 0) == b"in doubt"


async def test_restarted_sync_primary_needs_the_mirror_from_the_first_write(sites: tuple[Site, Site]) -> None:
    a, b = sites
    await pair(a, "g", b, mode="sync", sync_timeout_s=30)
    await a.write("v", 0, b"x")
    await b.crash()
    await a.crash()
    await a.start()
    waiting = asyncio.ensure_future(a.write("v", 1, b"y"))
    flushing = asyncio.ensure_future(a.flush("v"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert not flushing.done()
    await b.start()
    await waiting
    await flushing
    assert b.group("g").durable_seq >= 2


async def test_old_primary_is_fenced_also_after_its_restart(sites: tuple[Site, Site]) -> None:
    a, b = sites
    identity = await pair(a, "g", b)
    await a.write("v", 0, b"x")
    await caught_up(a, b, "g")
    await a.crash()
    await b.pairs.takeover()
    await b.crash()
    await b.start()
    await a.start()
    await until(lambda: state(a.pairs) == PairState.SSWS)
    assert "taken over by B" in reason(a.pairs)
    for _ in range(2):
        with pytest.raises(ReadOnly):
            a.put("v", 0, b"y")
        await a.crash()
        await a.start()
    await until(lambda: b.pairs.secondaries[identity].record.fence is None)
    with contextlib.suppress(NotFound):
        await a.pairs.delete(identity)
    await a.write("v", 0, b"by order")


@pytest.mark.parametrize("failing", ["A", "B"])
async def test_site_that_starts_without_a_disk_concludes_nothing_and_goes_on_with_it_later(
    tmp_path: Path, failing: str
) -> None:
    sites = {name: await Site(name, tmp_path / name).start() for name in "AB"}
    a, b = sites["A"], sites["B"]
    connect(a, b)
    for site in (a, b):
        site.make({"g": ["v"]})
    await pair(a, "g", b)
    await a.write("v", 0, b"before")
    await caught_up(a, b, "g")
    site = sites[failing]
    await site.crash()
    disk, aside = site.directory / "disk0", site.directory / "aside"
    disk.rename(aside)
    await site.start()
    assert "disk disk: " in (site.group("g").describe_fault() or "")
    with pytest.raises(DiskFailed):
        await b.pairs.takeover() if site is b else site.put("v", 0, b"refused")
    await asyncio.sleep(0.5)  # several attempts to connect
    assert [status.state for status in a.pairs.status() + b.pairs.status()] == ["PAIR", "PAIR"]
    await site.crash()
    aside.rename(disk)
    await site.start()
    await a.write("v", 1, b"after")
    await caught_up(a, b, "g")
    assert await b.image("v") == await a.image("v")
    await a.stop()
    await b.stop()


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_secondary_whose_pool_is_full_goes_on_when_it_gets_another_disk(
    sites: tuple[Site, Site], tmp_path: Path, mode: str
) -> None:
    a, b = sites
    b.storage.create_disk("small", f"{tmp_path}/small", 8 * 65536)
    b.storage.create_pool("small", ["small"])
    for site, pool in ((a, "pool"), (b, "small")):
        site.storage.create_group("f")
        site.storage.create_volume("x", 4 * MIB, pool=pool, group="f")
    await pair(a, "f", b, mode=mode)
    for region in range(12):
        a.put("x", region * 16, b"region %d" % region)
    await until(lambda: b.count("pair-stalled") > 0, a, b)
    b.storage.create_disk("more", f"{tmp_path}/more", 8 * 65536)
    b.storage.grow_pool("small", "more")
    await caught_up(a, b, "f")
    assert await b.get("x", 11 * 16) == b"region 11"
    assert all(status.state == PairState.PAIR and not status.blocked for status in b.pairs.status())
