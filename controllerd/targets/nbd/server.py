"""NBD server: listeners, connections and their end.

Owns: sockets, the number of connections, the buffer pool, sessions shown on volumes,
counters per export, and an orderly stop.
Never: knows the protocol (negotiation.py, transmission.py) or a volume's content.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from typing import Final

from controllerd.model.errors import Conflict
from controllerd.targets.nbd.buffers import BufferPool
from controllerd.targets.nbd.connection import Session
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.handshake import HandshakeConnection
from controllerd.targets.nbd.negotiation import Agreed, Negotiation
from controllerd.targets.nbd.ports import ExportTable
from controllerd.targets.nbd.rounds import Rounds
from controllerd.targets.nbd.settings import Listen, NbdSettings, TcpListen, UnixListen
from controllerd.targets.nbd.transmission import Transmission

Report = Callable[[str, dict[str, object]], None]
"""Takes an event's name and facts, for the log."""

_TRIM_INTERVAL_S: Final = 10.0


class NbdServer:
    """The host port of one controller."""

    def __init__(
        self,
        exports: ExportTable,
        settings: NbdSettings,
        *,
        clock: Callable[[], int] | None = None,
        report: Report | None = None,
    ) -> None:
        """``clock`` gives wall time in ns (shown as the time a session was opened)."""
        self.settings = settings
        self.counters: dict[str, Counters] = {}
        """By export name; they outlive connections."""
        self.refused = 0
        """Connections closed because there were too many."""
        self.failed_handshakes = 0
        self.accepted = 0
        self._exports = exports
        self._clock = clock
        self._report = report
        self._chunks = BufferPool(settings.chunk_bytes_max)
        self._replies = BufferPool(settings.reply_bytes_max)
        self._listeners: list[asyncio.Server] = []
        self._paths: list[UnixListen] = []
        self._handshakes: set[HandshakeConnection] = set()
        self._sessions: set[Session] = set()
        self._stopping = False
        self.rounds = Rounds(_call_soon)
        self._idle = asyncio.Event()
        self._trimmer: asyncio.TimerHandle | None = None

    # ---- life --------------------------------------------------------------------

    async def start(self) -> None:
        """Listen on every address.

        Raises:
            Conflict: an address cannot be listened on; none is then.
        """
        self._idle.set()
        for listen in self.settings.listen:
            try:
                self._listeners.append(await self._listen(listen))
            except OSError as error:
                await self.stop()
                raise Conflict(f"nbd: cannot listen on {listen}: {error.strerror or error}") from error
        self._schedule_trim()

    async def stop(self) -> None:
        """Stop listening, answer what is under way (for at most ``shutdown_grace_s``), close everything."""
        self._stopping = True
        for server in self._listeners:
            server.close()
        self._listeners.clear()
        for listen in self._paths:
            if os.path.exists(listen.path):
                os.unlink(listen.path)
        self._paths.clear()
        if self._trimmer is not None:
            self._trimmer.cancel()
        for handshake in list(self._handshakes):
            handshake.fail("server is stopping")
        for session in list(self._sessions):
            session.shut_down()
        if not await self._idle_within(self.settings.shutdown_grace_s):
            for session in list(self._sessions):
                session.abort("server is stopping")
            await self._idle_within(1.0)

    def addresses(self) -> list[str]:
        """Where clients can connect, as ``host:port`` or ``unix:/path``, with the real ports."""
        found = [str(listen) for listen in self._paths]
        for server in self._listeners:
            for sock in server.sockets:
                if sock.family != socket.AF_UNIX:
                    host, port = sock.getsockname()[:2]
                    found.append(str(TcpListen(host, port)))
        return found

    @property
    def connections(self) -> int:
        """Connections now, those in their handshake included."""
        return len(self._handshakes) + len(self._sessions)

    @property
    def sessions(self) -> frozenset[Session]:
        """Sessions now."""
        return frozenset(self._sessions)

    # ---- what connections call ------------------------------------------------------

    def begin(self, connection: HandshakeConnection) -> Negotiation | None:
        """Admit a connection, unless there are too many or the server is stopping."""
        self.accepted += 1
        if self._stopping or self.connections >= self.settings.max_connections:
            self.refused += 1
            self._tell("nbd-connection-refused", limit=self.settings.max_connections)
            return None
        self._handshakes.add(connection)
        self._idle.clear()
        settings = self.settings
        return Negotiation(
            self._exports, settings.limits, default_export=settings.default_export, tls=settings.tls.mode
        )

    def end(self, connection: HandshakeConnection, reason: str) -> None:
        """Forget a connection that has not reached transmission."""
        self._handshakes.discard(connection)
        if reason:
            self.failed_handshakes += 1
            self._tell("nbd-handshake-failed", peer=_peer(connection.transport), reason=reason)
        self._check_idle()

    def agreed(self, connection: HandshakeConnection, agreed: Agreed, unread: bytes) -> None:
        """Open a session on the connection's transport."""
        transport = connection.transport
        assert transport is not None
        volume = agreed.volume
        session = Session(self, transport, _peer(transport), 0 if self._clock is None else self._clock())
        counters = self.counters.setdefault(volume.name, Counters())
        counters.connections += 1
        machine = Transmission(
            volume,
            framing=agreed.framing,
            contexts=agreed.contexts,
            limits=self.settings.limits,
            chunks=self._chunks,
            replies=self._replies,
            counters=counters,
            wake=session.wake,
            initial=unread,
        )
        self._tune(transport)
        self._sessions.add(session)
        self.rounds.sessions = len(self._sessions)
        self._handshakes.discard(connection)
        volume.sessions.add(session)
        self._tell("nbd-session-opened", peer=session.peer, volume=volume.name, read_only=not volume.writable)
        session.start(machine)

    def ended(self, session: Session, reason: str) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        self.rounds.sessions = len(self._sessions)
        name = session.machine.volume.name
        self.counters[name].connections -= 1
        self._tell("nbd-session-closed", peer=session.peer, volume=name, reason=reason)
        self._check_idle()

    # ---- inside ------------------------------------------------------------------------

    def _tune(self, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        if isinstance(transport.get_extra_info("peername"), tuple):
            # A client machine that vanished must not hold its session for ever.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        elif self.settings.unix_send_buffer_bytes:
            # The kernel's default holds two reads of 128 KiB. (TCP sizes its buffers itself.)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.settings.unix_send_buffer_bytes)

    async def _listen(self, listen: Listen) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        backlog = self.settings.backlog
        if isinstance(listen, TcpListen):
            return await loop.create_server(self._accept, listen.host, listen.port, backlog=backlog)
        _remove_stale_socket(listen.path)
        server = await loop.create_unix_server(self._accept, listen.path, backlog=backlog)
        os.chmod(listen.path, listen.mode)
        self._paths.append(listen)
        return server

    def _accept(self) -> HandshakeConnection:
        return HandshakeConnection(self)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _check_idle(self) -> None:
        if not self.connections:
            self._idle.set()

    def _schedule_trim(self) -> None:
        self._chunks.trim()
        self._replies.trim()
        self._trimmer = asyncio.get_running_loop().call_later(_TRIM_INTERVAL_S, self._schedule_trim)

    def _tell(self, event: str, **facts: object) -> None:
        if self._report is not None:
            self._report(event, facts)


def _call_soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


def _peer(transport: asyncio.BaseTransport | None) -> str:
    address = None if transport is None else transport.get_extra_info("peername")
    if isinstance(address, tuple):
        return str(TcpListen(address[0], address[1]))
    return "unix"


def _remove_stale_socket(path: str) -> None:
    """Remove a socket file that nobody listens on.

    Raises:
        OSError: something listens there, or it is not a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(17, "exists and is not a socket", path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(98, "another process listens there")
