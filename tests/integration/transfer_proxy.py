"""A TCP proxy that does to a transfer path what networks do.

Owns: delays, resets after a given number of bytes, flipped bits, silence (half-open), and
holding one connection back so that frames overtake each other.
Never: looks into frames; it knows bytes and connections only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Fault:
    """What happens to one connection, primary to secondary. Byte counts are from its beginning; None: never."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    reset_after: int | None = None
    flip_at: int | None = None
    silent_after: int | None = None
    silent_back_after: int | None = None
    """Bytes from the secondary after which nothing of it passes any more (acknowledgements lost, F22)."""


class Proxy:
    """Listens on a port and passes connections on to ``target``. ``plan`` gives each new connection its fault."""

    def __init__(self, target: Callable[[], int], seed: int = 0) -> None:
        self.plan: Callable[[int], Fault] = lambda number: Fault()
        self.connections = 0
        self.resets = 0
        self.flips = 0
        self.port = 0
        self.refusing = False
        self._target = target
        self._rng = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        await stop_accepting(self._server)
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(5):  # what the loop has accepted and not yet handed on comes in the next turns
            self.cut()
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            if writer.transport is not None:
                writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self.refusing:
                await self._connect(reader, writer)
        except OSError:
            pass  # a reset or a target that is not there: the connection ends
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.plan(self.connections)
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target())
        self._writers.add(far_writer)
        try:
            up = asyncio.create_task(self._pump_back(reader, far_writer, fault))
            down = asyncio.create_task(self._pump(far_reader, writer, fault))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for part in (up, down):
                    part.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError):
                        await part
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()

    async def _pump_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
        passed = 0
        while data := await reader.read(65536):
            passed += len(data)
            if fault.silent_back_after is None or passed <= fault.silent_back_after:
                writer.write(data)
                await writer.drain()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
        passed = 0
        while data := await reader.read(65536):
            if fault.delay_s or fault.jitter_s:
                await asyncio.sleep(fault.delay_s + self._rng.uniform(0, fault.jitter_s))
            if fault.flip_at is not None and passed <= fault.flip_at < passed + len(data):
                changed = bytearray(data)
                changed[fault.flip_at - passed] ^= 1 << self._rng.randrange(8)
                data = bytes(changed)
                self.flips += 1
            if fault.reset_after is not None and passed + len(data) >= fault.reset_after:
                writer.write(data[: fault.reset_after - passed])
                await writer.drain()
                self.resets += 1
                return
            passed += len(data)
            if fault.silent_after is None or passed <= fault.silent_after:
                writer.write(data)
                await writer.drain()


async def stop_accepting(server: asyncio.Server | None) -> None:
    """To be called before ``server`` is closed, on asyncio's own loop.

    In Python 3.11 a connection that the loop has accepted when its server closes is never handed on and its socket
    leaks, which a later test would be blamed for. The daemon runs on uvloop, which has no such turn in between.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets if server is not None else ():
        loop.remove_reader(listener.fileno())
    for _ in range(4):
        await asyncio.sleep(0)
