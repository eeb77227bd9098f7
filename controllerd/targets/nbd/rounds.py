"""Commit rounds: writes of many connections that arrive together are journaled together.

Owns: whether a connection settles its pass at once or at the end of the loop's turn.
Never: commits anything itself.

One connection with many requests in flight fills its passes by itself, and settling at
once is best. Many connections with one request each would make one journal write per
request; at the end of the turn, one write serves all of them. Which of both is the case
shows in how many connections a round brings together, so every now and then a round is
tried, and rounds go on while they bring together more than one.

Measured with 16 connections at depth 1, 4 KiB random writes (tests/bench has the job).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

_PROBE_INTERVAL: Final = 61
"""Passes settled at once between two rounds that are tried; odd, so that it is not always the turn's last one."""
_BYTES_MAX: Final = 1 << 20
"""Data of one round; more is settled at once, so that the group's back-pressure is seen in time."""


class Member(Protocol):
    """A connection in a round."""

    def settle(self) -> None:
        """Commit and answer what the connection has staged."""


class Rounds:
    """The rounds of one server. ``sessions``: how many connections there are."""

    __slots__ = ("_bytes", "_call_soon", "_members", "_passes", "_together", "sessions")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """``call_soon`` calls a function when the loop's present turn is over."""
        self.sessions = 0
        self._call_soon = call_soon
        self._members: list[Member] = []
        self._bytes = 0
        self._passes = 0
        self._together = False

    def join(self, member: Member, size: int, *, already: bool) -> bool:
        """Put ``size`` newly staged bytes of a connection in this turn's round; False: it must settle at once.

        ``already``: the connection is in the round, with what it staged before.
        """
        members = self._members
        if not self._together and not members:
            self._passes += 1
            if self._passes < _PROBE_INTERVAL or self.sessions < 2:
                return False
            self._passes = 0
        if self._bytes + size > _BYTES_MAX:
            return False
        self._bytes += size
        if not already:
            if not members:
                self._call_soon(self._finish)
            members.append(member)
        return True

    def _finish(self) -> None:
        members, self._members = self._members, []
        self._bytes = 0
        self._together = len(members) > 1
        for member in members:
            member.settle()
