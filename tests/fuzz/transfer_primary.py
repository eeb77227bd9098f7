"""A secondary with the right key against a primary: any requests, acknowledgements and orders, in any order.

Hosts of the attacked group go on and lose nothing that was acknowledged, a synchronous pair acknowledges nothing that
its secondary did not confirm while it is PAIR, and other pairs do not notice.
"""

from __future__ import annotations

import asyncio
from typing import Final

from controllerd.model.pair_state import PairState, Role
from controllerd.replication.frames import Frame, FrameType, encode_frame
from controllerd.replication.links import Link
from controllerd.replication.messages import Ack, Farewell, Fence, Heartbeat, Notice, Pull
from tests.fuzz import transfer_frames
from tests.fuzz.source import Source
from tests.fuzz.stage import ATTACKER, BLOCK, SIZE, TARGET, Stage, spec

_GROUP: Final = "g"
_PAIR: Final = f"{TARGET}:{_GROUP}-{ATTACKER}:{_GROUP}"
_NUMBERS: Final = (1, 2, 5, 0, 1 << 32, (1 << 63) - 1)
_STATES: Final = ("PAIR", "PAIR", "PAIR", "COPY", "PSUS", "PSUE", "SSWS", "SMPL", "", "x" * 512)
_STEPS_MAX: Final = 30


def run(data: bytes) -> None:
    """Let X do what ``data`` decides."""
    source = Source(data)
    stage = Stage.draw(source)
    stage.run(_Attack(stage, source).run())


class _Attack:
    def __init__(self, stage: Stage, source: Source) -> None:
        self._stage = stage
        self._source = source
        self._epoch = 1
        self._written: dict[int, list[bytes]] = {}
        """Block -> what may be in it: what was acknowledged last, and what was written and refused since."""
        self._confirmed = 0
        """The greatest number that X said it has."""

    async def run(self) -> None:
        stage, source = self._stage, self._source
        await stage.build([_GROUP])
        order = spec(stage.target, _GROUP, ATTACKER, stage.mode, "x")
        assert stage.target.life is not None
        await stage.target.life.perform(stage.target.pairs.create(Role.PRIMARY, order))
        host = asyncio.get_running_loop().create_task(self._host())
        for _ in range(_STEPS_MAX):
            if not source.left:
                break
            await self._step()
            await asyncio.sleep(source.pick((0.0, 0.001, 0.05, 0.3, 2.5)))
            stage.look()
        host.cancel()
        await asyncio.wait([host])
        if not host.cancelled():
            host.result()
        await stage.attacker.leave()
        await asyncio.sleep(1)
        await self._check()
        await stage.restart()
        await self._check()

    async def _check(self) -> None:
        stage = self._stage
        image = await stage.image(stage.target, f"{_GROUP}-v")
        for block, possible in self._written.items():
            assert image[block * BLOCK : (block + 1) * BLOCK] in possible, f"block {block} lost what was acknowledged"
        await stage.friends_are_well()

    async def _host(self) -> None:
        stage, number = self._stage, 0
        while True:
            number += 1
            block = number % (SIZE // BLOCK)
            possible = self._written.setdefault(block, [bytes(BLOCK)])
            write = asyncio.get_running_loop().create_task(stage.write(stage.target, f"{_GROUP}-v", block))
            try:
                data, error = await asyncio.shield(write)
            except asyncio.CancelledError:
                possible.append((await write)[0])
                raise
            if error is None:
                possible[:] = [data]
                self._check_mirror()
            else:
                possible.append(data)
            await asyncio.sleep(0.05)

    def _check_mirror(self) -> None:
        pair = self._stage.target.pairs.primaries.get(_PAIR)
        if self._stage.mode == "sync" and pair is not None and pair.record.state is PairState.PAIR:
            last = pair.group.complete_seq
            assert self._confirmed >= last or not pair.active, f"{last} is acknowledged, {self._confirmed} confirmed"

    # ---- what X does -------------------------------------------------------------------------

    async def _step(self) -> None:
        source, attacker = self._source, self._stage.attacker
        links = attacker.open_links
        if not links or source.number(1) % 8 == 7:
            link = await attacker.dial()
            if link is not None and source.number(1) % 8 != 7:
                attacker.send(link, self._pull())
            return
        link = links[source.number(1) % len(links)]
        match source.number(1) % 16:
            case 0 | 1 | 2:
                self._send_ack(link, self._last_sent())
            case 3:
                self._send_ack(link, self._last_sent() + source.pick((1, -1, 100, 1 << 40)))
            case 4:
                for _ in range(50):
                    self._send_ack(link, self._last_sent())
            case 5:
                attacker.send(link, Notice(source.pick(("fail", "suspend", "delete", "")), "because").encode())
            case 6:
                attacker.send(
                    link, Fence(_PAIR, *self._pair_of_numbers(), source.pick((0, 1, 2, 9)), "because").encode()
                )
            case 7:
                attacker.send(link, Farewell(source.pick((_PAIR, "other")), "because").encode())
            case 8:
                attacker.send(link, self._pull())
            case 9:
                attacker.send(link, transfer_frames.frame(source))
            case 10:
                self._stage.attacker.life.call(link.close, "enough")
            case 11:
                fence = await attacker.dial()
                if fence is not None:
                    attacker.send(
                        fence, Fence(_PAIR, *self._pair_of_numbers(), source.pick((0, 1, 2, 9)), "because").encode()
                    )
            case 12:
                farewell = await attacker.dial()
                if farewell is not None:
                    attacker.send(farewell, Farewell(_PAIR, "because").encode() * source.pick((1, 2)))
            case 13:
                attacker.send(link, encode_frame(FrameType.SYNC, first=source.pick(_NUMBERS)))
            case 14:
                a, b, c, d = (source.pick(_NUMBERS) for _ in range(4))
                beat = Heartbeat(a, b, c, d, d, c, b, a, "remark")
                attacker.send(link, beat.encode(last_word=bool(source.number(1) & 1)))
            case _:
                for _ in range(20):  # more than there may be
                    await attacker.dial()

    def _pair_of_numbers(self) -> tuple[int, int]:
        return self._source.pick(_NUMBERS), self._source.pick(_NUMBERS)

    def _last_sent(self) -> int:
        """Number of the last record that came to X."""
        frames = (frame for frames in self._stage.attacker.heard.values() for frame in frames)
        return max((_last(frame) for frame in frames), default=0)

    def _send_ack(self, link: Link, received: int) -> None:
        source = self._source
        received = max(0, received)
        durable, applied = (source.pick((received, received, 0, received // 2)) for _ in range(2))
        credit = source.pick((1 << 20, 1 << 20, 0, (1 << 64) - 1))
        held = source.pick(("", "g\nwhy", "\n", "x" * 512))
        self._confirmed = max(self._confirmed, received)
        ack = Ack(received, durable, applied, source.pick((0, (1 << 64) - 1)), credit, bool(credit & 1), held)
        self._stage.attacker.send(link, ack.encode())

    def _pull(self) -> bytes:
        source, group = self._source, self._stage.target.storage.groups[_GROUP]
        odd = source.number(1) % 4 == 3
        last = self._last_sent()
        generation, incarnation, following = group.generation, group.incarnation, last + 1
        self._epoch += source.pick((1, 1, 0, 5))
        epoch = self._epoch
        if odd:
            generation = source.pick((generation, generation, 0, 1, (1 << 63) - 1))
            incarnation = source.pick((incarnation, 0, 1 << 40))
            following = source.pick((following, 0, 1, last + 2, (1 << 63) - 1))
            epoch = source.pick((epoch, 0, (1 << 63) - 1))
        durable = source.pick((following - 1, 0, following, (1 << 63) - 1)) if odd else following - 1
        self._confirmed = max(self._confirmed, durable)
        return Pull(
            source.pick((_PAIR, _PAIR, "none")) if odd else _PAIR, _GROUP, generation, incarnation, following,
            max(0, durable), epoch, source.pick((0, 1, 9)) if odd else 0, source.pick((1, 2, 0, 1000)) if odd else 1,
            source.pick((1 << 20, 0, (1 << 63) - 1)), source.pick(_STATES) if odd else "PAIR", "",
        ).encode()  # fmt: skip


def _last(frame: Frame) -> int:
    return frame.first + frame.records - 1 if frame.type == FrameType.DATA else 0
