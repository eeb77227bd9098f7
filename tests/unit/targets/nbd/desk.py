"""A session on a fake transport: no sockets, and the test says when the client takes data.

Owns: the transport's rules (nothing written after close, reading switched only when it changes).
Never: checks replies.
"""

from __future__ import annotations

import asyncio
from typing import cast

from controllerd.model.access import Client
from controllerd.storage.buffers import BufferPool
from controllerd.targets.nbd.clients import Visitor
from controllerd.targets.nbd.connection import Session
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.framing import STRUCTURED
from controllerd.targets.nbd.poll import Poll
from controllerd.targets.nbd.rounds import Rounds
from controllerd.targets.nbd.settings import KIB, Limits
from controllerd.targets.nbd.transmission import Transmission
from tests.unit.targets.nbd.client import Replies, Reply
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

    def get_write_buffer_size(self) -> int:
        return self.buffered

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

    def __init__(
        self,
        volume: FakeVolume | None = None,
        limits: Limits = LIMITS,
        rounds: Rounds | None = None,
        poll: Poll | None = None,
        tls: str | None = None,
    ) -> None:
        self.volume = volume or FakeVolume()
        self.group = self.volume.group
        self.transport = FakeTransport()
        self.reasons: list[str] = []
        self.rounds = rounds or Rounds(lambda _: None)
        self.poll = poll or Poll(0.0, lambda _: None)
        visitor = Visitor(7, "peer", Client(None), tls, 123)
        self.session = Session(self, cast(asyncio.Transport, self.transport), visitor)
        self.volume.sessions.add(self.session)
        machine = Transmission(
            self.volume,
            framing=STRUCTURED,
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
