"""Any requests without waiting for answers, in any split, then any bytes: the outcome does not depend on the split.

What comes out is compared with a model that knows no splits. A second session beside it must not notice.
"""

from __future__ import annotations

from typing import Final

from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED
from tests.fuzz.source import Source
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.fake_storage import FakeVolume
from tests.unit.targets.nbd.host import Host
from tests.unit.targets.nbd.world import SIZE, Sent, World

_COMMANDS: Final = (client.WRITE, client.READ, client.ZEROES, *client.EVERY, 9, 0xFFFF)
_FLAGS: Final = (0, 0, client.NO_HOLE, client.FUA, client.DF, client.REQ_ONE, client.FAST_ZERO, client.PAYLOAD_LEN)
_LENGTHS: Final = (512, 140_000, 1, 4096, 40_000, 65_536, 65_537, 0, 262_144, 262_145)
_STEPS_MAX: Final = 2000
"""Far more than anything here takes: beyond it the machine is taken to be stuck."""


class _Deaf:
    """Takes replies that nobody can attribute: what was asked is unknown."""

    def feed(self, data: bytes) -> None:
        """Take a reply."""

    def take(self) -> dict[int, client.Reply]:
        """Return nothing."""
        return {}


def run(data: bytes) -> None:
    """One session with what ``data`` decides."""
    source = Source(data)
    world = World(framing=source.pick((STRUCTURED, SIMPLE, EXTENDED)), timed=bool(source.number(1) & 1))
    host = world.host
    other = Host(FakeVolume("other", 8192, host.group))
    host.volume.cold = bool(source.number(1) & 1)
    if source.number(1) & 1:  # else reads find holes
        host.volume.image[:] = world.model[:] = b"\xa5" * SIZE
    stream = b"".join(world.encode(cookie, _request(source)) for cookie in range(source.number(1) % 16))
    world.blur()
    for piece in source.pieces(stream):
        world.check(host.send(piece))
        _check_bounds(host)
        host.group.accepting = source.number(1) % 4 != 3
        _check_other(other, source)
    _finish(world)
    assert not world.sent, "requests without an answer"
    assert not host.replies.rest
    assert host.volume.image == world.model
    assert not host.machine.in_flight
    assert not host.machine.slow_bytes
    _any_bytes(host, source)
    _check_other(other, source)


def _request(source: Source) -> Sent:
    offset = source.pick((0, source.number(3) % SIZE, 4096, SIZE - 512, SIZE, 1 << 63))
    length = source.pick((*_LENGTHS, source.number(2)))
    flags = source.pick((*_FLAGS, source.number(2)))
    return Sent(source.pick(_COMMANDS), offset, length, flags, 1 + source.number(1) % 255)


def _finish(world: World) -> None:
    host = world.host
    host.group.accept()
    world.check(host.take())
    for _ in range(_STEPS_MAX):
        if host.machine.slow_reads:
            host.serve_slow_reads()
        world.check(host.take())
        if host.stopped(Stop.INPUT):
            return
        host.go_on()
    raise AssertionError(f"stuck: {host.stop}")


def _any_bytes(host: Host, source: Source) -> None:
    host.replies = _Deaf()  # type: ignore[assignment]
    for _ in range(_STEPS_MAX):
        if host.stopped(Stop.END) or not source.left:
            return
        if host.stopped(Stop.INPUT):
            start = source.pick((b"", host.framing.magic.to_bytes(4, "big"), host.framing.magic.to_bytes(4, "big")))
            host.send(start + source.take(1 + source.number(1) % 60))
        else:
            host.go_on()
        if host.machine.slow_reads:
            host.serve_slow_reads()
        _check_bounds(host)
    raise AssertionError(f"stuck: {host.stop}")


def _check_bounds(host: Host) -> None:
    machine = host.machine
    limits = machine.limits
    assert len(machine.input.chunk) <= limits.chunk_max
    assert machine.slow_bytes < limits.slow_reads_max + limits.payload_max
    assert machine.in_flight <= limits.in_flight_max + limits.chunk_max // 28


def _check_other(other: Host, source: Source) -> None:
    data = bytes([source.number(1)]) * 512
    accepting, other.group.accepting = other.group.accepting, True
    assert not other.one(other.request(client.WRITE, 1, 4096, data=data)).error
    assert other.read(4096, 512).content() == data
    other.group.accepting = accepting
