"""Any requests, in any split, with storage holding up anything: the volume is right and every request is answered once.

The model is a plain bytearray. A reply is checked against what the protocol allows, not against what the code does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from controllerd.targets.nbd.contexts import ALLOCATION, WRITE_TIME, Context
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
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


@dataclass(frozen=True)
class Sent:
    """One request; ``fill`` is the byte its data consists of."""

    command: int
    offset: int
    length: int
    flags: int
    fill: int


LENGTHS = st.one_of(
    st.integers(0, 100), st.sampled_from([512, 4095, 4096, 8192, 65_536, 65_537, 70_000, 140_000]), st.integers(0, SIZE)
)
REQUESTS = st.builds(
    Sent,
    st.sampled_from([client.READ, client.WRITE, client.WRITE, *ALLOWED, 9]),
    st.one_of(st.integers(0, SIZE), st.sampled_from([0, 4096, SIZE - 512, SIZE, 1 << 63])),
    LENGTHS,
    st.one_of(st.just(0), st.just(0), st.integers(0, 31), st.integers(0, 0xFFFF)),
    st.integers(1, 255),
)
FRAMINGS = st.sampled_from([SIMPLE, STRUCTURED, EXTENDED])
SPLITS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 200_000)), min_size=1, max_size=30)


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
        self.sent: dict[int, tuple[Sent, int, bytes]] = {}

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

    def check(self, replies: dict[int, Reply]) -> None:
        """Check complete replies against what was asked."""
        for cookie, reply in replies.items():
            sent, error, content = self.sent.pop(cookie)
            assert reply.error == error, (sent, reply)
            if sent.command == client.READ and not error:
                assert reply.content() == content
                if sent.flags & client.DF:
                    assert reply.chunks == 1
            if sent.command == client.STATUS and not error:
                for states in reply.status.values():
                    assert 0 < sum(length for length, _ in states) <= sent.length


@settings(max_examples=150)
@given(
    st.lists(REQUESTS, max_size=12),
    SPLITS,
    FRAMINGS,
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(["close-gate", "open-gate", "warm", "cold", "hold", "release"]), max_size=20),
)
def test_every_request_is_answered_once_and_right(
    requests: list[Sent], splits: list[int], framing: Framing, timed: bool, lockstep: bool, events: list[str]
) -> None:
    world = World(framing=framing, timed=timed)
    host, group, volume = world.host, world.host.group, world.host.volume
    # Requests in flight together may be served in any order, so reads are only comparable one at a time or without
    # storage holding anything up.
    if lockstep:
        events = []
    steps = iter(events)
    for cookie, sent in enumerate(requests):
        data = world.encode(cookie, sent)
        for split in [*splits, len(data)]:
            event = next(steps, "")
            if event in ("close-gate", "open-gate"):
                group.accepting = event == "open-gate"
            elif event in ("warm", "cold"):
                volume.cold = event == "cold"
            elif event in ("hold", "release"):
                group.hold_complete = group.hold_flush = event == "hold"
            piece, data = data[:split], data[split:]
            world.check(host.send(piece))
            settle(world)
    assert world.sent == {}
    assert host.replies.rest == b""
    assert host.stopped(Stop.INPUT)
    assert volume.image == world.model
    assert host.machine.in_flight == host.machine.slow_bytes == 0
    assert len(host.machine.input.chunk) <= host.machine.limits.chunk_max
    for _, view in volume.kept:
        if view is not None and len(view) > 8:
            assert bytes(view) == view[:1].tobytes() * len(view), "memory that storage keeps was written to"


def settle(world: World) -> None:
    """Let everything that waits go on, so that the next request comes after this one's answer."""
    host, group = world.host, world.host.group
    while True:
        if host.machine.slow_reads:
            host.serve_slow_reads()
        group.complete(group.last_seq)
        group.flush(group.last_seq)
        world.check(host.take())
        if host.stopped(Stop.INPUT):
            break
        group.accept()
        host.go_on()


@given(st.lists(st.one_of(st.binary(max_size=100), st.integers(0, 9)), max_size=20), FRAMINGS)
def test_any_bytes_end_in_a_reply_or_the_end(pieces: list[bytes | int], framing: Framing) -> None:
    host = Host(framing=framing)
    for number, piece in enumerate(pieces):
        data = piece if isinstance(piece, bytes) else host.request(piece, number, 0, 512)
        if piece == client.READ:
            host.replies.reads[number] = 512
        host.send(data)
        host.serve_slow_reads()
    assert host.stopped(Stop.INPUT) or host.stopped(Stop.END)
