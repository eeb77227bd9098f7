"""The management port: uvicorn inside the daemon's own loop.

Owns: the listening socket, limits on connections, and start and stop.
Never: installs signal handlers, ends the process, or knows a route.

What a reader would get wrong: uvicorn bounds how long an idle connection lives, not how long a request line and its
headers may take, or the client to read the answer; ``_BoundedHttp`` does, else a slow client holds a connection for
ever (invariant I17, fault F37).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from controllerd.sockets import bind_unix, remove_unix

HEADER_BYTES_MAX: Final = 16 << 10
HEADER_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Where to listen (``host`` and ``port``, or ``path`` of a UNIX socket) and the limits; times in seconds."""

    host: str = "127.0.0.1"
    port: int = 0
    path: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keep_alive_timeout_s: int = 30
    max_connections: int = 64
    shutdown_grace_s: int = 10


class _BoundedHttp(H11Protocol):
    """uvicorn's HTTP/1.1 with time limits for a request to arrive and an answer to leave, and a cap on connections.

    At the cap a new connection takes the place of the one that has been silent longest, so
    that whoever only opens connections, or takes no answers, cannot keep the administrator out.
    """

    _deadline: asyncio.TimerHandle | None = None
    _leaving: asyncio.TimerHandle | None = None
    _quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # `pause_writing` tells of the first bytes that do not leave. With 0 TLS would pause when nothing is to be sent.
        transport.set_write_buffer_limits(high=1, low=0)
        limit = self.config.limit_concurrency
        if limit is not None and len(self.connections) >= limit:
            self._take_place()
            if len(self.connections) > 2 * limit:
                transport.abort()  # beyond the answer 503: not even a header is read
                return
        self._watch()

    def _take_place(self) -> None:
        """Close the connection that has been without a request for longest, if there is one."""
        others = cast("set[_BoundedHttp]", self.connections)
        quiet = [other for other in others if other is not self and other.quiet]
        if quiet:
            oldest = min(quiet, key=lambda other: other._quiet_since)
            others.discard(oldest)
            oldest.transport.abort()

    @property
    def quiet(self) -> bool:
        """Whether a request is still to arrive, or an answer to be taken."""
        timers = self._deadline, self._leaving, self.timeout_keep_alive_task
        return any(timer is not None for timer in timers)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._quiet_since = self.loop.time()
        self._leaving = self.loop.call_later(ANSWER_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._all_left()

    def _all_left(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._all_left()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the clock exactly while a request is still to arrive."""
        cycle: RequestResponseCycle | None = self.cycle
        if self.transport.is_closing() or (cycle is not None and not cycle.response_complete):
            self._stop_watching()
        elif self._deadline is None and self.timeout_keep_alive_task is None:
            self._quiet_since = self.loop.time()
            self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _EmbeddedServer(uvicorn.Server):
    """A server whose end is decided by the daemon alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServer:
    """The management port of one controller."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._settings = settings
        self._app = app
        self._server: _EmbeddedServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._bound = ""

    @property
    def address(self) -> str:
        """Where it listens, with the port really used: ``http://127.0.0.1:9711`` or ``unix:/path``."""
        return self._bound

    async def start(self) -> None:
        """Listen and serve in the running loop.

        Raises OSError when the address cannot be used, with the address in its text.
        """
        listener = self._bind()
        settings = self._settings
        server = _EmbeddedServer(
            uvicorn.Config(
                cast(Any, self._app),
                loop="none",
                http=_BoundedHttp,
                ws="none",
                lifespan="on",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=settings.keep_alive_timeout_s,
                timeout_graceful_shutdown=settings.shutdown_grace_s,
                h11_max_incomplete_event_size=HEADER_BYTES_MAX,
                ssl_certfile=settings.certificate,
                ssl_keyfile=settings.key,
            )
        )
        self._server = server
        self._task = asyncio.create_task(server.serve(sockets=[listener]), name="management-api")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({self._task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            listening.cancel()
            listener.close()
            self._task.result()

    async def stop(self) -> None:
        """Answer the requests under way (for at most ``shutdown_grace_s``), then close. Idempotent."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._server = self._task = None
        if self._settings.path is not None:
            remove_unix(str(self._settings.path))

    def _bind(self) -> socket.socket:
        settings = self._settings
        if settings.path is not None:
            return self._bind_unix(settings.path)
        scheme = "https" if settings.certificate is not None else "http"
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(128)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"management.listen: {shown}:{settings.port}: {reason}") from None
        listener.setblocking(False)
        self._bound = f"{scheme}://{shown}:{listener.getsockname()[1]}"
        return listener

    def _bind_unix(self, path: Path) -> socket.socket:
        try:
            listener = bind_unix(str(path), 0o600)
        except OSError as error:
            raise OSError(error.errno, f"management.listen: unix:{path}: {error.strerror or error}") from None
        listener.listen(128)
        self._bound = f"unix:{path}"
        return listener
