"""What happened in one run, as hosts, operators and observers saw it: the checker's only input.

Owns: the events, their order, the block stamp that every written sector carries, and
keeping a history as JSON lines.
Never: knows the controllers' code; judges anything (`tests.simulation.checker` does).

The same history is recorded by the simulator, by runs of real processes and in the guest.
Groups and volumes are *logical*: one name for all copies; ``site`` says which copy.
Serials number the writes of a run from 1 in the order of their submission, over all groups.

What a reader would get wrong: ``at`` is one clock for the whole run (virtual seconds, or a
monotonic clock), never a site's own; write times are the sites' own, in nanoseconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

SECTOR: Final = 512
"""Bytes that carry one stamp. Offsets and lengths of stamped writes are multiples of it."""
ZEROS: Final = 0
"""What a sector of zeros shows instead of a serial."""
DAMAGED: Final = -1
"""What a sector shows that is neither zeros nor a stamp of this run made for this place."""

# A sector, big-endian; crc32 is zlib's, of all before it:
#  0       8     16     20      24       32         40             508     512
#  +-------+-----+------+-------+--------+----------+--- - - - ----+-------+
#  | magic | run | group| volume| serial | address  | 0..40 again  | crc32 |   address: byte offset in the volume
#  +-------+-----+------+-------+--------+----------+--- - - - ----+-------+
_STAMP: Final = struct.Struct(">8sQIIQQ")
_CRC: Final = struct.Struct(">I")
_MAGIC: Final = b"RCSTAMP\x01"
_REPEATS: Final = SECTOR // _STAMP.size + 1
_BODY: Final = SECTOR - _CRC.size
_EMPTY: Final = bytes(SECTOR)
assert _STAMP.size == 40


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A logical volume: the numbers its stamps carry, its group, its size in bytes."""

    number: int
    group: str
    group_number: int
    size: int


def encode(run: int, volume: VolumeFacts, serial: int, offset: int, length: int) -> bytes:
    """Return what write ``serial`` puts at ``offset``, ``length`` bytes."""
    sectors = []
    for address in range(offset, offset + length, SECTOR):
        head = _STAMP.pack(_MAGIC, run, volume.group_number, volume.number, serial, address)
        body = (head * _REPEATS)[:_BODY]
        sectors.append(body + _CRC.pack(zlib.crc32(body)))
    return b"".join(sectors)


def decode_untrusted(run: int, volume: VolumeFacts, offset: int, data: bytes | bytearray | memoryview) -> list[int]:
    """Return what each sector shows: a serial, `ZEROS` or `DAMAGED`. ``offset``: where ``data`` was read, in bytes."""
    shown = []
    view = memoryview(data)
    for start in range(0, len(view), SECTOR):
        sector = bytes(view[start : start + SECTOR])
        if sector == _EMPTY:
            shown.append(ZEROS)
            continue
        shown.append(_serial_untrusted(run, volume, offset + start, sector))
    return shown


def _serial_untrusted(run: int, volume: VolumeFacts, address: int, sector: bytes) -> int:
    if len(sector) != SECTOR or _CRC.unpack_from(sector, _BODY)[0] != zlib.crc32(sector[:_BODY]):
        return DAMAGED
    magic, found_run, group, number, serial, found_address = _STAMP.unpack_from(sector)
    place = (magic, found_run, group, number, found_address)
    return int(serial) if place == (_MAGIC, run, volume.group_number, volume.number, address) else DAMAGED


# ---- events ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened ``at`` seconds."""

    at: float


@dataclass(frozen=True, slots=True)
class Submitted(Event):
    """A host sends a write to ``site``. ``connection``: any name that is unique in the run.

    ``what``: "write" carries stamps; the others leave zeros. ``host_time``: the write time it carries, ns.
    ``fua``: its success is a flush of itself.
    """

    serial: int
    site: str
    connection: str
    group: str
    volume: str
    offset: int
    length: int
    what: Literal["write", "zeroes", "trim"] = "write"
    host_time: int | None = None
    fua: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledged(Event):
    """The host saw success of a write."""

    serial: int


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The host saw an error ("EIO", "EPERM", ...). "EPERM": it has not happened; else it may have, or may yet."""

    serial: int
    error: str


@dataclass(frozen=True, slots=True)
class FlushSubmitted(Event):
    """A host asks for a flush of a volume; ``flush`` is unique in the run."""

    flush: int
    site: str
    connection: str
    volume: str


@dataclass(frozen=True, slots=True)
class FlushAnswered(Event):
    """``error``: "" for success."""

    flush: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class ReadSubmitted(Event):
    """A host reads; ``read`` is unique in the run."""

    read: int
    site: str
    connection: str
    volume: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ReadAnswered(Event):
    """``shown``: what each sector shows (`decode_untrusted`); empty with an ``error``."""

    read: int
    shown: tuple[int, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """A host connection ended: what it had in flight is never answered."""

    connection: str


@dataclass(frozen=True, slots=True)
class Crashed(Event):
    """A site stopped. "kill": only the daemon; "power": what was not synced is lost; "disk": all of it is lost.

    "stop": by order. "fault": the daemon ended by itself, which it never may.
    """

    site: str
    how: Literal["kill", "power", "disk", "stop", "fault"]


@dataclass(frozen=True, slots=True)
class Restarted(Event):
    """A site has recovered and serves hosts and peers."""

    site: str


@dataclass(frozen=True, slots=True)
class Held(Event):
    """A site says that it cannot use what it has of a group; its last `Status` of it counts no more, until the next."""

    site: str
    group: str


@dataclass(frozen=True, slots=True)
class FaultBegun(Event):
    """A fault was injected; ``name`` from the fault catalogue ("F19 partition A-B").

    ``stalls``: a site whose hosts may have to wait while it lasts (its disk hangs, the daemon is stopped).
    """

    name: str
    stalls: str = ""


@dataclass(frozen=True, slots=True)
class FaultEnded(Event):
    """The fault is over."""

    name: str


@dataclass(frozen=True, slots=True)
class Quiet(Event):
    """From here on: no faults, all sites up, no host writes. ``bound_s``: by when all must have converged (I19)."""

    bound_s: float


@dataclass(frozen=True, slots=True)
class Ordered(Event):
    """An operator's order to ``site``; ``name``: "pair-create", "takeover", ...; ``order`` is unique in the run.

    For "pair-create": ``facts`` = {"secondary": site, "mode": "sync" or "async", "fence": "suspend" or "block"}.
    """

    order: int
    site: str
    name: str
    group: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """``error``: "" for success, else its code.

    For "takeover": ``facts`` = {"cut_time": ns, "cut_seqs": {group: n}}.
    """

    order: int
    error: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status(Event):
    """What ``site`` says of one pair, or of a group in none (state "SMPL"). None: it does not say.

    ``role``: "primary" or "secondary". Sequence numbers and times (ns) as in the API. ``peer``: a site.
    """

    site: str
    group: str
    role: str
    state: str
    peer: str = ""
    reason: str = ""
    mode: str = ""
    generation: int | None = None
    written: int | None = None
    arrived: int | None = None
    durable: int | None = None
    applied: int | None = None
    written_time: int | None = None
    applied_time: int | None = None
    cut_time: int | None = None
    lag_s: float | None = None
    missing_writes: int | None = None


@dataclass(frozen=True, slots=True)
class Journaled(Event):
    """A record was seen in the journal of ``site`` or on its way there, with valid checksums.

    ``kind``: as in the record; ``data_crc``: of its data; ``serial``: the write it carries, None: not a stamped write.
    """

    site: str
    group: str
    generation: int
    incarnation: int
    sequence: int
    time: int
    kind: int
    volume: str
    offset: int
    length: int
    data_crc: int
    serial: int | None = None


@dataclass(frozen=True, slots=True)
class Durable(Event):
    """A sync has made journal records of ``site`` durable that carry these writes."""

    site: str
    group: str
    serials: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Image(Event):
    """All volumes of a site as hosts see them at one moment, with no write in flight there.

    ``shown``: volume -> what each sector shows. ``consistent``: the site says that it is a consistent image.
    """

    site: str
    shown: dict[str, tuple[int, ...]]
    consistent: bool = True


EVENTS: Final[dict[str, type[Event]]] = {
    kind.__name__: kind
    for kind in (
        Submitted, Acknowledged, Failed, FlushSubmitted, FlushAnswered, ReadSubmitted, ReadAnswered, Disconnected,
        Crashed, Restarted, Held, FaultBegun, FaultEnded, Quiet, Ordered, Answered, Status, Journaled, Durable, Image,
    )
}  # fmt: skip


@dataclass(slots=True)
class Domain:
    """Groups that share apply domains and write times. ``time_source``: "host", "clock" or "sequence"."""

    time_source: str = "clock"
    order: str = "time"
    groups: tuple[str, ...] = ()


@dataclass(slots=True)
class History:
    """One run. ``run``: the number in its stamps. ``hold_bound_s``: longest that a host request may take (I7).

    ``lag_slack_s``: how much less than the truth a reported lag may be, seconds (I14).
    """

    run: int
    volumes: dict[str, VolumeFacts]
    domains: list[Domain] = field(default_factory=list)
    hold_bound_s: float = 60.0
    lag_slack_s: float = 2.0
    stable: bool = False
    """Every acknowledgement is a flush (``durability = stable``)."""
    prompt: bool = False
    """Every change of a pair's state at its primary is noted as `Status` before anything that follows from it."""
    events: list[Event] = field(default_factory=list)

    @classmethod
    def make(cls, run: int, sizes: dict[str, dict[str, int]], **facts: Any) -> History:
        """A history of groups: ``sizes`` = group -> volume -> bytes. Volume names are unique in the run."""
        volumes: dict[str, VolumeFacts] = {}
        for number, (group, members) in enumerate(sorted(sizes.items()), 1):
            for volume, size in sorted(members.items()):
                volumes[volume] = VolumeFacts(len(volumes) + 1, group, number, size)
        return cls(run, volumes, **facts)

    def add(self, event: Event) -> None:
        """Note an event; events are noted in the order in which they happened."""
        self.events.append(event)

    def stamped(self, write: Submitted) -> bytes:
        """Return the data of a write."""
        return encode(self.run, self.volumes[write.volume], write.serial, write.offset, write.length)

    def shown(self, volume: str, offset: int, data: bytes | bytearray | memoryview) -> tuple[int, ...]:
        """Return what was read, for `ReadAnswered` and `Image`."""
        return tuple(decode_untrusted(self.run, self.volumes[volume], offset, data))

    def digest(self) -> str:
        """Return a hash that is equal for equal histories."""
        summary = hashlib.sha256()
        for line in self._lines():
            summary.update(line.encode())
        return summary.hexdigest()

    def save(self, path: Path) -> None:
        """Write the history as JSON lines."""
        with path.open("w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterable[str]:
        head = dataclasses.asdict(dataclasses.replace(self, events=[]))
        yield json.dumps(head, sort_keys=True)
        for event in self.events:
            yield json.dumps([type(event).__name__, dataclasses.asdict(event)], sort_keys=True)


def load(path: Path) -> History:
    """Read what `History.save` wrote."""
    with path.open(encoding="ascii") as file:
        head = json.loads(file.readline())
        head["volumes"] = {name: VolumeFacts(**facts) for name, facts in head["volumes"].items()}
        head["domains"] = [Domain(**{**facts, "groups": tuple(facts["groups"])}) for facts in head["domains"]]
        history = History(**head)
        for line in file:
            name, facts = json.loads(line)
            history.add(_event(EVENTS[name], facts))
    return history


def _event(kind: type[Event], facts: dict[str, Any]) -> Event:
    """JSON has no tuples."""
    if kind is ReadAnswered:
        facts["shown"] = tuple(facts["shown"])
    elif kind is Durable:
        facts["serials"] = tuple(facts["serials"])
    elif kind is Image:
        facts["shown"] = {volume: tuple(shown) for volume, shown in facts["shown"].items()}
    return kind(**facts)


def sectors(offset: int, length: int) -> range:
    """Return the numbers of the sectors of a range."""
    return range(offset // SECTOR, (offset + length + SECTOR - 1) // SECTOR)
