"""Messages of the transfer path: read back as sent; anything else is a FrameError."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.replication.frames import HEADER_SIZE, FrameError, FrameFlag
from controllerd.replication.messages import (
    MAX_TEXT,
    Accept,
    Ack,
    Farewell,
    Fence,
    Fenced,
    Heartbeat,
    Hello,
    Notice,
    Pull,
    Refuse,
    decode_ack_untrusted,
    decode_heartbeat_untrusted,
)

KINDS: list[Any] = [Hello, Pull, Accept, Refuse, Fence, Fenced, Farewell, Notice]
TEXTS: dict[Any, str] = {
    Hello: "controller", Pull: "reason", Accept: "time_source", Refuse: "text", Fence: "reason", Fenced: "pair",
    Farewell: "reason", Notice: "reason",
}  # fmt: skip
"""A field of each that may be long."""
WRONG: list[Any] = [None, [], {}, -1, 2**63, True, 1.5, "x" * (MAX_TEXT + 1)]
numbers = st.integers(0, 2**64 - 1)


def example(kind: Any) -> Any:
    values = {"str": "text", "int": 5, "bool": False}
    return kind(**{item.name: values[str(item.type)] for item in fields(kind)})


@pytest.mark.parametrize("kind", KINDS)
def test_message_is_read_back_as_sent(kind: Any) -> None:
    message = example(kind)
    assert kind.decode_untrusted(memoryview(message.encode()[HEADER_SIZE:])) == message


@pytest.mark.parametrize("kind", KINDS)
def test_message_with_a_missing_or_wrong_field_is_refused(kind: Any) -> None:
    document = json.loads(example(kind).encode()[HEADER_SIZE:])
    for name in document:
        for wrong in WRONG:
            if type(wrong) is type(document[name]) is bool:
                continue
            changed = json.dumps({**document, name: wrong}).encode()
            with pytest.raises(FrameError):
                kind.decode_untrusted(memoryview(changed))
        with pytest.raises(FrameError):
            kind.decode_untrusted(memoryview(json.dumps({k: v for k, v in document.items() if k != name}).encode()))


def test_field_of_a_newer_version_is_ignored() -> None:
    document = {"event": "fail", "reason": "r", "something": [1, 2]}
    assert Notice.decode_untrusted(memoryview(json.dumps(document).encode())) == Notice("fail", "r")


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_the_formats_own_error(garbage: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(FrameError):
            kind.decode_untrusted(memoryview(garbage))


@pytest.mark.parametrize("payload", [b"", bytes(63), bytes(64) + b"\xff", bytes(64) + b"x" * (MAX_TEXT + 1)])
def test_wrong_heartbeat_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        decode_heartbeat_untrusted(memoryview(payload))


def test_deep_json_is_refused() -> None:
    with pytest.raises(FrameError):
        Notice.decode_untrusted(memoryview(b"[" * 4000))


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}", "é", "\0", '"'])
@pytest.mark.parametrize("kind", KINDS)
def test_long_text_is_cut_not_refused(kind: Any, letter: str) -> None:
    message = replace(example(kind), **{TEXTS[kind]: 4000 * letter})
    found = kind.decode_untrusted(memoryview(message.encode()[HEADER_SIZE:]))
    assert getattr(found, TEXTS[kind]) == letter * MAX_TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_a_character_is_neither_taken_nor_sent(kind: Any) -> None:
    """No log, catalogue or answer could show it."""
    document = {**json.loads(example(kind).encode()[HEADER_SIZE:]), TEXTS[kind]: "a\ud800b"}
    with pytest.raises(FrameError):
        kind.decode_untrusted(memoryview(json.dumps(document).encode()))
    frame = replace(example(kind), **{TEXTS[kind]: "a\ud800b"}).encode()
    assert getattr(kind.decode_untrusted(memoryview(frame[HEADER_SIZE:])), TEXTS[kind]) == "a?b"


@given(numbers, numbers, numbers, numbers, numbers, st.booleans())
def test_ack_is_read_back_or_refused_when_it_contradicts_itself(
    received: int, durable: int, applied: int, applied_time: int, credit: int, tick_wanted: bool
) -> None:
    ack = Ack(received, durable, applied, applied_time, credit, tick_wanted)
    payload = memoryview(ack.encode()[HEADER_SIZE:])
    flags = int(FrameFlag.TICK_WANTED) if tick_wanted else 0
    if durable <= received and applied <= received:
        assert decode_ack_untrusted(payload, flags) == ack
    else:
        with pytest.raises(FrameError):
            decode_ack_untrusted(payload, flags)


@given(numbers, numbers, numbers, numbers, numbers, numbers, numbers, numbers, st.text(max_size=MAX_TEXT))
def test_heartbeat_is_read_back_as_sent(
    last_seq: int, last_time: int, wall_ns: int, run: int, writes: int, size: int, behind_ns: int, limit_time: int,
    remark: str,
) -> None:  # fmt: skip
    beat = Heartbeat(last_seq, last_time, wall_ns, run, writes, size, behind_ns, limit_time, remark)
    assert decode_heartbeat_untrusted(memoryview(beat.encode()[HEADER_SIZE:])) == beat


@given(st.text(max_size=MAX_TEXT))
def test_ack_says_what_holds_the_line(held: str) -> None:
    frame = Ack(3, 2, 1, 0, 9, held=held).encode()
    assert decode_ack_untrusted(memoryview(frame[HEADER_SIZE:]), 0).held == held


def test_ack_whose_remark_is_long_or_cannot_be_shown_is_sent_all_the_same() -> None:
    frame = Ack(3, 2, 1, 0, 9, held="\ud800" + "x" * 4000).encode()
    assert decode_ack_untrusted(memoryview(frame[HEADER_SIZE:]), 0).held == "?" + "x" * (MAX_TEXT - 1)
