"""A host's path to one volume: a connection that is made again when it is lost, for as long as the host is patient.

Owns: reconnecting, and repeating a write whose outcome is unknown. Never: decides what is written.

Repeating is safe here because a workload never has two writes to one block in flight: the same bytes are written again
before anything later is.
"""

from __future__ import annotations

import asyncio

from hostsim.errors import ConnectFailed, ConnectionLost
from hostsim.nbdclient import NbdConnection

_RETRY_FIRST_S = 0.05
_RETRY_MAX_S = 0.5


class HostPath:
    """One host's way to one volume.

    ``patience_s``: how long to try to get a lost connection back; 0: a lost connection is the end (ConnectionLost).
    """

    def __init__(self, uri: str, write_time: bool, patience_s: float = 0.0) -> None:
        self.uri = uri
        self.reconnects = 0
        self._wants_write_time = write_time
        self._patience_s = patience_s
        self._connection: NbdConnection | None = None
        self._reconnecting = asyncio.Lock()

    async def open(self) -> NbdConnection:
        """Make the first connection. Raises ConnectFailed at once: a wrong address is not waited for."""
        self._connection = await NbdConnection.connect(self.uri, self._wants_write_time)
        return self._connection

    async def write(self, offset: int, data: bytes, write_time: int | None, fua: bool = False) -> None:
        """Write until it is acknowledged. Raises ConnectionLost (outcome unknown) or CommandFailed."""
        while True:
            connection = await self.connection()
            try:
                await connection.write(offset, data, write_time, fua)
                return
            except ConnectionLost:
                if self._patience_s <= 0:
                    raise

    async def connection(self) -> NbdConnection:
        """Return a connection that is alive as far as is known, waiting for a new one if need be."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        async with self._reconnecting:
            if self._connection is not None and self._connection.alive:
                return self._connection  # another chain got it back meanwhile
            self._connection = await self._again()
            self.reconnects += 1
            return self._connection

    async def _again(self) -> NbdConnection:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        pause_s = _RETRY_FIRST_S
        while True:
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise ConnectionLost(self.uri, f"not back after {self._patience_s:g} s")
            try:
                return await NbdConnection.connect(
                    self.uri, self._wants_write_time, timeout_s=max(left_s, _RETRY_MAX_S)
                )
            except ConnectFailed:
                await asyncio.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 2, _RETRY_MAX_S)

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            await self._connection.close()
