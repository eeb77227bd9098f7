"""The meta context ``remotecopy:dirty``: what hosts are told that a secondary may not have, by two real controllers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import nbd
import pytest

from tests.integration.harness import Controller, Site, create_pair, reported, wait_for, wait_until_applied
from tests.integration.link import Weather
from tests.interop.nbd_served import run_tool

MIB = 1 << 20
KIB = 1 << 10
GRANULE = 64 * KIB
SIZE = 32 * MIB
CONTEXT = "remotecopy:dirty"
Extents = list[tuple[int, int]]
"""(offset, length) of what differs."""


@pytest.fixture
def site() -> Iterator[Site]:
    """A and B, a pair of their groups g over a link that can be cut, and a group of A without a pair."""
    with Site(["A", "B"], weather=Weather(0.0, 0.0, 0.0)) as site, reported(site):
        site.start()
        for controller in site.controllers.values():
            controller.create_pool()
            controller.create_group("g", {"v": SIZE})
        site["A"].create_group("alone", {"w": SIZE})
        yield site


def connect(controller: Controller, volume: str, *contexts: str) -> Any:
    """Return a libnbd handle that has asked for ``contexts``."""
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(controller.uri(volume))
    return handle


def dirty(handle: Any) -> Extents:
    """Ask about the whole volume, in as many requests as the server likes."""
    found: Extents = []
    position = 0
    while position < SIZE:
        entries: list[int] = []

        def take(context: str, _offset: int, extents: list[int], _error: Any, entries: list[int] = entries) -> None:
            if context == CONTEXT:
                entries += extents

        handle.block_status(SIZE - position, position, take)
        assert entries
        for length, state in zip(entries[::2], entries[1::2], strict=True):
            assert state in (0, 1)
            if state:
                found.append((position, length))
            position += length
    return found


def mapped(controller: Controller, volume: str) -> Extents:
    """Likewise, as nbdinfo tells it."""
    extents = json.loads(run_tool("nbdinfo", "--json", f"--map={CONTEXT}", controller.uri(volume)))
    return [(extent["offset"], extent["length"]) for extent in extents if extent["type"]]


def listed(controller: Controller, volume: str, *queries: str) -> list[str]:
    """Return what the server answers to LIST_META_CONTEXT."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(controller.uri(volume))
    for query in queries:
        handle.add_meta_context(query)
    found: list[str] = []
    handle.opt_list_meta_context(found.append)
    handle.opt_abort()
    return found


def test_context_is_offered_where_there_is_a_secondary(site: Site) -> None:
    a, b = site["A"], site["B"]
    assert listed(a, "v", "remotecopy:") == ["remotecopy:write-time"]
    create_pair(a, b, "g")
    assert listed(a, "v", "remotecopy:") == ["remotecopy:write-time", CONTEXT]
    assert listed(a, "v", CONTEXT) == [CONTEXT]
    assert listed(a, "v") == ["base:allocation", "remotecopy:write-time", CONTEXT]
    for controller, volume in ((a, "w"), (b, "v")):
        assert CONTEXT not in listed(controller, volume, "remotecopy:", CONTEXT)
        assert not connect(controller, volume, CONTEXT).can_meta_context(CONTEXT)
    assert not connect(a, "v", "remotecopy:").can_meta_context(CONTEXT), "a bare namespace selects nothing"
    refused = subprocess.run(
        ["nbdinfo", f"--map={CONTEXT}", a.uri("w")], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert "does not support" in refused.stderr


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_what_is_written_is_dirty_until_the_secondary_has_it(site: Site, mode: str) -> None:
    a, b = site["A"], site["B"]
    create_pair(a, b, "g", mode=mode, **({"sync_timeout_s": 60} if mode == "sync" else {}))
    host = connect(a, "v", CONTEXT, "base:allocation")
    host.pwrite(bytes(range(1, 9)) * KIB, 5 * MIB)
    wait_until_applied(a, b, ["g"])
    wait_for("B to have everything", lambda: dirty(host) == [])
    site.links["A"].cut()
    requests = [
        host.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * GRANULE)), MIB),
        host.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"y" * 100)), 8 * MIB - 50),
        host.aio_trim(3 * GRANULE, 16 * MIB),
    ]
    expected = [(MIB, GRANULE), (8 * MIB - GRANULE, 2 * GRANULE), (16 * MIB, 3 * GRANULE)]
    other = connect(a, "v", CONTEXT)
    wait_for("the writes to be seen", lambda: dirty(other) == expected)
    if mode == "async":
        assert mapped(a, "v") == expected
    site.links["A"].mend()
    wait_for("B to have everything again", lambda: dirty(other) == [])
    assert mapped(a, "v") == []
    while host.aio_in_flight():
        host.poll(1000)
    assert all(host.aio_command_completed(request) for request in requests)


def test_a_suspended_pair_gathers_what_is_written(site: Site) -> None:
    a, b = site["A"], site["B"]
    create_pair(a, b, "g")
    host = connect(a, "v", CONTEXT)
    host.pwrite(b"before" * KIB, 2 * MIB)
    wait_until_applied(a, b, ["g"])
    wait_for("B to have everything", lambda: dirty(host) == [])
    site.links["A"].cut()
    host.pwrite(b"under way", 3 * MIB)
    a.post("/v1/pairs/g/suspend", {})
    expected = [(3 * MIB, GRANULE)]
    assert dirty(host) == expected
    for index in range(100):  # more than the journal holds: it is not kept for B
        host.pwrite(bytes([index + 1]) * MIB, 8 * MIB + index % 4 * MIB)
    host.zero(GRANULE, 20 * MIB)
    expected += [(8 * MIB, 4 * MIB), (20 * MIB, GRANULE)]
    assert dirty(host) == mapped(a, "v") == expected
    site.links["A"].mend()
    assert dirty(host) == expected
    a.kill()
    a.start()
    a.wait_ready()
    assert mapped(a, "v") == [(0, SIZE)], "what was trimmed meanwhile, for one, is not known any more"


def test_bad_requests_get_the_protocols_errors(site: Site) -> None:
    a, b = site["A"], site["B"]
    create_pair(a, b, "g")
    host = connect(a, "v", CONTEXT)
    host.set_strict_mode(0)
    for length, offset in ((0, 0), (4096, SIZE), (SIZE + 1, 0)):
        with pytest.raises(nbd.Error) as caught:
            host.block_status(length, offset, lambda *_: 0)
        assert caught.value.errno == "EINVAL"
    plain = connect(a, "v")
    plain.set_strict_mode(0)
    with pytest.raises(nbd.Error):
        plain.block_status(4096, 0, lambda *_: 0)
    one: list[int] = []
    host.block_status(SIZE, 0, lambda _context, _offset, extents, _error: one.extend(extents), nbd.CMD_FLAG_REQ_ONE)
    assert len(one) == 2
    a.delete("/v1/pairs/g?force=true")
    assert dirty(host) == [(0, SIZE)], "a session that goes on learns nothing of a copy that is no more"
    assert not connect(a, "v", CONTEXT).can_meta_context(CONTEXT)
