"""Two and three controllers in one process over loopback: records arrive, are applied, and are acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.model.errors import ReadOnly
from controllerd.model.pair_state import Role
from tests.integration.transfer_site import Site, caught_up, connect, pair, until


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[list[Site]]:
    """Sites C, A and B that know each other."""
    found = [await Site(name, tmp_path / name).start() for name in "CAB"]
    connect(*found)
    yield found
    for site in found:
        await site.stop()


async def test_async_pair_brings_every_write_to_the_secondary(sites: list[Site]) -> None:
    _, a, b = sites
    a.make({"g": ["v", "w"]})
    b.make({"g": ["v", "w"]})
    identity = await pair(a, "g", b)
    for index in range(200):
        await a.write("vw"[index % 2], index % 50, b"%d" % index)
    await caught_up(a, b, "g")
    assert await b.image("v") == await a.image("v")
    assert await b.image("w") == await a.image("w")
    with pytest.raises(ReadOnly):
        b.put("v", 0, b"x")
    await until(lambda: a.pairs.primaries[identity].sender.ack.durable >= 200)
    await until(lambda: b.pairs.status()[0].lag_s == 0.0)


async def test_sync_write_is_acknowledged_when_the_secondary_has_it(sites: list[Site]) -> None:
    c, a, _ = sites
    c.make({"g": ["v"]})
    a.make({"g": ["v"]})
    await pair(c, "g", a, mode="sync")
    for index in range(50):
        await c.write("v", index, b"%d" % index)
        assert a.group("g").last_origin >= index + 1
    await c.flush("v")
    assert a.group("g").durable_seq >= 50
    await caught_up(c, a, "g")
    assert await a.image("v") == await c.image("v")


async def test_cascade_and_takeover_at_the_last_site(sites: list[Site]) -> None:
    c, a, b = sites
    for site in sites:
        site.make({"g": ["v"], "h": ["w"]})
    for group in "gh":
        await pair(c, group, a, mode="sync")
        await pair(a, group, b)
    for index in range(100):
        await c.write("vw"[index % 2], index // 2, b"%d" % index)
    await caught_up(c, a, "g", "h")
    await caught_up(a, b, "g", "h")
    await c.crash()
    await a.crash()
    report = await b.pairs.takeover("default")
    assert report.rpo_known_s == 0.0
    assert {group.group for group in report.groups} == {"g", "h"}
    for index in range(100):
        assert await b.get("vw"[index % 2], index // 2) == b"%d" % index
    assert b.group("g").role is Role.PRIMARY
    await b.write("v", 3, b"after")
    await a.start()
    await c.start()
    await until(lambda: a.group("g").write_error is not None and c.group("g").write_error is not None)
    with pytest.raises(ReadOnly):
        c.put("v", 0, b"x")
