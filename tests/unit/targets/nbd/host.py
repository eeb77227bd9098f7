"""A client of the transmission machine, without a network between them.

Owns: receiving as a socket does, serving slow reads, and collecting replies.
Never: checks anything itself.
"""

from __future__ import annotations

import asyncio
import contextlib

from controllerd.storage.buffers import BufferPool
from controllerd.targets.nbd.contexts import Context
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import STRUCTURED, Framing
from controllerd.targets.nbd.settings import KIB, MIB, Limits
from controllerd.targets.nbd.slow_reads import serve_slowly, serve_status
from controllerd.targets.nbd.transmission import Transmission
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import Replies, Reply, extended_request, request
from tests.unit.targets.nbd.fake_storage import FakeVolume

SMALL = Limits(
    payload_max=256 * KIB,
    drain_max=MIB,
    chunk_min=64 * KIB,
    chunk_max=128 * KIB,
    piece_max=64 * KIB,
    output_max=128 * KIB,
    slow_reads_max=128 * KIB,
)


class Host:
    """A client and the machine it talks to, without a network between them."""

    def __init__(
        self,
        volume: FakeVolume | None = None,
        *,
        framing: Framing = STRUCTURED,
        contexts: tuple[Context, ...] = (),
        limits: Limits = SMALL,
        initial: bytes = b"",
    ) -> None:
        self.volume = volume or FakeVolume()
        self.group = self.volume.group
        self.counters = Counters()
        self.wakes = 0
        self.framing = framing
        self.replies = Replies(structured=framing.chunked, extended=framing.extended)
        self.machine = Transmission(
            self.volume,
            framing=framing,
            contexts=contexts,
            limits=limits,
            chunks=BufferPool(4 * MIB),
            replies=BufferPool(MIB),
            counters=self.counters,
            wake=self._wake,
            initial=initial,
        )
        self.stop = Stop.INPUT
        self._unsent = b""

    def _wake(self) -> None:
        self.wakes += 1

    def request(
        self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes | None = None
    ) -> bytes:
        """Return a request in the session's framing."""
        if self.framing.extended:
            self.replies.offsets[cookie] = offset
            return extended_request(command, cookie, offset, length, flags, data)
        return request(command, cookie, offset, length, flags, data or b"")

    def send(self, *parts: bytes) -> dict[int, Reply]:
        """Send bytes the way a socket does, as long as the machine receives; return complete replies."""
        self._unsent += b"".join(parts)
        if self.stop is Stop.INPUT:
            self._transfer()
        return self.take()

    def go_on(self) -> None:
        """Advance after whatever stopped parsing, and send what had to wait."""
        self._advance()
        if self.stop is Stop.INPUT:
            self._transfer()

    def _transfer(self) -> None:
        while self._unsent and self.stop is Stop.INPUT:
            buffer = self.machine.receive_buffer()
            assert len(buffer), "no room to receive"
            count = min(len(buffer), len(self._unsent))
            buffer[:count] = self._unsent[:count]
            buffer.release()
            self.machine.received(count)
            self._unsent = self._unsent[count:]
            self._advance()

    def _advance(self) -> None:
        self._step()
        while self.stop is Stop.OUTPUT:
            self._step()

    def _step(self) -> None:
        self.stop = self.machine.advance()
        if self.machine.unsettled:
            self.machine.settle()
        self.collect()

    def stopped(self, reason: Stop) -> bool:
        """Whether parsing stopped for ``reason``."""
        return self.stop is reason

    def collect(self) -> None:
        out, self.machine.out = self.machine.out, []
        for part in out:
            self.replies.feed(bytes(part))

    def serve_slow_reads(self) -> None:
        slow, self.machine.slow_reads = self.machine.slow_reads, []
        for read in slow:
            serving = serve_slowly(self.machine, read, lambda: asyncio.sleep(0))
            with contextlib.suppress(StopIteration):
                while True:  # nothing here waits for anything, so no loop is needed
                    serving.send(None)
        self.collect()

    def serve_slow_statuses(self) -> None:
        waiting, self.machine.slow_statuses = self.machine.slow_statuses, []
        for status in waiting:
            with contextlib.suppress(StopIteration):
                serve_status(self.machine, status).send(None)
        self.collect()

    def take(self) -> dict[int, Reply]:
        self.collect()
        return self.replies.take()

    def one(self, data: bytes) -> Reply:
        """Send one request and return its reply."""
        (reply,) = self.send(data).values()
        return reply

    def read(self, offset: int, length: int, flags: int = 0) -> Reply:
        self.replies.reads[77] = length
        replies = self.send(self.request(client.READ, 77, offset, length, flags))
        self.serve_slow_reads()
        replies.update(self.take())
        del self.replies.reads[77]
        return replies[77]


PATTERN = bytes(range(1, 256)) * 257
