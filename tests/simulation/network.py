"""Simulated network: byte streams between sites that are slow, cut up, held back and torn down.

Owns: who listens where, the connections, and the condition of the path from each site to each
other one.
Never: looks into the bytes, or loses some and delivers later ones: inside a connection it is TCP.

A path has a direction. While it is blocked nothing leaves in that direction: what was sent
waits, and comes out when the path is free again, perhaps on a connection that its other end has
long given up (F25). A site that is killed resets its connections; one that lost its power says
nothing until it runs again.

Source: fault catalogue F19-F26.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.life import OUTSIDE, Life, LifeLoop, current_life

RETRY_S: Final = 0.5
"""How often a connection is tried again on a blocked path."""
HIGH_BYTES: Final = 64 << 10
"""A connection takes no more than this from a protocol that lets the transport pace it."""


@dataclass(slots=True)
class Path:
    """The way from one site to another. Times in seconds; ``rate``: bytes a second, None: no limit.

    ``chunk``: most bytes that arrive together; ``rot``: probability that a chunk arrives with a wrong bit,
    which is in the first ``rot_within`` bytes.
    """

    blocked: bool = False
    low_s: float = 0.0005
    high_s: float = 0.002
    rate: float | None = None
    chunk: int = 1 << 16
    rot: float = 0.0
    rot_within: int = 1 << 20


class End(asyncio.Transport):
    """One end of a connection, the transport of a protocol of ``life``."""

    peer: End

    def __init__(self, network: Network, life: Life | None, site: str, path: Path) -> None:
        super().__init__()
        self.network = network
        self.life = life
        self.site = site
        self.path = path
        self.protocol: Any = None
        self.held = False
        """Nothing of it arrives, while other connections go on."""
        self.gone = False
        """The protocol was told that the connection is lost, or its process is no more."""
        self.sent: bytearray | None = None
        """What was sent so far, if somebody listens in (late connections)."""
        self._queue: list[bytes] = []
        self._size = 0
        self._moving = False
        self._ending = False
        self._paused = False
        self._high = HIGH_BYTES

    # ---- asyncio.Transport ------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_BYTES if high is None else min(high, HIGH_BYTES)

    def get_write_buffer_size(self) -> int:
        return self._size

    def is_closing(self) -> bool:
        return self._ending or self.gone

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if self._ending or self.gone or (self.life is not None and not self.life.alive):
            return
        data = b"".join(list_of_data)
        if self.sent is not None:
            self.sent += data
        self._queue.append(data)
        self._size += len(data)
        if self._size > self._high and not self._paused:
            self._paused = True
            self.protocol.pause_writing()
        self.move()

    def close(self) -> None:
        if not self._ending and (self.life is None or self.life.alive):
            self._ending = True
            self.move()

    def abort(self) -> None:
        if self.life is None or self.life.alive:
            self.network.tear(self, None)

    # ---- the way --------------------------------------------------------------------

    def move(self) -> None:
        """Send the next chunk on its way, if there is one and the path is free."""
        if self._moving or self._stuck():
            return
        if not self._queue and not (self._ending and not self.gone):
            return
        self._moving = True
        rng, path = self.network.rng, self.path
        delay_s = path.low_s + rng.random() * (path.high_s - path.low_s)
        size = min(self._size, path.chunk if rng.random() < 0.7 else rng.randint(1, path.chunk))
        if path.rate is not None:
            delay_s += size / path.rate
        self.network.loop.call_later(delay_s, self._arrive, size, context=OUTSIDE)

    def _stuck(self) -> bool:
        return self.held or self.path.blocked or self.network.off(self.peer.site)

    def _take(self, size: int) -> bytes:
        if len(self._queue) == 1 and size == self._size:
            data = self._queue.pop()
        else:
            whole = b"".join(self._queue)
            data, rest = whole[:size], whole[size:]
            self._queue = [rest] if rest else []
        self._size -= len(data)
        return data

    def _arrive(self, size: int) -> None:
        self._moving = False
        if self._stuck():
            return  # `Network.kick` sends it again
        peer = self.peer
        if not self._queue:
            if self._ending and not self.gone:
                self.network.tear(self, None)
            return
        data = self._take(min(size, self._size))
        self.network.trace(peer.site, len(data))
        if peer.gone or peer.life is None or not peer.life.alive:
            # The process there knows nothing of this connection.
            self.network.tear(self, ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return
        rng = self.network.rng
        if self.path.rot and rng.random() < self.path.rot:
            spoilt = bytearray(data)
            spoilt[rng.randrange(min(len(spoilt), self.path.rot_within))] ^= 1 << rng.randrange(8)
            data = bytes(spoilt)
            self.network.reached("a bit turned on the way")
        peer.life.call(peer.receive, data)
        if self._paused and self._size <= self._high // 4:
            self._paused = False
            if self.life is not None and not self.gone:
                self.life.call(self.protocol.resume_writing)
        self.move()

    def receive(self, data: bytes) -> None:
        """Hand bytes to the protocol."""
        view = memoryview(data)
        protocol = self.protocol
        while view and not self.gone and not self.is_closing():
            buffer = protocol.get_buffer(len(view))
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            protocol.buffer_updated(count)

    def lose(self, error: Exception | None) -> None:
        """Tell the protocol that the connection is over, in the next turn of the loop."""
        if self.gone:
            return
        self.gone = True
        self._queue.clear()
        self._size = 0
        if self.life is not None and self.life.alive:
            self.network.loop.call_soon(self._tell, error, context=self.life.context)

    def _tell(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)


class _Address:
    """Looks like a listening socket."""

    def __init__(self, port: int) -> None:
        self._port = port

    def getsockname(self) -> tuple[str, int]:
        return "", self._port


class Listener:
    """Looks like `asyncio.Server`."""

    def __init__(self, network: Network, life: Life, factory: Callable[[], Any], address: tuple[str, int]) -> None:
        self.life = life
        self.factory = factory
        self.sockets = (_Address(address[1]),)
        self._network = network
        self._address = address

    def close(self) -> None:
        """Listen no more."""
        if self.life.alive:
            self._network.listeners.pop(self._address, None)

    async def wait_closed(self) -> None:
        """Connections are the acceptor's."""


class Network:
    """All paths and connections. ``reached`` counts what happens, ``trace`` notes what arrives where."""

    def __init__(
        self,
        loop: LifeLoop,
        rng: random.Random,
        trace: Callable[..., None],
        reached: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.reached = reached
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.paths: dict[tuple[str, str], Path] = {}
        self.ends: list[End] = []
        """The dialling end of every connection that may still do something."""
        self.powerless: set[str] = set()
        self.recorded: tuple[str, bytes] | None = None
        """(site dialled, what was sent) of some connection, for who wants to play it again."""

    def path(self, source: str, target: str) -> Path:
        """The path from one site to another."""
        found = self.paths.get((source, target))
        if found is None:
            found = self.paths[source, target] = Path()
        return found

    def off(self, site: str) -> bool:
        """Whether there is nobody who could even refuse a connection."""
        return site in self.powerless

    # ---- what the loop is asked for ---------------------------------------------------

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[End, Any]:
        """Connect the running site to site ``host``.

        Raises:
            ConnectionRefusedError: nobody listens there.
        """
        life = current_life()
        assert life is not None
        there, back = self.path(life.name, host), self.path(host, life.name)
        while there.blocked or back.blocked or self.off(host):  # noqa: ASYNC110  # as TCP sends SYN again
            await asyncio.sleep(RETRY_S)
        await asyncio.sleep(there.high_s + back.high_s)
        listener = self.listeners.get((host, port))
        if listener is None or not listener.life.alive:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        protocol = factory()
        end = self._join(life, life.name, listener, host)
        end.protocol = protocol
        protocol.connection_made(end)
        return end, protocol

    def _join(self, life: Life | None, source: str, listener: Listener, host: str) -> End:
        near = End(self, life, source, self.path(source, host))
        far = End(self, listener.life, host, self.path(host, source))
        near.peer, far.peer = far, near
        self.ends = [end for end in self.ends if not (end.gone and end.peer.gone)]
        self.ends.append(near)
        if self.rng.random() < 0.1:
            near.sent = bytearray()

        def accept() -> None:
            far.protocol = listener.factory()
            far.protocol.connection_made(far)

        listener.life.call(accept)
        self.trace("connect", source, host)
        return near

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> Listener:
        """Let the running site listen."""
        life = current_life()
        assert life is not None
        listener = self.listeners[host, port] = Listener(self, life, factory, (host, port))
        return listener

    # ---- what goes wrong ----------------------------------------------------------------

    def tear(self, end: End, error: Exception | None) -> None:
        """End a connection: ``end`` at once, its peer when the news arrives (never on a blocked path)."""
        end.lose(error)
        peer = end.peer
        if not peer.gone and not end.path.blocked and not self.off(peer.site):
            self.loop.call_later(end.path.high_s, peer.lose, error, context=OUTSIDE)

    def reset(self, end: End) -> None:
        """Both ends lose the connection, each at its own time."""
        error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        for each in (end, end.peer):
            self.loop.call_later(self.rng.random() * 0.01, each.lose, error, context=OUTSIDE)

    def died(self, site: str, *, power: bool) -> None:
        """All processes of ``site`` are gone; with its ``power`` also who could say so."""
        if power:
            self.powerless.add(site)
        for near in list(self.ends):
            for end in (near, near.peer):
                if end.site == site and end.life is not None and not end.life.alive:
                    end.gone = True
                    if not power:
                        self.tear(end, None)

    def booted(self, site: str) -> None:
        """The site is there again; it knows no connection of the life before."""
        self.powerless.discard(site)
        self.kick()

    def kick(self) -> None:
        """Paths changed: go on where something waits."""
        for near in list(self.ends):
            near.move()
            near.peer.move()

    def replay(self, source: str, host: str, port: int, data: bytes) -> None:
        """Open a connection as if from ``source`` that plays ``data`` once more (F25)."""
        listener = self.listeners.get((host, port))
        if listener is None or not listener.life.alive:
            return
        near = self._join(None, source, listener, host)
        near.protocol = _Deaf()
        near.sent = None
        near.writelines([data])


class _Deaf:
    """The protocol of nobody."""

    def pause_writing(self) -> None:
        """Nobody writes."""

    def resume_writing(self) -> None:
        """Nobody writes."""


class WorldLoop(LifeLoop):
    """A loop whose sockets are those of a `Network`."""

    network: Network

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """See asyncio; ``host`` is a site's name."""
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        """See asyncio; ``host`` is the site's own name."""
        return self.network.listen(protocol_factory, host, port)
