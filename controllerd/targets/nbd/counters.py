"""Counters of one session, or of all sessions of an export: what metrics show of the host port.

Owns: requests, bytes and errors per command.
Never: is read by anything that decides.
"""

from __future__ import annotations

from typing import Final

from controllerd.targets.nbd.wire import Command

COMMANDS: Final = len(Command)


class Counters:
    """Lists indexed by `Command`. ``byte_counts`` counts data of READ and WRITE, ranges of the other commands.

    Requests with an unknown command are counted in ``unknown`` only.
    """

    __slots__ = ("byte_counts", "errors", "requests", "unknown")

    def __init__(self) -> None:
        self.requests = [0] * COMMANDS
        self.byte_counts = [0] * COMMANDS
        self.errors = [0] * COMMANDS
        self.unknown = 0

    def add(self, other: Counters) -> None:
        """Count what ``other`` has counted."""
        for ours, theirs in (
            (self.requests, other.requests),
            (self.byte_counts, other.byte_counts),
            (self.errors, other.errors),
        ):
            for command, count in enumerate(theirs):
                ours[command] += count
        self.unknown += other.unknown

    def describe(self) -> dict[str, dict[str, int]]:
        """Return {command: {"requests": n, "bytes": n, "errors": n}} with lower-case command names."""
        return {
            command.name.lower(): {
                "requests": self.requests[command],
                "bytes": self.byte_counts[command],
                "errors": self.errors[command],
            }
            for command in Command
        }
