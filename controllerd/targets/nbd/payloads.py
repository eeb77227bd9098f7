"""Payloads of WRITE requests that are too long to wait for as a whole, or are refused.

Owns: staging a long payload piece by piece as it arrives, and throwing a refused one away.
Never: commits or answers; the pass it belongs to does.

A connection's memory stays bounded this way, whatever the client may send. A long write
becomes several journal records in any case; it is acknowledged when all of them are.

Source: proto.md, "Size constraints".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.wire import Command

if TYPE_CHECKING:
    from controllerd.targets.nbd.transmission import Transmission

_ALIGNMENT: Final = 4096
"""Pieces end where the cache's blocks end."""


@dataclass(slots=True)
class Payload:
    """A WRITE whose payload is still arriving: the next byte belongs at ``offset``.

    With ``error`` the rest is thrown away and the error is the answer.
    """

    cookie: bytes
    offset: int
    remaining: int
    carried: int | None
    durable: bool
    error: RemoteCopyError | RequestRefused | None = None


def take(session: Transmission, payload: Payload) -> Stop | None:
    """Take what has arrived of the session's payload; None: that was the last of it."""
    source = session.input
    while payload.remaining:
        available = source.end - source.position
        if payload.error is not None:
            taken = min(available, payload.remaining)
        else:
            taken = _piece(session, payload, available)
            if not taken:
                return Stop.INPUT
            if not session.group.accepting:
                return Stop.GROUP
            data = source.view[source.position : source.position + taken]
            try:
                session.retain(session.group.stage_write(session.volume, payload.offset, data, payload.carried), taken)
            except RemoteCopyError as error:
                payload.error = error
                continue
            session.counters.byte_counts[Command.WRITE] += taken
            payload.offset += taken
        source.position += taken
        payload.remaining -= taken
        if payload.remaining and payload.error is not None:
            return Stop.INPUT
    session.payload = None
    if payload.error is not None:
        session.fail(Command.WRITE, payload.cookie, payload.error)
    else:
        session.counters.requests[Command.WRITE] += 1
        (session.durable if payload.durable else session.done).append(payload.cookie)
    return None


def _piece(session: Transmission, payload: Payload, available: int) -> int:
    """Return how many of the ``available`` bytes to stage now; 0: more have to arrive."""
    wanted = min(payload.remaining, session.limits.piece_max - payload.offset % _ALIGNMENT)
    if wanted <= available:
        return wanted
    if session.input.end < len(session.input.chunk):
        return 0
    # The chunk is full: stage what is here, up to a block's end, so that little has to be copied to the next one.
    return max(0, available - (payload.offset + available) % _ALIGNMENT)
