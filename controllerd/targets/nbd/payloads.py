"""Requests that take more than one step of the pass: long payloads, refused payloads, long ranges of zeros.

Owns: staging a long payload piece by piece as it arrives, throwing a refused one away,
and staging a long range in parts that each keep the loop only for a moment.
Never: commits or answers; the pass it belongs to does.

A connection's memory stays bounded this way, whatever the client may send. A long change
becomes several journal records in any case; it is acknowledged when all of them are.

Source: proto.md, "Size constraints".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.errors import RequestRefused
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.wire import Command

if TYPE_CHECKING:
    from controllerd.targets.nbd.transmission import Transmission

_ALIGNMENT: Final = 4096
"""Pieces end where the cache's blocks end."""


class Unfinished(Protocol):
    """The request at hand of a session. ``error``: what it will be answered with, once it is through."""

    error: RemoteCopyError | RequestRefused | None

    def go_on(self, session: Transmission) -> Stop | None:
        """Take the next step; None: that was the last one."""


@dataclass(slots=True)
class Payload:
    """A request whose payload is still arriving: the next byte belongs at ``offset``.

    With ``error`` the rest is thrown away and the error is the answer; without, it is a WRITE.
    """

    command: int
    cookie: bytes
    offset: int
    remaining: int
    carried: int | None = None
    durable: bool = False
    error: RemoteCopyError | RequestRefused | None = None

    def go_on(self, session: Transmission) -> Stop | None:
        """Take what has arrived of the payload; None: that was the last of it."""
        source = session.input
        while self.remaining:
            available = source.end - source.position
            if self.error is not None:
                taken = min(available, self.remaining)
            else:
                taken = self._piece(session, available)
                if not taken:
                    return Stop.INPUT
                if not session.group.accepting:
                    return Stop.GROUP
                data = source.view[source.position : source.position + taken]
                try:
                    sequence = session.group.stage_write(session.volume, self.offset, data, self.carried)
                except RemoteCopyError as error:
                    self.error = error
                    continue
                session.retain(sequence, taken)
                session.counters.byte_counts[Command.WRITE] += taken
                self.offset += taken
            source.position += taken
            self.remaining -= taken
            if self.remaining and self.error is not None:
                return Stop.INPUT
        session.finish(self.command, self.cookie, self.error, durable=self.durable)
        return None

    def _piece(self, session: Transmission, available: int) -> int:
        """Return how many of the ``available`` bytes to stage now; 0: more have to arrive."""
        wanted = min(self.remaining, session.limits.piece_max - self.offset % _ALIGNMENT)
        if wanted <= available:
            return wanted
        if session.input.end < len(session.input.chunk):
            return 0
        # The chunk is full: stage what is here, up to a block's end, so that little has to be copied to the next one.
        return max(0, available - (self.offset + available) % _ALIGNMENT)


@dataclass(slots=True)
class Zeroing:
    """A TRIM or WRITE_ZEROES of a long range: the next byte to make zero is at ``offset``. ``step`` in bytes."""

    command: int
    cookie: bytes
    offset: int
    remaining: int
    step: int
    no_hole: bool
    durable: bool
    error: RemoteCopyError | RequestRefused | None = None

    def go_on(self, session: Transmission) -> Stop | None:
        """Stage one step; None: that was the last one."""
        if self.error is None:
            if not session.group.accepting:
                return Stop.GROUP
            length = min(self.remaining, self.step - self.offset % self.step)
            try:
                stage_zeroes(session, self.command, self.offset, length, no_hole=self.no_hole)
            except RemoteCopyError as error:
                self.error = error
            else:
                self.offset += length
                self.remaining -= length
                if self.remaining:
                    return Stop.TURN
        session.finish(self.command, self.cookie, self.error, durable=self.durable)
        return None


def stage_zeroes(session: Transmission, command: int, offset: int, length: int, *, no_hole: bool) -> None:
    """Stage a range of zeros that is one step.

    Raises:
        RemoteCopyError: nothing was staged.
    """
    sequence = session.group.stage_zeroes(session.volume, offset, length, trim=command == Command.TRIM, no_hole=no_hole)
    session.staged(sequence, length if no_hole else 0)
    session.counters.byte_counts[command] += length
