"""Counters of one export: what metrics show of the host port.

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

    __slots__ = ("byte_counts", "connections", "errors", "requests", "unknown")

    def __init__(self) -> None:
        self.connections = 0
        self.requests = [0] * COMMANDS
        self.byte_counts = [0] * COMMANDS
        self.errors = [0] * COMMANDS
        self.unknown = 0

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
