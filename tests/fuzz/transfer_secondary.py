"""A primary with the right key against a secondary: any answers, records, times and notices, in any order.

What the secondary shows is always what it journaled, in order, and only what is older than the latest time of every
group (I1, I5); what it journaled was sent like that; what it holds is bounded; other pairs do not notice (I17).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crc32c import crc32c

from controllerd.model.pair_state import Role
from controllerd.model.records import MAX_DATA, MAX_RANGE, Kind, Record, RecordError, encode_header
from controllerd.replication.frames import Frame, FrameError, FrameType, encode_data_header, encode_frame
from controllerd.replication.links import Link
from controllerd.replication.messages import Accept, Heartbeat, Notice, Pull, Refuse, RefuseCode
from controllerd.replication.pair_record import PairSpec, PairVolume
from tests.fuzz import transfer_frames
from tests.fuzz.source import Source
from tests.fuzz.stage import ATTACKER, BLOCK, SIZE, TARGET, Stage
from tests.records import iterate_untrusted

_GROUPS: Final = ("g", "k")
_KEYS: Final = {"g": 1001, "k": 1002}
_GENERATION: Final = 77
_STEPS_MAX: Final = 40
_BASE: Final = 1_700_000_000_000_000_000
_LATEST: Final = (1 << 63) - 1
_NUMBERS: Final = (0, 1, 2, 5, 100, 1 << 32, _LATEST)
_FLOOD: Final = 1000


def run(data: bytes) -> None:
    """Let X do what ``data`` decides."""
    source = Source(data)
    stage = Stage.draw(source)
    stage.run(_Attack(stage, source).run())


@dataclass
class _Copy:
    """One attacked group: what X sends of it, and what T journaled."""

    name: str
    next_seq: int = 1
    time: int = _BASE
    links: list[Link] = field(default_factory=list)
    sent: dict[int, set[bytes]] = field(default_factory=dict)
    """X's number -> the contents that were sent under it, as far as that says what is shown."""
    journaled: dict[int, Record] = field(default_factory=dict)
    """T's number -> the record."""


class _Attack:
    def __init__(self, stage: Stage, source: Source) -> None:
        self._stage = stage
        self._source = source
        self._copies = {name: _Copy(name) for name in _GROUPS}
        self._serial = 0
        stage.attacker.on_request = self._requested
        stage.target.disk.on_write = self._written

    async def run(self) -> None:
        stage, source = self._stage, self._source
        await stage.attacker.listen()
        await stage.build(list(_GROUPS))
        assert stage.target.life is not None
        for name in _GROUPS:
            volumes = (PairVolume("v", f"{name}-v", _KEYS[name], SIZE),)
            order = PairSpec(ATTACKER, name, TARGET, name, volumes, mode=stage.mode, domain="x")
            await stage.target.life.perform(stage.target.pairs.create(Role.SECONDARY, order))
        await asyncio.sleep(0.3)
        for _ in range(_STEPS_MAX):
            if not source.left:
                break
            self._step(self._copies[source.pick(_GROUPS)])
            await asyncio.sleep(source.pick((0.0, 0.001, 0.05, 0.3, 0.6)))
            stage.look()
            await self._check()
        await stage.attacker.leave()
        await asyncio.sleep(1)
        await self._check()
        await stage.friends_are_well()
        await stage.restart()
        await self._check()
        await stage.friends_are_well()

    # ---- what must hold ---------------------------------------------------------------------

    def _written(self, path: str, data: bytes) -> None:
        """T wrote to a file: keep the records of journals."""
        if "/journals/" not in path:
            return
        number = int(path.rsplit("/", 2)[1])
        name = next((name for name, group in self._stage.target.storage.groups.items()
                     if group.facts.group_id == number), "")  # fmt: skip
        copy = self._copies.get(name)
        if copy is None:
            return
        try:
            for _, record in iterate_untrusted(memoryview(bytes(data))):
                if record.kind != Kind.NOTE and record.volume in (0, _KEYS[name]):
                    copy.journaled[record.sequence] = record
        except RecordError:
            pass  # a segment's header, or zeros

    async def _check(self) -> None:
        stage = self._stage
        target = stage.target
        if not target.serving:
            return
        groups = {name: target.storage.groups[name] for name in _GROUPS}
        # Reading may take a while, and more is shown meanwhile.
        before = {name: group.applied_seq for name, group in groups.items()}
        images = {name: await stage.image(target, f"{name}-v") for name in _GROUPS}
        for name, copy in self._copies.items():
            after = groups[name].applied_seq
            possible = [_replayed(copy, through) for through in range(before[name], after + 1)]
            assert images[name] in possible, f"{name} shows what is not its journal through {before[name]}..{after}"
            for record in copy.journaled.values():
                number = record.origin if stage.mode == "sync" else record.sequence
                if record.kind != Kind.TICK:
                    assert _content(record) in copy.sent.get(number, ()), f"{name}: record {number} was not sent so"
        self._check_cut({name: group.applied_seq for name, group in groups.items()})

    def _check_cut(self, applied: dict[str, int]) -> None:
        pairs = self._stage.target.pairs.secondaries.values()
        base = {pair.group.name: pair.record.base_time for pair in pairs if pair.record.spec.domain == "x"}
        if len(base) < len(_GROUPS):
            return
        reached = {
            name: max([base[name], *(record.time for record in copy.journaled.values())])
            for name, copy in self._copies.items()
        }
        for name, copy in self._copies.items():
            times = [r.time for r in copy.journaled.values() if r.sequence <= applied[name] and r.kind != Kind.TICK]
            assert max(times, default=0) < min(reached.values()) or not times, f"{name} shows more than {reached}"

    # ---- what X answers ----------------------------------------------------------------------

    def _requested(self, link: Link, frame: Frame) -> None:
        source = self._source
        try:
            pull = Pull.decode_untrusted(frame.payload)
        except FrameError:
            return
        copy = self._copies[pull.group]
        match source.number(1) % 16:
            case 13:
                return
            case 9 | 10 | 11 if not pull.generation:
                self._send(link, self._odd_accept(pull))
            case 14:
                self._send(link, self._odd_accept(pull))
            case 15:
                self._send(link, self._refusal(pull))
            case _:
                self._send(link, self._accept(pull))
        copy.links = [each for each in copy.links if not each.closed] + [link]
        if pull.generation:
            copy.next_seq = pull.next_seq

    def _accept(self, pull: Pull) -> bytes:
        return Accept(pull.generation or _GENERATION, 0, _BASE, "clock", 0, 1, False, 0, 0).encode()

    def _odd_accept(self, pull: Pull) -> bytes:
        source = self._source
        return Accept(
            source.pick((pull.generation or _GENERATION, 0, (1 << 32) - 1, 1 << 32, _LATEST)),
            source.pick((0, 0, *_NUMBERS)), source.pick((_BASE, 0, _LATEST)),
            source.pick(("clock", "host", "sequence", "", "x" * 512)),
            source.pick(_NUMBERS), source.pick(_NUMBERS), bool(source.number(1) & 1), source.pick(_NUMBERS),
            source.pick(_NUMBERS),
        ).encode()  # fmt: skip

    def _refusal(self, pull: Pull) -> bytes:
        source = self._source
        # Who is refused for ever asks no more, and that would be the end of the attack.
        code = source.pick((RefuseCode.BUSY, RefuseCode.STALE_EPOCH, "what", *RefuseCode))
        return Refuse(code, "because", source.pick(("", "PSUS", "x")), source.pick((pull.epoch, *_NUMBERS))).encode()

    def _send(self, link: Link, data: bytes) -> None:
        self._stage.attacker.send(link, data)

    # ---- what X does by itself -------------------------------------------------------------------

    def _step(self, copy: _Copy) -> None:
        source = self._source
        copy.links = [link for link in copy.links if not link.closed]
        if not copy.links:
            return
        link = copy.links[source.number(1) % len(copy.links)]
        doings: tuple[Callable[[], bytes], ...] = (
            lambda: self._data(copy),
            lambda: self._data(copy),
            lambda: self._data(copy),
            lambda: self._data(copy, ahead=source.pick((-1, -3, 1, 2, 1 << 40))),
            lambda: self._data(copy, odd=True),
            lambda: self._data(copy, tick=True),
            lambda: self._beat(copy),
            lambda: encode_frame(FrameType.SYNC, first=source.pick(_NUMBERS)),
            lambda: transfer_frames.frame(source),
            lambda: self._odd_accept(Pull("", "", _GENERATION, 0, 0, 0, 0, 0, 0, 0, "", "")),
            lambda: b"".join(self._data(copy) for _ in range(8)),
            lambda: self._rare(copy, link),
        )
        self._send(link, source.pick(doings)())

    def _rare(self, copy: _Copy, link: Link) -> bytes:
        source = self._source
        match source.number(1) % 4:
            case 0:
                self._stage.attacker.life.call(link.abort, "enough")
                return b""
            case 1:
                return b"".join(self._data(copy, big=True) for _ in range(_FLOOD))  # whatever the credit is
            case 2:
                return Notice(source.pick(("fail", "suspend", "delete", "x")), "because").encode()
            case _:
                return self._refusal(Pull("", "", 0, 0, 0, 0, 1, 0, 0, 0, "", ""))

    def _beat(self, copy: _Copy) -> bytes:
        source = self._source
        behind, limit = source.pick((0, 0, 5, (1 << 64) - 1)), source.pick((0, 0, _BASE, (1 << 64) - 1))
        a, b, c, d, e, f = (source.pick((copy.next_seq - 1, *_NUMBERS, (1 << 64) - 1)) for _ in range(6))
        beat = Heartbeat(a, b, c, d, e, f, behind, limit, source.pick(("", "no", "x" * 512)))
        return beat.encode(last_word=source.number(1) % 4 == 3)

    def _data(self, copy: _Copy, *, ahead: int = 0, odd: bool = False, tick: bool = False, big: bool = False) -> bytes:
        source = self._source
        first = max(0, copy.next_seq + ahead)
        incarnation = source.pick((1, 1, 1, 2, 3)) if odd else 1
        raw = b""
        count = 1 if big or tick else 1 + source.number(1) % 4
        for sequence in range(first, first + count):
            raw += self._record(copy, sequence, incarnation, odd=odd, tick=tick)
        generation = source.pick((_GENERATION, 1)) if odd else _GENERATION
        if not odd and not ahead:
            copy.next_seq += count
        if odd:
            count, first = source.pick((count, count, count, 0, 1 << 31)), source.pick((first, first, first, 0))
        return encode_data_header(generation, first, count, len(raw)) + raw

    def _record(self, copy: _Copy, sequence: int, incarnation: int, *, odd: bool, tick: bool) -> bytes:
        source = self._source
        self._serial += 1
        kind = Kind.TICK if tick else Kind.WRITE
        key, offset, length = _KEYS[copy.name], BLOCK * (self._serial % (SIZE // BLOCK)), BLOCK
        if odd:
            kind = source.pick((kind, Kind.ZEROES, Kind.TRIM, Kind.MARKER, Kind.NOTE))
            key = source.pick((key, key, key, 0, 999, (1 << 32) - 1))
            offset = source.pick((offset, offset, 0, SIZE - 512, SIZE, (1 << 64) - BLOCK, 1))
            length = source.pick((BLOCK, 512, SIZE, 0, MAX_RANGE, MAX_DATA))
            copy.time += source.pick((0, 1000, -1000, 10**18))
            if source.number(1) % 8 == 7:
                copy.time = source.pick((_BASE, _LATEST, 0, (1 << 64) - 1))
        else:
            copy.time += 1000
        copy.time = min(max(copy.time, 0), (1 << 64) - 1)
        data = b""
        if kind == Kind.WRITE:
            length = min(length, 4 * BLOCK)
            data = struct.pack(">II", self._serial, sequence & 0xFFFFFFFF) * (length // 8)
        if kind not in (Kind.WRITE, Kind.ZEROES, Kind.TRIM):
            key = offset = length = 0
        copy.sent.setdefault(sequence, set()).add(struct.pack("<BIQI", kind, key, offset, length) + data)
        return encode_header(
            kind, sequence=sequence, time=copy.time, generation=_GENERATION, incarnation=incarnation, volume=key,
            offset=offset, length=length, data_crc=crc32c(data) if data else 0,
            origin=source.pick(_NUMBERS) if odd else 0,
        ) + data  # fmt: skip


def _content(record: Record) -> bytes:
    return struct.pack("<BIQI", record.kind, record.volume, record.offset, record.length) + bytes(record.data)


def _replayed(copy: _Copy, through: int) -> bytes:
    """What the volume is after the journaled records up to ``through``."""
    image = bytearray(SIZE)
    for sequence in sorted(copy.journaled):
        record = copy.journaled[sequence]
        if sequence > through:
            break
        if record.kind == Kind.WRITE:
            image[record.offset : record.offset + record.length] = record.data
        elif record.kind in (Kind.ZEROES, Kind.TRIM):
            image[record.offset : record.offset + record.length] = bytes(record.length)
    return bytes(image)
