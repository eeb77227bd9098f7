"""Any bytes at either side's end of a transfer connection, from a peer with or without the key.

Only who sent a right proof is taken for a peer, an error closes this connection, and the next one comes to be.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, cast

from controllerd.model.errors import NotAuthorised
from controllerd.replication.auth import NONCE_BYTES, Handshake
from controllerd.replication.frames import MAX_MESSAGE, Frame, FrameError, FrameReader
from controllerd.replication.links import Link
from controllerd.storage.buffers import BufferPool
from tests.fuzz import transfer_frames
from tests.fuzz.source import Source

_KEY: Final = b"0123456789abcdef0123456789abcdef"


class _Transport:
    """Keeps what the link writes."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        """Have none."""

    def get_extra_info(self, name: str) -> None:
        """Know nothing of the other end."""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def abort(self) -> None:
        """Keep that, too."""
        self.aborted = True

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self.written = self.written, b""
        return taken


class _End:
    """A link and its transport. ``taken``: the frames that came after the handshake."""

    def __init__(self, loop: asyncio.AbstractEventLoop, chunks: BufferPool, *, dialler: bool) -> None:
        self.transport = _Transport()
        self.link = Link(_handshake(_KEY, 0, dialler=dialler), loop, chunks)
        self.taken: list[Frame] = []
        self.link.on_frames = lambda _link, frames: self.taken.extend(frames)
        self.link.connection_made(cast(Any, self.transport))

    def feed(self, data: bytes) -> None:
        """Let bytes arrive."""
        while data and not self.transport.aborted:
            buffer = self.link.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size], data = data[:size], data[size:]
            self.link.buffer_updated(size)
            assert self.link.peer or len(self.link._reader._chunk) <= 4 * MAX_MESSAGE

    def close(self) -> None:
        """Let the connection end."""
        self.link.connection_lost(None)
        assert self.link.ready.done()


def _handshake(key: bytes, seed: int, *, dialler: bool) -> Handshake:
    nonce = bytes([seed, dialler]) * (NONCE_BYTES // 2)
    return Handshake(dialler=dialler, controller="B" if dialler else "A", serial=1, key=key, nonce=nonce)


def run(data: bytes) -> None:
    """One connection with what ``data`` decides, and a sound one behind it."""
    # It never runs: a link needs it for its clock and its future.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        _run(Source(data), loop)


def _run(source: Source, loop: asyncio.AbstractEventLoop) -> None:
    chunks = BufferPool(1 << 20)
    dialler = bool(source.number(1) & 1)
    end = _End(loop, chunks, dialler=dialler)
    knows = bool(source.number(1) & 1)
    peer = _Peer(_handshake(_KEY if knows else b"another key of the same length..", 1, dialler=not dialler))
    for _ in range(source.number(1) % 12):
        for piece in source.pieces(_next(source, end, peer)):
            end.feed(piece)
    assert end.link.closed == end.transport.aborted
    assert end.link.peer is None or (knows and peer.proved)
    assert end.link.peer is not None or not end.taken
    end.close()
    _sound(loop, chunks)


class _Peer:
    """The other end as it should be. ``proved``: whether its proof has been sent."""

    def __init__(self, handshake: Handshake) -> None:
        self.handshake = handshake
        self.proved = False
        self.seen: list[bytes] = []
        self._reader = FrameReader(BufferPool(1 << 20))
        self._begun = False

    def speak(self, heard: bytes) -> bytes:
        """Answer what was heard; from then on only what is heard later counts."""
        self.seen.append(heard)
        said = b"" if self._begun else self.handshake.begin()
        self._begun = True
        if heard:
            self._reader.buffer[: len(heard)] = heard
            for frame in self._reader.received(len(heard)):
                said += self.handshake.receive(frame)
        self.proved = self.handshake.proof_given
        self.seen.append(said)
        return said


def _next(source: Source, end: _End, peer: _Peer) -> bytes:
    match source.number(1) % 6:
        case 0:
            return source.take(source.number(1) % 64)
        case 1:
            return transfer_frames.frame(source)
        case 2:
            return source.pick((b"", *peer.seen))  # once more, or reflected
        case _:
            if peer.handshake.peer is not None or end.link.closed:
                return transfer_frames.frame(source)
            try:
                return peer.speak(end.transport.take())
            except (FrameError, NotAuthorised):  # it has heard answers to what was not its own
                return b""


def _sound(loop: asyncio.AbstractEventLoop, chunks: BufferPool) -> None:
    near, far = _End(loop, chunks, dialler=True), _End(loop, chunks, dialler=False)
    for _ in range(3):
        far.feed(near.transport.take())
        near.feed(far.transport.take())
    assert near.link.peer is not None
    assert far.link.peer is not None
    near.close()
    far.close()
