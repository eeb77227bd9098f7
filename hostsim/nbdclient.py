"""One NBD connection of a host, as an asyncio object over libnbd's Python module ``nbd``.

Owns: the libnbd handle, its place in the event loop, and the write-time prefix (spec §3.4).
Never: reconnects or repeats a command; who lost a connection decides that (``paths.py``).

What a reader would get wrong: the module is Debian's python3-libnbd; the package named ``nbd`` on PyPI is another one.
libnbd closes its descriptor by itself when a connection dies, so the loop watches a duplicate of it: a number that was
closed behind the loop's back, and perhaps given to another connection already, would confuse the loop's selector.

libnbd checks commands before it sends them. With write times every write is 8 bytes longer than its data, so a write to
the last block seems to pass the export's end and none seems aligned: the checks of bounds and alignment are therefore
switched off on such connections (``nbd_set_strict_mode``), and the server's own checks are what remains.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from typing import Any, Self

import nbd

from hostsim.errors import CommandFailed, ConnectFailed, ConnectionLost, HostError

WRITE_TIME_CONTEXT = "remotecopy:write-time"
"""Meta context of a host that gives write times: negotiated like any other, spec §3.4."""

# Payload of a write on a connection with write times, big-endian:
#  0              8
#  +--------------+------------ - - -
#  | time (ns)    | data
#  +--------------+------------ - - -
# The request's length counts both; its offset is where the data goes.
WRITE_TIME_PREFIX = struct.Struct(">Q")
assert WRITE_TIME_PREFIX.size == 8

READ_CHUNK_BYTES = 1 << 20
ZERO_CHUNK_BYTES = 16 << 20
CONNECT_TIMEOUT_S = 10.0
_ENOTCONN = 107
_ESHUTDOWN = 108


class NbdConnection:
    """A connection to one export. Commands may be in flight side by side; the server may answer in any order."""

    def __init__(self, handle: Any, uri: str, write_time: bool) -> None:
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._watched = os.dup(int(handle.aio_get_fd()))
        self._writing = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._lost: ConnectionLost | None = None
        self.uri = uri
        self.write_time = write_time
        self.size: int = int(handle.get_size())
        self.read_only = bool(handle.is_read_only())
        self._loop.add_reader(self._watched, self._readable)

    @classmethod
    async def connect(cls, uri: str, write_time: bool = False, timeout_s: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect and negotiate.

        ``uri``: nbd://host:port/export, nbds://, nbd+unix:///export?socket=path, as libnbd understands them.
        ``write_time``: ask for the write-time context; whether the server has it is ``.write_time`` afterwards.
        Raises ConnectFailed: nothing was sent that changes anything.
        """
        handle = nbd.NBD()
        if write_time:
            handle.add_meta_context(WRITE_TIME_CONTEXT)
            handle.set_strict_mode(handle.get_strict_mode() & ~(nbd.STRICT_BOUNDS | nbd.STRICT_ALIGN))
        try:
            handle.aio_connect_uri(uri)
            async with asyncio.timeout(timeout_s):
                await _handshake(handle)
            if not handle.aio_is_ready():
                raise ConnectFailed(uri, "the server closed the connection during negotiation")
            granted = write_time and bool(handle.can_meta_context(WRITE_TIME_CONTEXT))
            return cls(handle, uri, granted)
        except TimeoutError:
            raise ConnectFailed(uri, f"no answer within {timeout_s:g} s") from None
        except nbd.Error as error:
            raise ConnectFailed(uri, str(error)) from None

    @property
    def alive(self) -> bool:
        """False once the connection was lost or closed."""
        return self._lost is None

    async def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes at ``offset``. Raises CommandFailed or ConnectionLost."""
        buffer = nbd.Buffer(length)
        await self._command("read", lambda done: self._handle.aio_pread(buffer, offset, done))
        return bytes(buffer.to_buffer())

    async def write(self, offset: int, data: bytes, write_time: int | None = None, fua: bool = False) -> None:
        """Write, and return when the server acknowledged it.

        ``write_time``: nanoseconds, u64; needed on connections with write times and ignored on others, as an open
        host's would be. ``fua``: acknowledged only when it survives power loss.
        Raises CommandFailed; ConnectionLost: it may have happened or not.
        """
        if self.write_time:
            if write_time is None:
                raise HostError(f"{self.uri}: this connection gives a time with every write, and none was given")
            data = WRITE_TIME_PREFIX.pack(write_time) + data
        flags = nbd.CMD_FLAG_FUA if fua else 0
        await self._command("write", lambda done: self._handle.aio_pwrite(data, offset, done, flags))

    async def flush(self) -> None:
        """Return when every write acknowledged before survives power loss."""
        await self._command("flush", lambda done: self._handle.aio_flush(done))  # noqa: PLW0108 - no handle if lost

    async def trim(self, offset: int, length: int) -> None:
        """Say that the range is not needed; it may read as zeros or as before."""
        await self._command("trim", lambda done: self._handle.aio_trim(length, offset, done))

    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving space back where the server can."""
        await self._command("zero", lambda done: self._handle.aio_zero(length, offset, done))

    async def zero_all(self, length: int | None = None) -> None:
        """Make the first ``length`` bytes (default: all) read as zeros, in commands that any server takes."""
        end = self.size if length is None else length
        for offset in range(0, end, ZERO_CHUNK_BYTES):
            await self.zero(offset, min(ZERO_CHUNK_BYTES, end - offset))

    async def read_all(self, length: int | None = None) -> bytes:
        """Read the first ``length`` bytes (default: all), in pieces that any server takes."""
        end = self.size if length is None else length
        pieces = [await self.read(at, min(READ_CHUNK_BYTES, end - at)) for at in range(0, end, READ_CHUNK_BYTES)]
        return b"".join(pieces)

    async def close(self) -> None:
        """Disconnect politely if that can be done at once; commands in flight end with ConnectionLost."""
        if self._lost is None:
            try:
                self._handle.aio_disconnect()
                if int(self._handle.aio_get_direction()) & nbd.AIO_DIRECTION_WRITE:
                    self._handle.aio_notify_write()
            except nbd.Error:
                pass  # it is gone already, which is what was wanted
            self._lose("closed by this host")

    async def _command(self, name: str, start: Callable[[Callable[[Any], int]], object]) -> None:
        """Start a command and wait for its end; ``start`` gets libnbd's completion callback."""
        if self._lost is not None:
            raise ConnectionLost(self.uri, self._lost.reason)
        future: asyncio.Future[None] = self._loop.create_future()

        def done(error: Any) -> int:
            # libnbd calls this from inside whichever of its functions saw the reply, always in the loop's thread.
            if not future.done():
                number = int(error.value)
                if number == 0:
                    future.set_result(None)
                elif number in (_ENOTCONN, _ESHUTDOWN):
                    future.set_exception(ConnectionLost(self.uri, f"{name} was not answered"))
                else:
                    future.set_exception(CommandFailed(self.uri, name, number))
            return 1  # libnbd may forget the command

        self._waiting.add(future)
        try:
            try:
                start(done)
            except nbd.Error as error:
                # Refused before it was sent, unless the connection turned out to be dead.
                if not future.done():
                    future.set_exception(CommandFailed(self.uri, name, error.errnum or 0, str(error.string)))
            self._after()
            await future
        finally:
            self._waiting.discard(future)

    def _readable(self) -> None:
        try:
            self._handle.aio_notify_read()
        except nbd.Error as error:
            self._lose(str(error.string))
        self._after()

    def _writable(self) -> None:
        try:
            self._handle.aio_notify_write()
        except nbd.Error as error:
            self._lose(str(error.string))
        self._after()

    def _after(self) -> None:
        """Bring the loop's interest in line with libnbd's state; needed after every call into libnbd."""
        if self._lost is not None:
            return
        if self._handle.aio_is_dead() or self._handle.aio_is_closed():
            self._lose("the server went away")
            return
        writing = bool(int(self._handle.aio_get_direction()) & nbd.AIO_DIRECTION_WRITE)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._watched, self._writable)
            else:
                self._loop.remove_writer(self._watched)

    def _lose(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = ConnectionLost(self.uri, reason)
        self._loop.remove_reader(self._watched)
        if self._writing:
            self._loop.remove_writer(self._watched)
        os.close(self._watched)
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionLost(self.uri, reason))
        self._handle = None  # libnbd closes its own descriptor with the handle


async def _handshake(handle: Any) -> None:
    """Drive libnbd from "connecting" to "ready" (or dead), without blocking the loop."""
    loop = asyncio.get_running_loop()
    while handle.aio_is_connecting():
        direction = int(handle.aio_get_direction())
        fd = int(handle.aio_get_fd())
        woken: asyncio.Future[None] = loop.create_future()

        def wake(woken: asyncio.Future[None] = woken) -> None:
            if not woken.done():
                woken.set_result(None)

        # Registered anew for each step: while it connects libnbd may go on to the next address with another descriptor.
        reading = bool(direction & nbd.AIO_DIRECTION_READ)
        if reading:
            loop.add_reader(fd, wake)
        if direction & nbd.AIO_DIRECTION_WRITE:
            loop.add_writer(fd, wake)
        try:
            await woken
        finally:
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        if reading:
            handle.aio_notify_read()
        else:
            handle.aio_notify_write()
