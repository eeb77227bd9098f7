"""Any options, whole or broken, in any split: the handshake has the same outcome as in one piece, in bounded memory."""

from __future__ import annotations

import struct
from typing import Any

from controllerd.targets.nbd.negotiation import Negotiation, State
from controllerd.targets.nbd.settings import Limits
from tests.fuzz.source import Source
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.fake_storage import FakeExports, FakeVolume

LIMITS = Limits(option_max=600, option_drain_max=2000)
_QUERIES = (
    "base:allocation",
    "base:",
    "remotecopy:write-time",
    "remotecopy:dirty",
    "remotecopy:",
    "x-y:z",
    "nothing",
    "",
)
_NAMES = ("vol", "", "nothing", "ro", "n" * 5000)
_NUMBERS = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 0, 4, 12, 0xFFFFFFFF)


def run(data: bytes) -> None:
    """Handshake with what ``data`` decides."""
    source = Source(data)
    tls = source.pick(("off", "off", "off", "allow", "require"))
    stream = struct.pack(">I", source.pick((3, 1, 2, 0, 4)))
    for _ in range(source.number(1) % 12):
        stream += _option(source)
    stream += source.take(source.number(1) if source.left > 300 else 0)
    pieces = list(source.pieces(stream))
    # With TLS it matters whether a client waited for the answer to STARTTLS, so nothing is compared.
    outcome = _feed(_machine(tls), pieces)
    if tls == "off":
        assert outcome == _feed(_machine(tls), [stream])


def _machine(tls: Any) -> Negotiation:
    fixed = FakeVolume("ro", 512)
    fixed.writable = False
    return Negotiation(FakeExports(FakeVolume("vol"), fixed), LIMITS, default_export="vol", tls=tls)


def _option(source: Source) -> bytes:
    number = source.pick(_NUMBERS)
    match source.number(1) % 5:
        case 0:
            return client.option(number)
        case 1:
            queries = [source.pick(_QUERIES) for _ in range(source.number(1) % 4)]
            return client.meta(number, source.pick(_NAMES), *queries)
        case 2:
            wanted = [source.number(1) % 6 for _ in range(source.number(1) % 5)]
            return client.go(source.pick(_NAMES), *wanted, number=number)
        case 3:
            return client.option(number, source.take(source.number(1)))
        case _:
            # A length that is not that of the data.
            return b"IHAVEOPT" + struct.pack(">II", number, source.number(2)) + source.take(source.number(1))


def _feed(machine: Negotiation, pieces: list[bytes]) -> Any:
    output = b""
    rest = b"".join(pieces)
    for piece in pieces:
        machine.feed_untrusted(piece)
        rest = rest[len(piece) :]
        more = True
        while more:
            more = machine.step()
            step = machine.take_output()
            assert len(step) < 20_000, "one step makes one option's replies"
            output += step
        assert len(machine._input) <= LIMITS.option_max + 16 + len(piece)
        if machine.state is State.STARTTLS:
            machine.tls_started()
        elif machine.state in (State.DONE, State.CLOSED):
            break
    replies = client.option_replies(output[18:]) if machine.state is State.OPTIONS else ()
    assert all(kind for _, kind, _ in replies)
    agreed = machine.result
    if agreed is None:
        return output, machine.state
    contexts = [context.name for context in agreed.contexts]
    assert not contexts or agreed.framing.chunked
    return (
        output,
        machine.state,
        agreed.volume.name,
        agreed.flags,
        agreed.framing,
        contexts,
        machine.take_input() + rest,
    )
