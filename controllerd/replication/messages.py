"""Messages of the transfer path: the payloads of every frame type but DATA.

Owns: their fields, encoding, and checked decoding.
Never: finds frames in a stream (frames.py), or acts on what a message says.

Messages that are rare are JSON objects, so that a newer controller may add fields that
an older one ignores; those that come many times a second are fixed little-endian
structures. Text fields are cut to `MAX_TEXT` characters; lone surrogates, which no log,
catalogue or answer could show, are replaced before they are sent and refused when they come.

Source: spec §4.1-4.5, §5.5, §7.6; invariants F24, F25, F27.
"""

from __future__ import annotations

import enum
import json
import re
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Final, Self

from controllerd.replication.frames import FrameError, FrameFlag, FrameType, encode_frame

PROTOCOL: Final = 1
MAX_TEXT: Final = 512
MAX_NUMBER: Final = (1 << 63) - 1
"""Greatest number in a message: those that begin a journal, or its times, need others behind them."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# ACK payload, 40 bytes and a text, little-endian: what the secondary has, by the primary's numbers
#  0          8         16        24             32       40
#  +----------+---------+---------+--------------+--------+------+
#  | received | durable | applied | applied time | credit | held |
#  +----------+---------+---------+--------------+--------+------+
# credit = bytes of DATA payload that may be sent in this session, counted from its
# begin, so that a lost or overtaken ACK changes nothing. held (UTF-8) = empty, or the name
# of the secondary's group that holds the consistency line back, a line feed, and why.
_ACK: Final = struct.Struct("<QQQQQ")
assert _ACK.size == 40

# HEARTBEAT payload, 64 bytes and a text, little-endian: where the primary is
#  0          8           16        24    32       40      48          56           64
#  +----------+-----------+---------+-----+--------+-------+-----------+------------+--------+
#  | last seq | last time | wall ns | run | writes | size  | behind ns | limit time | remark |
#  +----------+-----------+---------+-----+--------+-------+-----------+------------+--------+
# writes, size = host writes up to last seq and their data, without ticks, counted from a base
# that is the same in all messages of one run (incarnation) of the primary.
# The rest is 0 and empty, unless the primary is a synchronous secondary itself: behind =
# time since it heard its own primary; limit time = 0, or the last write time it had from
# there while its later ones are its own ticks; remark (UTF-8) = why it does not hear it.
_HEARTBEAT: Final = struct.Struct("<QQQQQQQQ")
assert _HEARTBEAT.size == 64


class RefuseCode(enum.StrEnum):
    """Why a PULL or FENCE is refused."""

    UNKNOWN_PAIR = "unknown-pair"
    WRONG_PEER = "wrong-peer"
    WRONG_GENERATION = "wrong-generation"
    DIVERGED = "diverged"
    TRIMMED = "trimmed"
    SUSPENDED = "suspended"
    TAKEN_OVER = "taken-over"
    STALE_EPOCH = "stale-epoch"
    BAD_REQUEST = "bad-request"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class _Json:
    """A message that travels as a JSON object."""

    frame: ClassVar[FrameType]

    def encode(self) -> bytes:
        """Return the whole frame."""
        document = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in asdict(self).items()}
        # Not in ASCII: there a character may take 12 bytes, and a text of `MAX_TEXT` would not fit into a frame.
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        return encode_frame(self.frame, text.encode(errors="replace"))

    @classmethod
    def decode_untrusted(cls, payload: memoryview) -> Self:
        """Decode and check the types of all fields.

        Raises:
            FrameError: not a message of this kind.
        """
        try:
            document = json.loads(bytes(payload))
        except (ValueError, RecursionError) as error:
            raise FrameError(f"{cls.__name__}: not JSON") from error
        if not isinstance(document, dict):
            raise FrameError(f"{cls.__name__}: not a JSON object")
        values: dict[str, Any] = {}
        for item in fields(cls):
            value = document.get(item.name)
            if value is None and item.name in document:
                raise FrameError(f"{cls.__name__}: {item.name} is null")
            if item.name not in document:
                raise FrameError(f"{cls.__name__}: {item.name} is missing")
            values[item.name] = _checked(cls.__name__, item.name, str(item.type), value)
        return cls(**values)


def _checked(message: str, name: str, kind: str, value: object) -> object:
    if kind == "int" and type(value) is int and 0 <= value <= MAX_NUMBER:
        return value
    if kind == "str" and isinstance(value, str) and len(value) <= MAX_TEXT and not _SURROGATE.search(value):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    raise FrameError(f"{message}: {name} is not a valid {kind}")


@dataclass(frozen=True, slots=True)
class Hello(_Json):
    """Who is speaking. ``nonce`` is 32 random bytes in hex, new for every connection."""

    frame: ClassVar[FrameType] = FrameType.HELLO
    protocol: int
    controller: str
    serial: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Pull(_Json):
    """A secondary asks for the records of its pair from ``next_seq`` on.

    ``generation`` and ``incarnation`` name the primary's run that made its last record
    (both 0: it has none yet and takes what the primary says in ACCEPT). ``durable_seq``
    survives power loss here. ``state`` and ``reason`` are the pair's as the secondary
    sees it.
    """

    frame: ClassVar[FrameType] = FrameType.PULL
    pair: str
    group: str
    generation: int
    incarnation: int
    next_seq: int
    durable_seq: int
    epoch: int
    index: int
    count: int
    credit: int
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Accept(_Json):
    """The primary will send from the number asked for, or from ``start_seq`` + 1 to one that has nothing.

    ``base_time`` is the write time at which the pair began; ``writes_at_next`` and ``bytes_at_next``
    the heartbeat's counters of this ``run`` just before the next record, if they are known (``counted``).
    """

    frame: ClassVar[FrameType] = FrameType.ACCEPT
    generation: int
    start_seq: int
    base_time: int
    time_source: str
    last_seq: int
    run: int
    counted: bool
    writes_at_next: int
    bytes_at_next: int


@dataclass(frozen=True, slots=True)
class Refuse(_Json):
    """Why not. ``state`` is the pair's at the refusing side, "" if it knows none; ``epoch`` its newest session."""

    frame: ClassVar[FrameType] = FrameType.REFUSE
    code: str
    text: str
    state: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Fence(_Json):
    """The secondary was taken over up to ``cut_seq``: the primary must take no more writes (I16).

    ``incarnation``: the primary's run that this record is of, 0 if it is from before the pair.
    """

    frame: ClassVar[FrameType] = FrameType.FENCE
    pair: str
    generation: int
    cut_seq: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fenced(_Json):
    """The fence stands, durably. ``writes`` of ``bytes`` that hosts made here lie behind the cut (I13).

    If they are not all in the journal any more (not ``counted``), they are ``writes`` at the most, of unknown size.
    """

    frame: ClassVar[FrameType] = FrameType.FENCED
    pair: str
    writes: int
    bytes: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Notice(_Json):
    """The pair changed on the sender's side: ``event`` is suspend, fail or delete."""

    frame: ClassVar[FrameType] = FrameType.NOTICE
    event: str
    reason: str


@dataclass(frozen=True, slots=True)
class Farewell(_Json):
    """The secondary's side of the pair is gone. The primary answers with the same once it has kept that."""

    frame: ClassVar[FrameType] = FrameType.FAREWELL
    pair: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ack:
    """What the secondary has; see the layout above."""

    received: int
    durable: int
    applied: int
    applied_time: int
    credit: int
    tick_wanted: bool = False
    held: str = ""

    def encode(self) -> bytes:
        """Return the whole frame."""
        flags = FrameFlag.TICK_WANTED if self.tick_wanted else 0
        payload = _ACK.pack(self.received, self.durable, self.applied, self.applied_time, self.credit)
        return encode_frame(FrameType.ACK, payload + self.held[:MAX_TEXT].encode(errors="replace"), flags=flags)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Where the primary is; see the layout above."""

    last_seq: int
    last_time: int
    wall_ns: int
    run: int
    writes: int
    size: int
    behind_ns: int = 0
    limit_time: int = 0
    remark: str = ""

    def encode(self, *, last_word: bool = False) -> bytes:
        """Return the whole frame."""
        payload = _HEARTBEAT.pack(
            self.last_seq, self.last_time, self.wall_ns, self.run, self.writes, self.size,
            self.behind_ns, self.limit_time,
        )  # fmt: skip
        flags = FrameFlag.LAST_WORD if last_word else 0
        return encode_frame(FrameType.HEARTBEAT, payload + self.remark[:MAX_TEXT].encode(errors="replace"), flags=flags)


def decode_ack_untrusted(payload: memoryview, flags: int) -> Ack:
    """Decode an ACK.

    Raises:
        FrameError: not one, or it contradicts itself.
    """
    if len(payload) < _ACK.size:
        raise FrameError("ACK of a wrong length")
    held = _text_untrusted("ACK", payload[_ACK.size :])
    received, durable, applied, applied_time, credit = _ACK.unpack(payload[: _ACK.size])
    ack = Ack(received, durable, applied, applied_time, credit, bool(flags & FrameFlag.TICK_WANTED), held)
    if not ack.applied <= ack.received or not ack.durable <= ack.received:
        raise FrameError("ACK says that more is durable or applied than was received")
    return ack


def decode_heartbeat_untrusted(payload: memoryview) -> Heartbeat:
    """Decode a HEARTBEAT.

    Raises:
        FrameError: not one.
    """
    if len(payload) < _HEARTBEAT.size:
        raise FrameError("HEARTBEAT of a wrong length")
    remark = _text_untrusted("HEARTBEAT", payload[_HEARTBEAT.size :])
    last_seq, last_time, wall_ns, run, writes, size, behind_ns, limit_time = _HEARTBEAT.unpack(
        payload[: _HEARTBEAT.size]
    )
    return Heartbeat(last_seq, last_time, wall_ns, run, writes, size, behind_ns, limit_time, remark)


def _text_untrusted(message: str, payload: memoryview) -> str:
    try:
        text = str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise FrameError(f"{message} whose remark is no text") from error
    if len(text) > MAX_TEXT:
        raise FrameError(f"{message} whose remark is too long")
    return text
