"""The adapter of the transmission phase: when it reads, when it sends, when it closes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controllerd.model.errors import DiskFailed
from controllerd.targets.nbd.settings import KIB
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.desk import Desk
from tests.unit.targets.nbd.fake_storage import FakeVolume, vast_volume


async def turn() -> None:
    """Let everything that is due run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_replies_of_a_pass_are_sent_at_once() -> None:
    desk = Desk()
    desk.receive(*(request(client.WRITE, n, n * 10, data=b"x") for n in range(5)))
    assert len(desk.transport.written) == 1
    assert set(desk.got()) == set(range(5))


async def test_session_describes_itself() -> None:
    desk = Desk()
    description: dict[str, Any] = desk.session.describe()
    assert description["peer"] == "peer"
    assert description["opened"] == 123
    assert description["read_only"] is False
    desk.volume.writable = False
    assert desk.session.describe()["read_only"] is True


async def test_closed_group_stops_reading_until_it_accepts() -> None:
    desk = Desk()
    desk.group.accepting = False
    desk.receive(request(client.WRITE, 1, 0, data=b"x"))
    assert not desk.transport.reading
    assert desk.got() == {}
    desk.group.accept()
    assert desk.got() == {}, "served in the middle of the group's own work"
    await turn()
    assert set(desk.got()) == {1}
    assert desk.transport.reading


async def test_client_that_does_not_read_stops_its_own_requests() -> None:
    desk = Desk()
    desk.transport.taken = False
    desk.receive(*(request(client.READ, n, 0, 60 * KIB) for n in range(50)))
    assert not desk.transport.reading
    early = desk.got()
    assert len(early) < 10
    while len(early) < 50:
        desk.transport.take()
        desk.transport.taken = False
        await turn()
        more = desk.got()
        assert 0 < len(more) < 12
        early.update(more)
    desk.transport.take()
    await turn()
    assert desk.transport.reading


async def test_slow_reads_do_not_hold_up_what_follows() -> None:
    desk = Desk()
    desk.volume.cold = True
    desk.receive(request(client.READ, 1, 0, 4096), request(client.WRITE, 2, 0, data=b"x"))
    assert set(desk.got()) == {2}
    await turn()
    assert set(desk.got()) == {1}


async def test_too_many_slow_reads_stop_reading_until_some_are_done() -> None:
    desk = Desk()
    desk.volume.cold = True
    desk.receive(*(request(client.READ, n, 0, 60 * KIB) for n in range(10)))
    assert not desk.transport.reading
    for _ in range(10):
        await turn()
    assert set(desk.got()) == set(range(10))
    assert desk.transport.reading


async def test_disconnect_waits_for_what_is_under_way() -> None:
    desk = Desk()
    desk.group.hold_flush = True
    desk.receive(request(client.WRITE, 1, 0, data=b"x"), request(client.FLUSH, 2), request(client.DISC, 3))
    assert not desk.transport.is_closing()
    desk.group.flush(1)
    assert set(desk.got()) == {1, 2}
    assert desk.transport.is_closing()
    assert not desk.transport.aborted
    desk.session.connection_lost(None)
    assert desk.reasons == [""]
    assert desk.volume.sessions == set()


async def test_half_closed_client_gets_its_answers() -> None:
    desk = Desk()
    desk.group.hold_complete = True
    desk.receive(request(client.WRITE, 1, 0, data=b"x"))
    assert desk.session.eof_received()
    assert not desk.transport.is_closing()
    desk.group.complete(1)
    assert set(desk.got()) == {1}
    assert desk.transport.is_closing()


async def test_nonsense_closes_and_says_why() -> None:
    desk = Desk()
    desk.receive(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n")
    assert desk.transport.is_closing()
    desk.session.connection_lost(None)
    assert desk.reasons == ["client sent something that is not an NBD request"]


async def test_lost_connection_costs_nothing_to_others() -> None:
    volume = FakeVolume()
    volume.group.hold_complete = True
    lost, other = Desk(volume), Desk(volume)
    lost.receive(request(client.WRITE, 1, 0, data=b"x"), request(client.WRITE, 2, 0, data=bytes(100))[:50])
    other.receive(request(client.WRITE, 3, 1, data=b"y"))
    lost.session.connection_lost(ConnectionResetError("gone"))
    assert volume.sessions == {other.session}
    volume.group.complete(2)
    assert lost.transport.written == []
    assert set(other.got()) == {3}
    assert volume.image[:2] == b"xy"


async def test_lost_connection_ends_its_slow_reads() -> None:
    desk = Desk()
    desk.volume.cold = True
    desk.receive(request(client.READ, 1, 0, 4096))
    desk.session.connection_lost(None)
    await turn()
    assert desk.transport.written == []


async def test_stop_answers_what_is_under_way_and_closes() -> None:
    desk = Desk()
    desk.group.hold_flush = True
    desk.receive(request(client.WRITE, 1, 0, data=b"x", flags=client.FUA))
    desk.session.shut_down()
    assert not desk.transport.is_closing()
    desk.group.flush(1)
    assert desk.got()[1].error == 0
    assert desk.transport.is_closing()


async def test_stop_refuses_what_waits_for_the_group() -> None:
    desk = Desk()
    desk.group.accepting = False
    desk.receive(request(client.WRITE, 1, 0, data=b"x"), request(client.READ, 2, 0, 10))
    desk.session.shut_down()
    assert {reply.error for reply in desk.got().values()} == {client.ESHUTDOWN}
    assert desk.transport.is_closing()
    desk.group.accept()
    await turn()


async def test_bug_in_storage_closes_this_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = FakeVolume()
    broken, other = Desk(volume), Desk(volume)

    def explode(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(volume, "read_into", explode)
    with pytest.raises(ZeroDivisionError):
        broken.receive(request(client.READ, 1, 0, 10))
    assert broken.transport.aborted
    other.receive(request(client.WRITE, 1, 0, data=b"x"))
    assert set(other.got()) == {1}


async def test_failing_slow_read_is_an_error_reply() -> None:
    desk = Desk()
    desk.volume.cold = True
    desk.receive(request(client.READ, 1, 0, 10))
    desk.volume.read_error = DiskFailed("bad sector")
    await turn()
    assert desk.got()[1].error == client.EIO


async def test_long_range_of_zeroes_leaves_turns_to_others() -> None:
    volume = vast_volume(1 << 30)
    desk, other = Desk(volume), Desk(volume)
    desk.receive(request(client.TRIM, 1, 0, 1 << 30), request(client.WRITE, 2, 0, data=b"x"))
    assert not desk.transport.reading
    other.receive(request(client.WRITE, 3, 0, data=b"x"))
    assert set(other.got()) == {3}
    assert desk.got() == {}
    for _ in range(5):
        await turn()
    assert set(desk.got()) == {1, 2}
    assert desk.transport.reading


async def test_client_that_takes_much_data_leaves_turns_to_others() -> None:
    desk = Desk()
    length = 64 * KIB
    desk.receive(*(request(client.READ, n, 0, length) for n in range(8)))
    assert len(desk.got()) < 8
    for _ in range(8):
        await turn()
    assert desk.transport.reading
