"""What the server asks a session: its rights, its memory, and whether its client still does anything."""

from __future__ import annotations

import asyncio

import pytest

from controllerd.model.access import rules
from controllerd.targets.nbd.settings import KIB
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.desk import LIMITS, Desk


async def test_session_ends_when_its_rights_change() -> None:
    desk = Desk()
    for kept in (None, rules([{"network": "unix"}, {"certificate": "x"}])):
        desk.volume.allow = kept
        desk.session.recheck()
        assert not desk.transport.aborted
    desk.volume.allow = rules([{"network": "unix", "read_only": True}])
    desk.session.recheck()
    assert desk.transport.aborted
    desk.session.connection_lost(None)
    assert desk.reasons == ["access to the volume was changed"]


async def test_what_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    desk.receive(request(client.WRITE, 1, 0, data=b"x"))
    assert desk.session.idle_s() == 0, "a request came"
    now += 10
    assert desk.session.idle_s() == 10
    desk.group.hold_flush = True
    desk.receive(request(client.FLUSH, 2))
    now += 10
    assert desk.session.idle_s() == 0
    now += 100
    assert desk.session.idle_s() == 0, "the client waits for this controller"
    desk.group.flush(1)
    now += 10
    assert desk.session.idle_s() == 10
    desk.transport.taken = False
    desk.receive(request(client.READ, 3, 0, 4096))
    assert desk.session.idle_s() == 0
    now += 10
    assert desk.session.idle_s() == 10, "an answer that is not taken does not count as work"
    desk.transport.take()
    assert desk.session.idle_s() == 0, "an answer was taken"


async def test_memory_of_a_session_is_what_it_holds() -> None:
    desk = Desk()
    empty = desk.session.memory
    assert empty == LIMITS.chunk_min
    desk.transport.taken = False
    desk.receive(request(client.READ, 1, 0, 60 * KIB))
    assert desk.session.memory > empty + 60 * KIB
    desk.transport.take()
    desk.volume.cold = True
    desk.receive(request(client.READ, 2, 0, 60 * KIB))
    assert desk.session.memory == empty + 60 * KIB
    for _ in range(5):
        await asyncio.sleep(0)
    assert desk.session.memory == empty
