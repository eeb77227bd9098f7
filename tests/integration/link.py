"""A long-distance link between two controllers: it delays what passes, each connection differently, and can be cut.

Owns: a TCP relay in a thread of the test's process. Never: changes, loses or reorders what passes within a connection.

On one machine the transfer path is so fast that all groups are at the same point whenever a controller is killed, and a
secondary that ignored the cut over its groups would look right. Behind this link the groups arrive at different times,
and a cut of the link loses what was under way, as a disaster does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass

CHUNK_BYTES = 64 << 10
HELD_CHUNKS_MAX = 256


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the link is. Seconds; ``stall_chance``: of each chunk that its connection stands still for a while."""

    latency_max_s: float = 0.05
    stall_max_s: float = 0.4
    stall_chance: float = 0.02


class Link:
    """Relays connections to ``port`` on to ``target_port``, both on loopback; what comes back is delayed."""

    def __init__(self, port: int, target_port: int, chance: random.Random, weather: Weather) -> None:
        self.port = port
        self._target_port = target_port
        self._chance = chance
        self._weather = weather
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="link")
        self._thread.start()
        ready.wait()

    def cut(self) -> None:
        """Lose everything that is under way, and let nothing pass any more."""
        asyncio.run_coroutine_threadsafe(self._lose(), self._loop).result()

    def mend(self) -> None:
        """Let new connections pass again after `cut`."""
        self._cut = False

    def close(self) -> None:
        """Cut it, and end the thread."""
        if self._thread.is_alive():
            self.cut()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._relay, "127.0.0.1", self.port))
        ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(server.wait_closed())
        self._loop.close()

    async def _lose(self) -> None:
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self._writers.add(near)
        try:
            if self._cut:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(far)
            ways = [
                asyncio.create_task(self._pass(near_reader, far)),
                asyncio.create_task(self._pass_slowly(far_reader, near)),
            ]
            self._tasks.update(ways)
            try:
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._tasks.difference_update(ways)
                self._writers.discard(far)
                far.transport.abort()
        except OSError:
            pass  # nobody is there: the near side sees its connection close
        finally:
            self._writers.discard(near)
            near.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def _pass_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD_CHUNKS_MAX)
        latency_s = self._chance.uniform(0.0, self._weather.latency_max_s)

        async def take_in() -> None:
            due = 0.0
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK_BYTES):
                    delay_s = latency_s
                    if self._chance.random() < self._weather.stall_chance:
                        delay_s += self._chance.uniform(0.0, self._weather.stall_max_s)
                    due = max(due, loop.time() + delay_s)
                    await held.put((due, data))
            await held.put((due, b""))

        taking = asyncio.create_task(take_in())
        try:
            with contextlib.suppress(OSError):
                while True:
                    due, data = await held.get()
                    await asyncio.sleep(due - loop.time())
                    if not data:
                        writer.write_eof()
                        return
                    writer.write(data)
                    await writer.drain()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
