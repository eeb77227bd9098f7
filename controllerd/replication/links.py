"""Transfer connections: the asyncio adapter of the frame and handshake machines.

Owns: sockets, the handshake's time limit, write back-pressure, and how many
connections may be open.
Never: knows of pairs or records. What arrives goes to `Link.on_frames` in batches: one
call for everything that one read brought, no task and no future per frame.

Before the peer has proved who it is nothing it sends has any effect (I17, F40).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from typing_extensions import Buffer

from controllerd.model.errors import NotAuthorised, RemoteCopyError, Unreachable
from controllerd.replication.auth import Handshake, Peer
from controllerd.replication.backoff import Backoff
from controllerd.replication.frames import Frame, FrameError, FrameReader
from controllerd.replication.settings import ReplicationSettings
from controllerd.sockets import bind_unix, remove_unix
from controllerd.storage.buffers import BufferPool

WRITE_HIGH_BYTES: Final = 2 << 20
"""Bytes in a connection's send buffer above which nothing more is handed to it."""

STRANGERS_MAX: Final = 64
"""Addresses of which it is remembered what was told of them."""

SOCKET_MODE: Final = 0o600
"""Permission bits of a UNIX socket for peers."""

LINGER_S: Final = 2.0
"""Longest time that what was sent before a close may take to leave."""


class Link(asyncio.BufferedProtocol):
    """One connection to a peer controller.

    Attributes:
        peer: who it is; set when `ready`.
        address: the other end's host address; "unix socket" if it has none.
        heard_s: loop time at which something last arrived.
        writable: false while the send buffer is full; `on_writable` is called when it is not.
        on_frames, on_lost, on_writable: set by who takes the link over. ``on_lost`` is called once.
    """

    def __init__(
        self,
        handshake: Handshake,
        loop: asyncio.AbstractEventLoop,
        chunks: BufferPool,
        acceptor: Acceptor | None = None,
    ) -> None:
        self.peer: Peer | None = None
        self.address = ""
        self.writable = True
        self.closed = False
        self.heard_s = loop.time()
        self.on_frames: Callable[[Link, list[Frame]], None] = _ignore_frames
        self.on_lost: Callable[[Link, str], None] = _ignore_loss
        self.on_writable: Callable[[], None] = _nothing
        self.ready: asyncio.Future[Peer] = loop.create_future()
        self.reason = "closed by the peer"
        self._loop = loop
        self._acceptor = acceptor
        self._handshake: Handshake | None = handshake
        self._reader = FrameReader(chunks)
        self._transport: asyncio.Transport | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._unproved: NotAuthorised | None = None

    # ---- asyncio -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports only look like asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.address = _host(transport.get_extra_info("peername"))
        if self._acceptor is not None:
            self._acceptor.link_made(self)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        assert self._handshake is not None
        first = self._handshake.begin()
        if first:
            self._transport.write(first)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.closed:
            return
        self.heard_s = self._loop.time()
        try:
            frames = self._reader.received(nbytes)
            if frames and self._handshake is not None:
                frames = self._shake_hands(frames)
            if frames:
                self.on_frames(self, frames)
        except (FrameError, RemoteCopyError) as error:
            if isinstance(error, NotAuthorised):
                self._unproved = error
            self.abort(str(error))
        except Exception as error:
            # A mistake of ours must cost this connection and nothing else; the loop's handler logs it.
            self.abort(f"internal error: {error!r}")
            raise

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.on_writable()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.closed:
            self.reason = str(exc) or repr(exc)
        elif not self.closed and self._handshake is not None and self._handshake.proof_given:
            self._unproved = NotAuthorised("it closed the connection at our proof: its shared key is another one")
            self.reason = str(self._unproved)
        self.closed = True
        self._transport = None
        self._reader.close()
        if self._linger is not None:
            self._linger.cancel()
        if not self.ready.done():
            self.ready.set_exception(self._unproved or Unreachable(self.reason))
            self.ready.exception()  # looked at, so that nobody has to wait for it
        if self._acceptor is not None:
            self._acceptor.link_lost(self)
        on_lost, self.on_lost = self.on_lost, _ignore_loss
        on_lost(self, self.reason)

    def _shake_hands(self, frames: list[Frame]) -> list[Frame]:
        handshake = self._handshake
        assert handshake is not None
        for frame in frames:
            answer = handshake.receive(frame)
            if answer and self._transport is not None:
                self._transport.write(answer)
        if handshake.peer is not None:
            self._check_certificate(handshake.peer)
            self._handshake = None
            self._reader.trust()
            self.peer = handshake.peer
            if not self.ready.done():
                self.ready.set_result(handshake.peer)
        return []

    def _check_certificate(self, peer: Peer) -> None:
        """Without a shared key the certificate, which the context has verified, must name the controller."""
        if peer.proved or self._transport is None:
            return
        certificate: dict[str, Any] = self._transport.get_extra_info("peercert") or {}
        names = {value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"}
        names |= {value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"}
        if peer.controller not in names:
            raise NotAuthorised(f"the peer says it is {peer.controller!r}, its certificate is for {sorted(names)}")

    @property
    def claimed(self) -> str:
        """Which controller the other end says it is, while it has not proved it; "" if it has said nothing."""
        return self._handshake.claimed if self._handshake is not None else ""

    @property
    def unproved(self) -> NotAuthorised | None:
        """Why the other end is not who it says it is, if that is why the connection ended."""
        return self._unproved

    # ---- for who uses the link ------------------------------------------------

    @property
    def damaged(self) -> bool:
        """Whether the connection ended because what came is not made of valid frames."""
        return self._reader.damaged

    def send(self, frame: bytes) -> None:
        """Send one frame; nothing happens when the connection is gone."""
        if self._transport is not None and not self.closed:
            self._transport.write(frame)

    def send_many(self, buffers: Sequence[Buffer]) -> None:
        """Send buffers back to back without joining them; they must not change afterwards."""
        if self._transport is not None and not self.closed:
            self._transport.writelines(buffers)  # type: ignore[arg-type]  # any buffer will do

    def close(self, reason: str) -> None:
        """Close when everything sent has left."""
        if not self.closed:
            self.closed = True
            self.reason = reason
            if self._transport is not None:
                self._transport.close()
                # A peer that reads no more must not keep the socket.
                self._linger = self._loop.call_later(LINGER_S, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Close at once."""
        if not self.closed:
            self.closed = True
            self.reason = reason
        if self._transport is not None:
            self._transport.abort()


def _host(peername: object) -> str:
    return str(peername[0]) if isinstance(peername, tuple) else "unix socket"


def _ignore_frames(link: Link, frames: list[Frame]) -> None:
    raise FrameError("a frame came before this side was ready for it")


def _ignore_loss(link: Link, reason: str) -> None:
    return None


def _nothing() -> None:
    return None


def _handshake(settings: ReplicationSettings, *, dialler: bool) -> Handshake:
    return Handshake(
        dialler=dialler,
        controller=settings.controller,
        serial=settings.serial,
        key=settings.shared_key,
        nonce=settings.nonce(),
    )


async def dial(settings: ReplicationSettings, peer: str) -> Link:
    """Connect to the transfer port of ``peer`` and return the link when both sides have proved who they are.

    Raises:
        Unreachable: no connection, no answer in time, or the peer closed it.
        NotAuthorised: the other end is not the controller that was meant.
    """
    target = settings.peers.get(peer)
    if target is None:
        raise Unreachable(f"no peer named {peer} is configured")
    loop = asyncio.get_running_loop()
    link = Link(_handshake(settings, dialler=True), loop, settings.chunks)
    tls = settings.client_tls
    name = peer if tls is not None else None
    endpoint = target.endpoint
    try:
        async with asyncio.timeout(settings.handshake_timeout_s):
            if endpoint.path is not None:
                await loop.create_unix_connection(lambda: link, endpoint.path, ssl=tls, server_hostname=name)
            else:
                await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=tls, server_hostname=name)
            found = await link.ready
    except TimeoutError:
        link.abort("no answer in time")
        raise Unreachable(f"{peer} at {endpoint} did not answer in {settings.handshake_timeout_s:g} s") from None
    except OSError as error:
        link.abort(str(error))
        raise Unreachable(f"{peer} at {endpoint}: {error.strerror or error}") from error
    except (Unreachable, NotAuthorised) as error:
        link.abort(str(error))
        raise type(error)(f"{peer} at {endpoint}: {error}") from error
    except BaseException:
        link.abort("given up")
        raise
    if found.controller != peer or target.serial not in (None, found.serial):
        link.abort("another controller")
        raise NotAuthorised(
            f"{endpoint} is controller {found.controller!r} serial {found.serial},"
            f" not {peer!r} serial {target.serial if target.serial is not None else 'any'}"
        )
    return link


async def ask(settings: ReplicationSettings, peer: str, question: bytes) -> Frame:
    """Connect to the transfer port of ``peer``, send one frame, and return the frame that answers it.

    Raises:
        Unreachable, NotAuthorised: the peer cannot be asked.
        FrameError: it does not answer in time, or closes the connection instead.
    """
    link = await dial(settings, peer)
    answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def frames(link: Link, frames: list[Frame]) -> None:
        if not answer.done():
            answer.set_result(frames[0])

    def lost(link: Link, reason: str) -> None:
        if not answer.done():
            answer.set_exception(FrameError(reason))

    link.on_frames, link.on_lost = frames, lost
    if link.closed:  # lost in the turn between the handshake and now
        raise FrameError(link.reason)
    link.send(question)
    try:
        async with asyncio.timeout(settings.handshake_timeout_s):
            return await answer
    except TimeoutError:
        raise FrameError(f"{peer} did not answer") from None
    finally:
        link.close("asked")


async def tell(
    settings: ReplicationSettings, peer: str, order: bytes, rng: random.Random, heard: Callable[[Frame], bool]
) -> None:
    """Send an order to ``peer`` at growing intervals until ``heard`` says of an answer that it is the last.

    What fails is tried again: the peer may be away for long, and ``heard`` may not be able to keep what it learnt.
    """
    backoff = Backoff(settings.backoff_min_s, settings.fence_backoff_max_s, rng)
    while True:
        try:
            if heard(await ask(settings, peer, order)):
                return
        except (RemoteCopyError, FrameError):
            pass
        await asyncio.sleep(backoff.next_s())


class Acceptor:
    """Listens on the transfer port. ``on_request`` gets each link with its first frame: PULL, FENCE or FAREWELL.

    ``on_unproved`` is told (address, controller it says it is, reason) of who failed to prove who it is: once per
    address until somebody from there succeeds, and of so many addresses at the most (strangers must not fill a log).
    """

    def __init__(
        self,
        settings: ReplicationSettings,
        on_request: Callable[[Link, Frame], None],
        on_unproved: Callable[[str, str, str], None],
    ) -> None:
        self._settings = settings
        self._on_request = on_request
        self._on_unproved = on_unproved
        self._strangers: dict[str, str] = {}
        self._server: asyncio.Server | None = None
        self._links: dict[Link, asyncio.TimerHandle] = {}
        self.refused = 0
        """Connections closed because there were too many, or that did not prove who they are in time."""

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the address cannot be listened on; the text names the configuration key.
        """
        endpoint = self._settings.listen
        if endpoint is None:
            return
        loop = asyncio.get_running_loop()
        tls = self._settings.server_tls
        limit = self._settings.handshake_timeout_s if tls is not None else None
        try:
            if endpoint.path is not None:
                listener = bind_unix(endpoint.path, SOCKET_MODE)
                self._server = await loop.create_unix_server(
                    self._make_link, sock=listener, ssl=tls, ssl_handshake_timeout=limit
                )
            else:
                self._server = await loop.create_server(
                    self._make_link, endpoint.host, endpoint.port, ssl=tls, ssl_handshake_timeout=limit
                )
        except OSError as error:
            raise OSError(error.errno, f"replication.listen: {endpoint}: {error.strerror or error}") from None

    @property
    def port(self) -> int:
        """The TCP port listened on, 0 if none."""
        if self._server is None or not self._server.sockets or self._settings.listen is None:
            return 0
        return 0 if self._settings.listen.path is not None else int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more and close every link."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if self._settings.listen is not None and self._settings.listen.path is not None:
            remove_unix(self._settings.listen.path)
        # Connections that the loop has accepted and not yet handed on come in the next turns, and are refused.
        for _ in range(4):
            for link in list(self._links):
                link.abort("this controller stops")
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server.wait_closed()

    def _make_link(self) -> Link:
        settings = self._settings
        link = Link(_handshake(settings, dialler=False), asyncio.get_running_loop(), settings.chunks, self)
        link.on_frames = self._first_frames
        return link

    def link_made(self, link: Link) -> None:
        """A connection stands; it has to make its request in time."""
        loop = asyncio.get_running_loop()
        if len(self._links) >= self._settings.connections_max or self._server is None:
            self.refused += 1
            loop.call_soon(link.abort, "too many connections")
            return
        self._links[link] = loop.call_later(self._settings.handshake_timeout_s, self._too_late, link)

    def link_lost(self, link: Link) -> None:
        """A connection is gone, whoever had taken it over."""
        timer = self._links.pop(link, None)
        if timer is not None:
            timer.cancel()
            if link.peer is None:
                self.refused += 1
            if link.unproved is not None:
                self._tell(link.address, link.claimed, str(link.unproved))

    def _tell(self, address: str, claimed: str, reason: str) -> None:
        told = f"{claimed}: {reason}"
        if self._strangers.get(address) == told:
            return
        if address in self._strangers or len(self._strangers) < STRANGERS_MAX:
            self._strangers[address] = told
            self._on_unproved(address, claimed, reason)

    def _first_frames(self, link: Link, frames: list[Frame]) -> None:
        self._links[link].cancel()
        self._strangers.pop(link.address, None)
        link.on_frames = _ignore_frames
        self._on_request(link, frames[0])
        if len(frames) > 1:
            link.on_frames(link, frames[1:])

    @staticmethod
    def _too_late(link: Link) -> None:
        link.abort("handshake not done in time")
