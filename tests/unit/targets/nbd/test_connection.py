"""The adapter of the transmission phase: when it reads, when it sends, when it closes. A fake transport, no sockets."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from controllerd.model.errors import DiskFailed
from controllerd.targets.nbd.buffers import BufferPool
from controllerd.targets.nbd.connection import Session
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.settings import KIB, Limits
from controllerd.targets.nbd.transmission import Transmission
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import Replies, Reply, request
from tests.unit.targets.nbd.fake_storage import FakeVolume

LIMITS = Limits(
    chunk_min=64 * KIB, chunk_max=128 * KIB, piece_max=64 * KIB, output_max=128 * KIB, slow_reads_max=128 * KIB
)


class FakeTransport:
    """Keeps what is written; a test says when the client takes it."""

    def __init__(self) -> None:
        self.protocol: Session | None = None
        self.written: list[bytes] = []
        self.buffered = 0
        self.taken = True
        self.reading = True
        self.closing = self.aborted = False
        self.high = 64 * KIB
        self.paused = False

    def set_protocol(self, protocol: Session) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_extra_info(self, _name: str) -> None:
        return None

    def writelines(self, parts: list[bytes]) -> None:
        for part in parts:
            self.write(part)

    def write(self, data: bytes | memoryview) -> None:
        assert not self.closing
        self.written.append(bytes(data))
        if not self.taken:
            self.buffered += len(data)
            if self.buffered > self.high and not self.paused:
                self.paused = True
                assert self.protocol is not None
                self.protocol.pause_writing()

    def take(self) -> None:
        """The client reads everything."""
        self.buffered = 0
        self.taken = True
        if self.paused:
            self.paused = False
            assert self.protocol is not None
            self.protocol.resume_writing()

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


class Desk:
    """A session with its fake transport, and the owner that hears of its end."""

    def __init__(self, volume: FakeVolume | None = None, limits: Limits = LIMITS) -> None:
        self.volume = volume or FakeVolume()
        self.group = self.volume.group
        self.transport = FakeTransport()
        self.reasons: list[str] = []
        self.session = Session(self, cast(asyncio.Transport, self.transport), "peer", 123)
        self.volume.sessions.add(self.session)
        machine = Transmission(
            self.volume,
            structured=True,
            contexts=(),
            limits=limits,
            chunks=BufferPool(1 << 20),
            replies=BufferPool(1 << 20),
            counters=Counters(),
            wake=self.session.wake,
        )
        self.replies = Replies(structured=True)
        self.session.start(machine)

    def ended(self, session: Session, reason: str) -> None:
        assert session is self.session
        self.reasons.append(reason)

    def receive(self, *parts: bytes) -> None:
        data = b"".join(parts)
        assert self.transport.reading
        buffer = self.session.get_buffer(-1)
        assert len(buffer) >= len(data)
        buffer[: len(data)] = data
        self.session.buffer_updated(len(data))

    def got(self) -> dict[int, Reply]:
        written, self.transport.written = self.transport.written, []
        for part in written:
            self.replies.feed(part)
        return self.replies.take()


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
