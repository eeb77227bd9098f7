"""Connection in its handshake phase: the adapter between a transport and `Negotiation`.

Owns: reading, sending, the time-out of the handshake, the start of TLS, and handing the
transport over to the transmission phase.
Never: knows an option or a reply.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Protocol, cast

from controllerd.targets.nbd.clients import ClientExports, identify
from controllerd.targets.nbd.negotiation import Agreed, Negotiation, State
from controllerd.targets.nbd.settings import NbdSettings

_BUFFER: Final = 16 << 10
"""Bytes taken at once; with the longest option that is looked at, this bounds the memory of a handshake."""


class HandshakeOwner(Protocol):
    """What the server does for a connection in its handshake."""

    @property
    def settings(self) -> NbdSettings:
        """The server's settings."""

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """What a client that starts TLS now gets."""

    def begin(self, connection: HandshakeConnection) -> Negotiation | None:
        """Count a new connection and set its ``exports``; None: it is refused."""

    def end(self, connection: HandshakeConnection, reason: str) -> None:
        """Forget the connection; ``reason`` is empty if nothing was wrong."""

    def agreed(self, connection: HandshakeConnection, agreed: Agreed, unread: bytes) -> None:
        """Take the transport over for the transmission phase."""


class HandshakeConnection(asyncio.BufferedProtocol):
    """One client that has not chosen its export yet."""

    def __init__(self, owner: HandshakeOwner) -> None:
        self.transport: asyncio.Transport | None = None
        self.exports: ClientExports
        """What this connection's client sees; there once the connection was admitted."""
        self._owner = owner
        self._negotiation: Negotiation | None = None
        self._buffer = bytearray(_BUFFER)
        self._timeout: asyncio.TimerHandle | None = None
        self._tls_task: asyncio.Task[None] | None = None
        self._paused = False
        self._reason = ""

    # ---- asyncio calls these ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting and start the time-out."""
        self.transport = cast(asyncio.Transport, transport)
        self._negotiation = self._owner.begin(self)
        if self._negotiation is None:
            self.transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(self._owner.settings.handshake_timeout_s, self.fail, "handshake took too long")
        self._advance()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to receive."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        if self._negotiation is not None:
            self._negotiation.feed_untrusted(memoryview(self._buffer)[:nbytes])
            self._advance()

    def pause_writing(self) -> None:
        """The client does not read its replies: handle nothing more until it does."""
        self._paused = True
        self._reading(wanted=False)

    def resume_writing(self) -> None:
        """Go on after `pause_writing`."""
        self._paused = False
        self._reading(wanted=True)
        self._advance()

    def eof_received(self) -> bool:
        """A client that stops sending before it has chosen an export is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        negotiation, self._negotiation = self._negotiation, None
        self._stop_timers()
        if negotiation is not None:
            self._owner.end(self, self._reason or negotiation.reason or ("" if exc is None else str(exc)))
        self.transport = None  # see Session.connection_lost

    # ---- inside -------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Close at once."""
        self._reason = self._reason or reason
        if self.transport is not None:
            self.transport.abort()

    def _stop_timers(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if self._tls_task is not None:
            self._tls_task.cancel()

    def _reading(self, *, wanted: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing() or transport.is_reading() == wanted:
            return
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _advance(self) -> None:
        negotiation, transport = self._negotiation, self.transport
        if negotiation is None or transport is None or transport.is_closing():
            return
        more = True
        while more and not self._paused:
            more = negotiation.step()
            output = negotiation.take_output()
            if output:
                transport.write(output)
        if negotiation.state is State.CLOSED:
            # The time-out still runs: a client that does not take its last reply is cut off by it.
            transport.close()
        elif negotiation.state is State.STARTTLS and self._tls_task is None:
            self._reading(wanted=False)
            self._tls_task = asyncio.get_running_loop().create_task(self._start_tls(transport))
        elif negotiation.state is State.DONE and negotiation.result is not None:
            unread = negotiation.take_input()
            self._negotiation = None
            self._stop_timers()
            self._owner.agreed(self, negotiation.result, unread)
            self.transport = None

    async def _start_tls(self, transport: asyncio.Transport) -> None:
        context = self._owner.tls_context
        assert context is not None
        loop = asyncio.get_running_loop()
        limit_s = self._owner.settings.handshake_timeout_s
        try:
            secured = await loop.start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=limit_s, ssl_shutdown_timeout=limit_s
            )
            # A connection that is closed from this side meanwhile counts as a success there.
            if self._reason or secured is None or secured.get_extra_info("ssl_object") is None:
                raise ConnectionAbortedError("connection lost")
            self.exports.client = identify(secured)
        except (OSError, EOFError, ValueError) as error:  # ssl.SSLError is an OSError
            self._tls_task = None
            self.fail(f"TLS failed: {error}")
            self.connection_lost(None)  # the transport knows the TLS layer as its protocol, and tells only that
            return
        self._tls_task = None
        if self._negotiation is None:
            transport.abort()
            return
        self.transport = secured
        self._negotiation.tls_started()
        self._advance()
