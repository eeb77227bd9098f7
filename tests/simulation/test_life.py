"""A site that dies stops between two steps, whatever it had begun; the others go on."""

from __future__ import annotations

import asyncio

import pytest

from tests.simulation.life import Died, Life, current_life
from tests.simulation.network import Network, WorldLoop
from tests.simulation.plan import plan_stream
from tests.simulation.virtual_loop import Deadlock


def make_loop() -> tuple[WorldLoop, list[BaseException]]:
    errors: list[BaseException] = []
    loop = WorldLoop(lambda _where, error: errors.append(error))
    loop.network = Network(loop, plan_stream(1, "network"), lambda *_: None, lambda _: None)
    return loop, errors


def test_nothing_of_a_dead_life_runs_on() -> None:
    loop, errors = make_loop()
    seen: list[str] = []

    async def work(name: str) -> None:
        loop.call_later(2, seen.append, f"{name} timer")
        asyncio.get_running_loop().create_task(forever(name))
        await asyncio.sleep(2)
        seen.append(f"{name} end")

    async def forever(name: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            assert current_life() is not None
            loop.call_soon(seen.append, f"{name} finally")  # has no effect: the life is over

    async def main() -> None:
        lives = {name: Life(name) for name in "AB"}
        waiting = [loop.create_task(life.perform(work(name))) for name, life in lives.items()]
        await asyncio.sleep(1)
        lives["A"].end()
        await asyncio.sleep(3)
        with pytest.raises(Died):
            await waiting[0]
        await waiting[1]
        lives["B"].end()
        assert lives["A"].call(seen.append, "A called") is None

    loop.run_until_complete(main())
    loop.close()
    assert seen == ["B timer", "B end"]
    assert errors == []


def test_waiting_for_nothing_is_found_out() -> None:
    loop, _ = make_loop()

    async def main() -> None:
        await loop.create_future()

    with pytest.raises(Deadlock):
        loop.run_until_complete(main())
    loop.close()


class Ear(asyncio.BufferedProtocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.lost: list[Exception | None] = []
        self.transport: asyncio.Transport
        self._buffer = bytearray(7)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += self._buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@pytest.mark.parametrize("blocked_s", [0.0, 3.0])
def test_bytes_arrive_in_order_when_the_path_is_free(blocked_s: float) -> None:
    loop, errors = make_loop()
    ears: list[Ear] = []

    def accept() -> Ear:
        ears.append(Ear())
        return ears[-1]

    async def dial() -> Ear:
        _, ear = await loop.create_connection(Ear, "B", 7)
        assert isinstance(ear, Ear)
        return ear

    async def main() -> None:
        near, far = Life("A"), Life("B")
        await far.perform(loop.create_server(accept, "B", 7))
        ear = await near.perform(dial())
        path = loop.network.path("A", "B")
        path.chunk = 5
        path.blocked = blocked_s > 0
        near.call(ear.transport.write, bytes(range(100)))
        if blocked_s:
            await asyncio.sleep(blocked_s)
            assert ears[0].heard == b""
            path.blocked = False
            loop.network.kick()
        await asyncio.sleep(1)
        assert ears[0].heard == bytes(range(100))
        near.alive = False
        near.end()
        loop.network.died("A", power=False)
        await asyncio.sleep(1)
        assert len(ears[0].lost) == 1
        far.end()

    loop.run_until_complete(main())
    loop.close()
    assert errors == []
