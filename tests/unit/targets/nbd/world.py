"""A model of a volume, and what the protocol wants for any request: beside the machine under test.

Owns: the model (a plain bytearray), and what was asked and is not answered yet.
Never: looks at how the machine does it; what it expects comes from the protocol document.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from controllerd.targets.nbd.contexts import ALLOCATION, WRITE_TIME, Context
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import Framing
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import Reply
from tests.unit.targets.nbd.fake_storage import FakeVolume
from tests.unit.targets.nbd.host import Host

SIZE = 300_000
ALLOWED = {
    client.READ: client.FUA | client.DF,
    client.WRITE: client.FUA,
    client.FLUSH: client.FUA,
    client.TRIM: client.FUA,
    client.CACHE: client.FUA,
    client.ZEROES: client.FUA | client.NO_HOLE | client.FAST_ZERO,
    client.STATUS: client.FUA | client.REQ_ONE,
}
_CHANGES = (client.WRITE, client.TRIM, client.ZEROES)


@dataclass(frozen=True)
class Sent:
    """One request; ``fill`` is the byte its data consists of."""

    command: int
    offset: int
    length: int
    flags: int
    fill: int


class World:
    """The machine under test, the model beside it, and what was asked."""

    def __init__(self, *, framing: Framing, timed: bool) -> None:
        contexts: tuple[Context, ...] = ()
        if framing.chunked:
            contexts = (ALLOCATION, WRITE_TIME) if timed else (ALLOCATION,)
        self.timed = WRITE_TIME in contexts
        self.host = Host(FakeVolume(size=SIZE), framing=framing, contexts=contexts)
        self.host.volume.sparse = True
        self.model = bytearray(SIZE)
        self.sent: dict[int, tuple[Sent, int, bytes | None]] = {}

    def encode(self, cookie: int, sent: Sent) -> bytes:
        """Return the request's bytes, and note what must be answered."""
        if sent.command == client.WRITE:
            data = bytes([sent.fill]) * sent.length
            if self.timed and sent.length > 3:
                data = struct.pack(">Q", cookie) + data
            encoded = self.host.request(client.WRITE, cookie, sent.offset, data=data, flags=sent.flags)
        else:
            data = b""
            if self.host.framing.extended and sent.flags & client.PAYLOAD_LEN:
                data = bytes([sent.fill]) * sent.length
            encoded = self.host.request(sent.command, cookie, sent.offset, sent.length, sent.flags) + data
        error = self.expected_error(sent)
        content = b""
        if not error:
            if sent.command == client.READ:
                content = bytes(self.model[sent.offset : sent.offset + sent.length])
            elif sent.command == client.WRITE:
                self.model[sent.offset : sent.offset + sent.length] = bytes([sent.fill]) * sent.length
            elif sent.command in (client.TRIM, client.ZEROES):
                self.model[sent.offset : sent.offset + sent.length] = bytes(sent.length)
        if sent.command == client.READ:
            self.host.replies.reads[cookie] = sent.length
        self.sent[cookie] = (sent, error, content)
        return encoded

    def expected_error(self, sent: Sent) -> int:
        """Return the error that the protocol document asks for."""
        structured = self.host.replies.structured
        allowed = ALLOWED.get(sent.command)
        if sent.command == client.WRITE and self.host.framing.extended:
            allowed = client.FUA | client.PAYLOAD_LEN
        if allowed is None or sent.flags & ~allowed:
            return client.EINVAL
        if sent.command == client.WRITE and self.timed and sent.length <= 3:
            return client.EINVAL
        if sent.command == client.WRITE and sent.length > 256 << 10:
            return client.EINVAL
        if sent.offset + sent.length > SIZE:
            return client.ENOSPC if sent.command in (client.WRITE, client.ZEROES) else client.EINVAL
        if sent.command == client.READ and sent.flags & client.DF and not structured:
            return client.EINVAL
        if sent.command == client.READ and sent.length > 256 << 10:
            return client.EOVERFLOW if structured else client.EINVAL
        if sent.command == client.ZEROES and sent.flags & client.NO_HOLE and sent.flags & client.FAST_ZERO:
            return client.ENOTSUP
        if sent.command == client.FLUSH and (sent.offset or sent.length):
            return client.EINVAL
        if sent.command == client.STATUS and (not structured or not sent.length):
            return client.EINVAL
        return 0

    def blur(self) -> None:
        """Say that nobody waits for answers: a read may see a change before or after it, or not."""
        changed = [sent for sent, error, _ in self.sent.values() if not error and sent.command in _CHANGES]
        for cookie, (sent, error, _) in self.sent.items():
            if any(sent.offset < c.offset + c.length and c.offset < sent.offset + sent.length for c in changed):
                self.sent[cookie] = (sent, error, None)

    def check(self, replies: dict[int, Reply]) -> None:
        """Check complete replies against what was asked."""
        for cookie, reply in replies.items():
            sent, error, content = self.sent.pop(cookie)
            assert reply.error == error, (sent, reply)
            if sent.command == client.READ and not error:
                got = reply.content()
                assert len(got) == sent.length
                assert content is None or got == content
                if sent.flags & client.DF:
                    assert reply.chunks == 1
            if sent.command == client.STATUS and not error:
                for states in reply.status.values():
                    assert 0 < sum(length for length, _ in states) <= sent.length

    def settle(self) -> None:
        """Let everything that waits go on, so that the next request comes after this one's answer."""
        host, group = self.host, self.host.group
        while True:
            if host.machine.slow_reads:
                host.serve_slow_reads()
            group.complete(group.last_seq)
            group.flush(group.last_seq)
            self.check(host.take())
            if host.stopped(Stop.INPUT):
                break
            group.accept()
            host.go_on()
