"""Errors of the simulated hosts, named by what the caller can do next.

HostError                     anything below; has one line of text for a person
├── ConnectFailed             no connection was made: nothing happened, try again
├── ConnectionLost            the connection broke: what was in flight may or may not have happened
├── CommandFailed             the server answered with an error: `errno` says which
├── BadVolumes                the volumes given cannot be used for what was asked (size, format, number)
└── BadRecord                 a record file is not one of ours or does not belong to these volumes
"""

from __future__ import annotations

import os


class HostError(Exception):
    """Base of every error that hostsim raises on purpose."""


class ConnectFailed(HostError):
    """No connection: the server is not there, or has no such export. Nothing was sent; trying again is safe."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"{uri}: {reason}")
        self.uri = uri
        self.reason = reason


class ConnectionLost(HostError):
    """The connection is gone. The outcome of every command that was in flight is unknown: done, or never done."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"{uri}: connection lost: {reason}")
        self.uri = uri
        self.reason = reason


class CommandFailed(HostError):
    """The server (or libnbd on its behalf) refused a command.

    ``errno`` is the system's error number, 0 if there was none. After EIO a write may have happened in part.
    """

    def __init__(self, uri: str, command: str, errno: int, reason: str = "") -> None:
        super().__init__(f"{uri}: {command} failed: {reason or os.strerror(errno)}")
        self.uri = uri
        self.command = command
        self.errno = errno


class BadVolumes(HostError):
    """The volumes do not fit the order: too small, not formatted, or not of one set."""


class BadRecord(HostError):
    """A record file cannot be used: not a record, of another version, or of another run than the volumes."""
