"""Any requests, in any split, with storage holding up anything: the volume is right and every request is answered once.

The model is a plain bytearray. A reply is checked against what the protocol allows, not against what the code does.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.host import Host
from tests.unit.targets.nbd.world import ALLOWED, SIZE, Sent, World

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
            world.settle()
    assert world.sent == {}
    assert host.replies.rest == b""
    assert host.stopped(Stop.INPUT)
    assert volume.image == world.model
    assert host.machine.in_flight == host.machine.slow_bytes == 0
    assert len(host.machine.input.chunk) <= host.machine.limits.chunk_max
    for _, view in volume.kept:
        if view is not None and len(view) > 8:
            assert bytes(view) == view[:1].tobytes() * len(view), "memory that storage keeps was written to"


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
