"""NBD server: listeners, connections and their end.

Owns: sockets, who is admitted, the TLS context, the buffer pools, sessions shown on volumes, counters per export, the
end of idle sessions, and an orderly stop.
Never: knows the protocol (negotiation.py, transmission.py) or a volume's content.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

from controllerd.model.errors import Conflict
from controllerd.sockets import bind_unix, remove_unix
from controllerd.storage.buffers import BufferPool
from controllerd.targets.nbd.admission import Admission
from controllerd.targets.nbd.clients import ClientExports, Visitor, identify
from controllerd.targets.nbd.connection import Session
from controllerd.targets.nbd.counters import Counters
from controllerd.targets.nbd.event_limit import EventLimit
from controllerd.targets.nbd.handshake import HandshakeConnection
from controllerd.targets.nbd.negotiation import Agreed, Negotiation
from controllerd.targets.nbd.poll import Poll
from controllerd.targets.nbd.ports import ExportTable
from controllerd.targets.nbd.rounds import Rounds
from controllerd.targets.nbd.settings import Listen, NbdSettings, TcpListen, UnixListen
from controllerd.targets.nbd.tls import make_context
from controllerd.targets.nbd.transmission import Transmission

Report = Callable[[str, dict[str, object]], None]
"""Takes an event's name and facts, for the log."""

_TRIM_INTERVAL_S: Final = 10.0
_IDLE_CHECKS: Final = 4
"""Looks at a session in one idle time-out."""
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 8))
"""A client machine that vanished without a word is noticed after 3 minutes; the kernel's default is over 2 hours."""


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
        self.admission = Admission(settings.max_connections, settings.max_connections_per_address)
        self.failed_handshakes = 0
        self.idle_closed = 0
        """Sessions closed because their client was idle."""
        self.tls_context: ssl.SSLContext | None = None
        self._ended: dict[str, Counters] = {}
        """What the sessions that are gone have counted, by export name."""
        self._exports = exports
        self._clock = clock
        self._report = report
        self._chunks = settings.chunks
        self._replies = BufferPool(settings.reply_bytes_max)
        self._listeners: list[asyncio.Server] = []
        self._paths: list[UnixListen] = []
        self._handshakes: dict[HandshakeConnection, None] = {}
        """Connections that have not chosen an export yet, oldest first."""
        self._sessions: set[Session] = set()
        self._stopping = False
        self.rounds = Rounds(_call_soon)
        self.poll = Poll(settings.poll_s, _call_soon)
        self._idle = asyncio.Event()
        self._trimmer: asyncio.TimerHandle | None = None
        self._idle_checker: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._strangers = EventLimit(time.monotonic)

    # ---- life --------------------------------------------------------------------

    async def start(self) -> None:
        """Listen on every address.

        Raises:
            Conflict: an address cannot be listened on, or a TLS file cannot be used; nothing listens then.
        """
        self.tls_context = make_context(self.settings.tls)
        self._idle.set()
        for listen in self.settings.listen:
            try:
                self._listeners.append(await self._listen(listen))
            except OSError as error:
                await self.stop()
                raise Conflict(f"nbd: cannot listen on {listen}: {error.strerror or error}") from error
        self._schedule_trim()
        if self.settings.idle_timeout_s:
            self._check_idle_sessions()

    def reload_tls(self) -> None:
        """Take certificate, key and CA as they are on disk now; if they cannot be used, what was there stays.

        Sessions go on as they are.
        """
        try:
            self.tls_context = make_context(self.settings.tls)
        except Conflict as error:
            self._tell("nbd-tls-reload-failed", error=str(error))
        else:
            self._tell("nbd-tls-reloaded", mode=self.settings.tls.mode)

    async def stop(self) -> None:
        """Stop listening, answer what is under way (for at most ``shutdown_grace_s``), close everything."""
        self._stopping = True
        for server in self._listeners:
            server.close()
        self._listeners.clear()
        for listen in self._paths:
            remove_unix(listen.path)
        self._paths.clear()
        for timer in (self._trimmer, self._idle_checker):
            if timer is not None:
                timer.cancel()
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
        return self.admission.connections

    @property
    def sessions(self) -> frozenset[Session]:
        """Sessions now."""
        return frozenset(self._sessions)

    def counters(self) -> dict[str, Counters]:
        """Return what all sessions since the start have counted, by export name."""
        totals: dict[str, Counters] = {}
        for name, counters in self._ended.items():
            totals.setdefault(name, Counters()).add(counters)
        for session in self._sessions:
            totals.setdefault(session.machine.volume.name, Counters()).add(session.machine.counters)
        return totals

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of memory by what holds it: connected sessions, and buffers that are kept for reuse.

        The write cache and the journal's tail keep views of the buffers under "receive-buffers".
        """
        return {
            "sessions": sum(session.memory for session in self._sessions),
            "receive-buffers": self._chunks.held,
            "reply-buffers": self._replies.held,
        }

    # ---- what connections call ------------------------------------------------------

    def begin(self, connection: HandshakeConnection) -> Negotiation | None:
        """Admit a connection, unless there are too many or the server is stopping."""
        admission, transport = self.admission, connection.transport
        assert transport is not None
        admission.accepted += 1
        try:
            client = identify(transport)
        except ValueError:
            admission.refused["gone"] += 1
            return None
        reason = "stopping" if self._stopping else admission.admit(client.address)
        if reason == "limit" and self._make_room():
            reason = admission.admit(client.address)
        if reason:
            admission.refused[reason] += 1
            self._tell_of_stranger("nbd-connection-refused", peer=_peer(transport), reason=reason)
            return None
        connection.exports = ClientExports(self._exports, client)
        self._handshakes[connection] = None
        self._idle.clear()
        settings = self.settings
        return Negotiation(
            connection.exports, settings.limits, default_export=settings.default_export, tls=settings.tls.mode
        )

    def end(self, connection: HandshakeConnection, reason: str) -> None:
        """Forget a connection that has not reached transmission."""
        if connection in self._handshakes:  # else its place was given away
            del self._handshakes[connection]
            self.admission.leave(connection.exports.client.address)
        if reason:
            self.failed_handshakes += 1
            self._tell_of_stranger("nbd-handshake-failed", peer=_peer(connection.transport), reason=reason)
        self._check_idle()

    def agreed(self, connection: HandshakeConnection, agreed: Agreed, unread: bytes) -> None:
        """Open a session on the connection's transport."""
        transport = connection.transport
        assert transport is not None
        volume = agreed.volume
        secured = transport.get_extra_info("ssl_object")
        visitor = Visitor(
            next(self._numbers),
            _peer(transport),
            connection.exports.client,
            None if secured is None else secured.version(),
            0 if self._clock is None else self._clock(),
        )
        session = Session(self, transport, visitor)
        machine = Transmission(
            volume,
            framing=agreed.framing,
            contexts=agreed.contexts,
            limits=self.settings.limits,
            chunks=self._chunks,
            replies=self._replies,
            counters=Counters(),
            wake=session.wake,
            initial=unread,
        )
        self._tune(transport)
        self._sessions.add(session)
        self.rounds.sessions = len(self._sessions)
        del self._handshakes[connection]
        volume.sessions.add(session)
        self._tell(
            "nbd-session-opened",
            peer=visitor.peer,
            volume=volume.name,
            read_only=not volume.writable,
            tls=visitor.tls,
            certificate=sorted(visitor.client.names),
        )
        session.start(machine)

    def ended(self, session: Session, reason: str) -> None:
        """Forget a session."""
        self._sessions.discard(session)
        self.rounds.sessions = len(self._sessions)
        self.admission.leave(session.visitor.client.address)
        name = session.machine.volume.name
        self._ended.setdefault(name, Counters()).add(session.machine.counters)
        self._tell("nbd-session-closed", peer=session.visitor.peer, volume=name, reason=reason)
        self._check_idle()

    def _make_room(self) -> bool:
        """Close the oldest connection that has not chosen an export; returns whether there was one.

        So whoever only opens connections cannot keep hosts out: an honest handshake takes a few milliseconds.
        """
        oldest = next(iter(self._handshakes), None)
        if oldest is None:
            return False
        del self._handshakes[oldest]
        self.admission.leave(oldest.exports.client.address)
        oldest.fail("the port is full, and a newer connection took its place")
        return True

    # ---- inside ------------------------------------------------------------------------

    def _tune(self, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        if isinstance(transport.get_extra_info("peername"), tuple):
            # A client machine that vanished must not hold its session for ever.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        elif self.settings.unix_send_buffer_bytes:
            # The kernel's default holds two reads of 128 KiB. (TCP sizes its buffers itself.)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.settings.unix_send_buffer_bytes)

    async def _listen(self, listen: Listen) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        backlog = self.settings.backlog
        if isinstance(listen, TcpListen):
            return await loop.create_server(self._accept, listen.host, listen.port, backlog=backlog)
        listener = bind_unix(listen.path, listen.mode)
        self._paths.append(listen)
        return await loop.create_unix_server(self._accept, sock=listener, backlog=backlog)

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

    def _check_idle_sessions(self) -> None:
        limit_s = self.settings.idle_timeout_s
        for session in list(self._sessions):
            if session.idle_s() >= limit_s:
                self.idle_closed += 1
                session.abort(f"idle for {limit_s:g} s")
        self._idle_checker = asyncio.get_running_loop().call_later(limit_s / _IDLE_CHECKS, self._check_idle_sessions)

    def _tell_of_stranger(self, event: str, **facts: object) -> None:
        passes, suppressed = self._strangers.passes()
        if suppressed:
            self._tell("nbd-events-suppressed", events=suppressed)
        if passes:
            self._tell(event, **facts)

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
