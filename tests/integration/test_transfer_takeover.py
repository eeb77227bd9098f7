"""Takeover: what is consistent is applied, nothing else, whatever happens in between (I1, I5, I16, I20)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controllerd.model.errors import Busy, Conflict, Corrupt, NoSpace, NotFound, ReadOnly
from controllerd.model.pair_state import PairState, Role
from controllerd.replication import takeover
from controllerd.replication.settings import Endpoint, PeerSettings
from controllerd.storage import volume as volume_module
from tests.integration.transfer_proxy import Proxy
from tests.integration.transfer_site import Site, caught_up, connect, pair, spec, until


class Duo:
    """A primary and a secondary with groups g (volume v) and h (volume w), each behind a proxy of its own."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.a = Site("A", directory / "A", **dict(changes))
        self.b = Site("B", directory / "B", **dict(changes))
        self.proxy = Proxy(lambda: self.a.port)

    async def start(self, **options: Any) -> Duo:
        await self.proxy.start()
        for site in (self.a, self.b):
            await site.start()
            site.make({"g": ["v"], "h": ["w"]})
        connect(self.a, self.b)
        self.b.peers["A"] = PeerSettings("A", Endpoint("127.0.0.1", self.proxy.port))
        for group in "gh":
            await pair(self.a, group, self.b, **options)
        return self

    async def stop(self) -> None:
        await self.a.stop()
        await self.b.stop()
        await self.proxy.stop()

    async def hold_back(self, group: str) -> None:
        """Cut the link of one group and keep it cut; the other goes on."""
        receiver = self.b.pairs.secondaries[f"A:{group}-B:{group}"].receiver
        await receiver.stop()

    def arrived(self) -> bool:
        return all(self.b.group(name).durable_seq >= self.a.group(name).last_seq for name in "gh")


@pytest.fixture
async def duo(tmp_path: Path) -> AsyncIterator[Duo]:
    found = await Duo(tmp_path).start()
    yield found
    await found.stop()


async def write_some(site: Site, count: int, begin: int = 0) -> None:
    for index in range(begin, begin + count):
        await site.write("vw"[index % 2], index // 2, b"%d" % index)


async def check_prefix(site: Site, count: int) -> int:
    """The image of v and w is that of the first n writes for one n; returns n."""
    seen = [await site.get("vw"[index % 2], index // 2) == b"%d" % index for index in range(count)]
    length = seen.index(False) if False in seen else count
    assert not any(seen[length:]), seen
    return length


async def test_nothing_later_is_shown_without_what_was_earlier(duo: Duo) -> None:
    a, b = duo.a, duo.b
    await write_some(a, 20)
    await caught_up(a, b, "g", "h")
    await duo.hold_back("h")
    await write_some(a, 20, 20)
    await until(lambda: b.group("g").durable_seq >= a.group("g").last_seq)
    length = await check_prefix(b, 40)
    assert length in (20, 21)  # the first write of g after the cut is older than anything missing
    report = b.pairs.preview()
    assert report.preview
    by_group = {group.group: group for group in report.groups}
    assert by_group["g"].unusable_writes in (9, 10)
    assert by_group["g"].unusable[0].volume == "v"
    assert by_group["g"].unusable_bytes == by_group["g"].unusable_writes * 4096
    assert report.holder == "h"
    assert report.rpo_s is not None
    assert report.rpo_s >= 0
    assert b.group("g").role is Role.SECONDARY
    await a.crash()
    done = await b.pairs.takeover()
    assert done.rto_s is not None
    assert set(done.phases_s) == {"stop", "sync", "apply", "promote"}
    assert {group.group: group.cut_seq for group in done.groups} == {
        group.group: group.cut_seq for group in report.groups
    }
    assert await check_prefix(b, 40) in (20, 21)
    again = await b.pairs.takeover()
    assert again == done
    assert b.pairs.preview() == done
    await b.write("v", 900, b"new")
    await b.crash()
    await b.start()
    assert await b.get("v", 900) == b"new"
    assert await check_prefix(b, 40) in (20, 21)
    assert (await b.pairs.takeover()) == done
    assert all(status.state == PairState.SSWS for status in b.pairs.status())
    await a.start()


async def test_missing_writes_and_bytes_are_known_from_the_last_heartbeat(duo: Duo) -> None:
    a, b = duo.a, duo.b
    await write_some(a, 10)
    await until(duo.arrived)
    identity = "A:g-B:g"
    b.pairs.secondaries[identity].intake.take_untrusted = lambda frame, generation: None  # type: ignore[method-assign]
    for index in range(5):
        a.put("v", 100 + index, b"missing")
    last = a.group("g").last_seq
    contact = b.pairs.secondaries[identity].contact
    await until(lambda: contact.beat is not None and contact.beat.last_seq >= last)
    group = next(group for group in b.pairs.preview().groups if group.group == "g")
    assert group.missing_writes is not None
    assert group.missing_writes >= 5
    assert group.missing_bytes is not None
    assert 5 * 4096 <= group.missing_bytes <= 5 * 4200 + 200 * group.missing_writes


async def test_readers_see_the_image_before_or_after_a_takeover_never_half_of_it(
    duo: Duo, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = duo.a, duo.b
    monkeypatch.setattr(takeover, "SLICE", 1)
    b.pairs.domains["default"].freeze()
    for index in range(50):
        a.put("v", 0, b"%d" % index)
        a.put("w", 0, b"%d" % index)
    await until(duo.arrived)
    seen: set[bytes] = set()
    order = asyncio.get_running_loop().create_task(b.pairs.takeover())
    while not order.done():
        seen.update(await asyncio.gather(b.get("v", 0), b.get("w", 0)))
        await asyncio.sleep(0)
    await order
    last = {await b.get("v", 0), await b.get("w", 0)}
    assert b"48" in last or b"49" in last
    assert seen <= {b"", *last}


async def test_reader_of_a_takeover_that_cannot_be_finished_gets_an_error(
    duo: Duo, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = duo.a, duo.b
    b.pairs.domains["default"].freeze()
    await write_some(a, 10)
    await until(duo.arrived)

    def refuse(sequence: int) -> int:
        raise NoSpace("full")

    monkeypatch.setattr(volume_module, "READ_WAIT_S", 0.05)
    group = b.group("h")
    monkeypatch.setattr(group, "apply_through", refuse)
    with pytest.raises(NoSpace):
        await b.pairs.takeover()
    with pytest.raises(Busy):
        await b.get("v", 0)
    for status in b.pairs.status():
        assert status.link_reason == "the takeover of domain default is not finished, order it again: full"
    monkeypatch.undo()
    await b.pairs.takeover()
    assert await check_prefix(b, 10) >= 9


async def test_takeover_of_an_unknown_domain_is_refused(duo: Duo) -> None:
    with pytest.raises(NotFound, match="default"):
        await duo.b.pairs.takeover("nope")
    with pytest.raises(NotFound):
        duo.a.pairs.preview()


class _Crash(Exception):
    """The process dies here."""


def _break(site: Site, name: str, hit: int) -> None:
    """Let the takeover at ``site`` die at the ``hit``-th durable step of the kind ``name``."""
    counter = 0

    def die() -> None:
        nonlocal counter
        counter += 1
        if counter == hit:
            raise _Crash(name)

    storage = site.storage
    if name == "before-promote":
        restart_groups = storage.restart_groups

        async def broken(restarts: Any) -> None:
            die()
            await restart_groups(restarts)

        storage.restart_groups = broken
    elif name == "apply":
        for group in storage.groups.values():
            apply_through = group.apply_through

            def apply(sequence: int, inner: Callable[[int], int] = apply_through) -> int:
                die()
                return inner(sequence)

            group.apply_through = apply
    else:
        put_document = storage.catalogue.put_document

        def put(kind: str, key: str, document: dict[str, Any]) -> None:
            ours = kind in ("group_pairs", "takeovers")
            if ours and name == "before-document":
                die()
            put_document(kind, key, document)
            if ours and name == "after-document":
                die()

        storage.catalogue.put_document = put  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize(
    ("step", "hit"),
    [
        ("before-document", 1),
        ("after-document", 1),
        ("apply", 1),
        ("before-promote", 1),
        ("before-document", 2),
        ("after-document", 2),
        ("before-document", 3),
        ("after-document", 4),
    ],
)
async def test_takeover_that_dies_in_the_middle_is_finished(tmp_path: Path, mode: str, step: str, hit: int) -> None:
    duo = await Duo(tmp_path).start(mode=mode)
    a, b = duo.a, duo.b
    await write_some(a, 30)
    await until(lambda: b.group("g").durable_seq >= 15 and b.group("h").durable_seq >= 15)
    await until(duo.arrived)
    if mode == "async":
        await duo.hold_back("h")
        await write_some(a, 10, 30)
        await until(lambda: b.group("g").durable_seq >= 20)
    await a.crash()
    _break(b, step, hit)
    died = False
    try:
        await b.pairs.takeover()
    except _Crash:
        died = True
    await b.crash()
    await b.start()
    report = await b.pairs.takeover()
    assert not report.preview
    assert {group.group for group in report.groups} == {"g", "h"}
    assert died or step in ("before-promote", "apply")
    length = await check_prefix(b, 40)
    assert length in ((30,) if mode == "sync" else (30, 31))
    assert all(status.state == PairState.SSWS for status in b.pairs.status())
    for name in "gh":
        assert b.group(name).role is Role.PRIMARY
    await b.write("v", 901, b"new")
    await b.write("w", 901, b"new")
    await b.crash()
    await b.start()
    assert await b.get("w", 901) == b"new"
    assert await check_prefix(b, 40) == length
    await a.start()
    await duo.stop()


async def test_takeover_in_the_middle_of_a_cascade_keeps_the_last_leg_running(tmp_path: Path) -> None:
    c, a, b = (Site(name, tmp_path / name) for name in "CAB")
    for site in (c, a, b):
        await site.start()
        site.make({"g": ["v"], "h": ["w"]})
    connect(c, a, b)
    for group in "gh":
        await pair(c, group, a, mode="sync")
        await pair(a, group, b)
    await write_some(c, 40)
    generation = a.group("g").generation
    await c.crash()
    report = await a.pairs.takeover()
    assert report.rpo_known_s == 0.0
    assert await check_prefix(a, 60) == 40
    sessions = b.pairs.secondaries["A:g-B:g"].receiver.sessions
    await write_some(a, 20, 40)
    await until(lambda: b.group("g").applied_seq >= a.group("g").last_seq, a, b)
    await until(lambda: b.group("h").applied_seq >= a.group("h").last_seq, a, b)
    assert await check_prefix(b, 60) == 60
    assert a.group("g").generation == generation
    assert b.pairs.secondaries["A:g-B:g"].receiver.sessions == sessions
    await a.crash()
    await a.start()
    await write_some(a, 2, 58)
    await c.start()
    await until(lambda: c.group("g").write_error is not None)
    with pytest.raises(ReadOnly):
        c.put("v", 0, b"x")
    for site in (c, a, b):
        await site.stop()


@pytest.mark.parametrize("behind", [0, 3])
async def test_writes_of_the_old_primary_behind_the_cut_are_named_on_both_sides(duo: Duo, behind: int) -> None:
    a, b = duo.a, duo.b
    await write_some(a, 10)
    await caught_up(a, b, "g", "h")
    duo.proxy.refusing = True
    duo.proxy.cut()
    for index in range(behind):
        await a.write("v", 500 + index, b"only here")
    report = await b.pairs.takeover()
    await b.write("v", 0, b"new")
    cut = {group.group: group.cut_seq for group in report.groups}
    duo.proxy.refusing = False
    fenced = b.pairs.secondaries
    await until(lambda: all(pair.record.fence is None for pair in fenced.values()), a, b)
    for site, role in ((a, "primary"), (b, "secondary")):
        for _ in range(2):
            status = next(status for status in site.pairs.status() if (status.group, status.role) == ("g", role))
            assert status.state == PairState.SSWS
            assert status.diverged_writes == behind
            if behind:
                assert status.diverged_bytes == behind * 4096
                assert f"diverged: {behind} writes, 12 KiB behind record {cut['g']}" in status.reason
            else:
                assert "diverged" not in status.reason
            assert sum(facts.get("writes") == behind for event, facts in site.events if event == "pair-diverged") == (
                1 if behind else 0
            )
            await site.crash()
            await site.start()


async def test_takeover_of_a_group_that_was_taken_over_further_on_is_refused(tmp_path: Path) -> None:
    c, a, b = (Site(name, tmp_path / name) for name in "CAB")
    for site in (c, a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(c, a, b)
    await pair(c, "g", a, mode="sync")
    identity = await pair(a, "g", b)
    await c.write("v", 0, b"x")
    await caught_up(a, b, "g")
    await c.crash()
    await b.pairs.takeover()
    await until(lambda: a.pairs.primaries[identity].record.state == PairState.SSWS, a, b)
    with pytest.raises(Conflict, match="taken over by B"):
        await a.pairs.takeover()
    await a.pairs.delete(identity, force=True)
    await a.pairs.takeover()
    await a.write("v", 0, b"by order")
    await c.start()
    for site in (c, a, b):
        await site.stop()


async def test_sync_takeover_after_a_reboot_does_not_trust_what_was_not_synced(tmp_path: Path) -> None:
    duo = await Duo(tmp_path, boot="one").start(mode="sync")
    a, b = duo.a, duo.b
    await write_some(a, 10)
    await until(duo.arrived)
    await a.crash()
    await b.crash()
    b.changes["boot"] = "two"
    await b.start()
    report = b.pairs.preview()
    assert any("restarted since" in warning for warning in report.warnings)
    await a.start()
    await until(lambda: not any(pair.record.in_doubt for pair in b.pairs.secondaries.values()))
    assert not any("restarted since" in warning for warning in b.pairs.preview().warnings)
    await duo.stop()


async def test_mirror_confirms_nothing_while_any_group_of_its_domain_is_in_doubt(tmp_path: Path) -> None:
    duo = await Duo(tmp_path, boot="one").start(mode="sync", sync_timeout_s=300.0)
    a, b = duo.a, duo.b
    await write_some(a, 10)
    await until(duo.arrived)
    await b.pairs.suspend("A:g-B:g")
    await b.crash()
    b.changes["boot"] = "two"
    await b.start()
    g, h = (b.pairs.secondaries[f"A:{name}-B:{name}"] for name in "gh")
    primary = a.pairs.primaries["A:h-B:h"]
    await until(lambda: not h.record.in_doubt, a, b)
    assert g.record.in_doubt
    write = asyncio.create_task(a.write("w", 9, b"waits"))
    await until(lambda: h.intake.received_seq >= a.group("h").last_seq, a, b)
    h.receiver.drop("a new session says no more than the old one")
    await until(lambda: h.receiver.sessions > 1 and h.receiver.connected, a, b)
    assert primary.sender.ack.received < a.group("h").last_seq
    assert not write.done()
    plan = b.pairs.preview()
    assert {group.group: group.cut_seq for group in plan.groups}["h"] < b.group("h").last_seq
    await b.pairs.delete("A:g-B:g", force=True)
    await write
    await duo.stop()


async def test_sync_takeover_after_a_reboot_keeps_all_that_a_stable_group_has(tmp_path: Path) -> None:
    duo = await Duo(tmp_path, boot="one", storage={"durability": "stable", "time_source": "host"}).start(mode="sync")
    a, b = duo.a, duo.b
    await write_some(a, 10)
    await a.crash()
    await b.crash()
    b.changes["boot"] = "two"
    await b.start()
    await b.pairs.takeover()
    assert await check_prefix(b, 20) == 10
    await a.start()
    await duo.stop()


async def run_with_source(tmp_path: Path, source: str, order: str, act: Callable[[Duo], Awaitable[None]]) -> None:
    duo = await Duo(tmp_path, storage={"time_source": source}).start(order=order)
    await act(duo)
    await duo.stop()


@pytest.mark.parametrize("source", ["host", "clock", "sequence"])
@pytest.mark.parametrize("order", ["time", "sequence"])
async def test_every_time_source_and_order_reaches_the_same_image(tmp_path: Path, source: str, order: str) -> None:
    async def act(duo: Duo) -> None:
        a, b = duo.a, duo.b
        for index in range(60):
            carried = 1000 + index // 7 if source == "host" else None
            await a.write("vw"[index % 3 == 0], index // 2, b"%d" % index, carried)
            if index % 10 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: all(len(b.group(name).pending) == 0 for name in "gh") and duo.arrived(), a, b)
        for volume in "vw":
            assert await b.image(volume) == await a.image(volume)
        assert b.pairs.domains["default"].mode == ("sequence" if source == "sequence" else "time")
        await b.crash()
        await a.write("v", 300, b"later", 5000 if source == "host" else None)
        await a.write("w", 300, b"later", 5000 if source == "host" else None)
        await b.start()
        await until(lambda: all(len(b.group(name).pending) == 0 for name in "gh") and duo.arrived(), a, b)
        assert await b.image("w") == await a.image("w")
        await a.crash()
        report = await b.pairs.takeover()
        assert (report.rpo_s is None) == (source == "sequence")
        await b.write("w", 1, b"new")
        await a.start()

    await run_with_source(tmp_path, source, order, act)


@pytest.mark.parametrize("source", ["host", "clock", "sequence"])
async def test_synchronous_secondary_shows_the_first_write_whatever_its_time(tmp_path: Path, source: str) -> None:
    duo = await Duo(tmp_path, storage={"time_source": source}).start(mode="sync")
    await duo.a.write("v", 0, b"first")
    await caught_up(duo.a, duo.b, "g")
    assert await duo.b.get("v", 0) == b"first"
    await duo.stop()


async def test_takeover_waits_until_every_group_has_been_recovered(duo: Duo) -> None:
    await write_some(duo.a, 10)
    await until(duo.arrived)
    await duo.a.crash()
    duo.b.group("g").read_error = Corrupt("the journal could not be read")
    with pytest.raises(Corrupt):
        await duo.b.pairs.takeover()
    assert duo.b.group("h").role is Role.SECONDARY
    duo.b.group("g").read_error = None
    await duo.b.pairs.takeover()
    assert await check_prefix(duo.b, 20) >= 9
    await duo.a.start()


async def test_numbers_of_groups_without_a_pair_do_not_stop_the_others(tmp_path: Path) -> None:
    async def act(duo: Duo) -> None:
        a, b = duo.a, duo.b
        a.storage.create_group("alone")
        a.storage.create_volume("x", 1 << 20, pool="pool", group="alone")
        for index in range(20):
            await a.write("vxw"[index % 3], index, b"%d" % index)
        await caught_up(a, b, "g", "h")
        assert await b.image("w") == await a.image("w")

    await run_with_source(tmp_path, "sequence", "time", act)


async def test_domain_refuses_groups_with_another_kind_of_time(tmp_path: Path) -> None:
    a, b, other = (
        Site("A", tmp_path / "A"),
        Site("B", tmp_path / "B"),
        Site("C", tmp_path / "C", storage={"time_source": "sequence"}),
    )
    for site in (a, b, other):
        await site.start()
    a.make({"g": ["v"]})
    other.make({"h": ["w"]})
    b.make({"g": ["v"], "h": ["w"]})
    connect(a, b, other)
    await pair(a, "g", b)
    await a.write("v", 0, b"x")
    await until(lambda: b.pairs.secondaries["A:g-B:g"].record.generation)
    await pair_and_fail(other, b)
    for site in (a, b, other):
        await site.stop()


async def pair_and_fail(primary: Site, secondary: Site) -> None:
    order = spec(primary, "h", secondary)
    await secondary.pairs.create(Role.SECONDARY, order)
    await primary.pairs.create(Role.PRIMARY, order)
    status = secondary.pairs.secondaries[order.identity].record
    await until(lambda: status.state == PairState.PSUE)
    assert "choose another domain" in status.reason
