"""How orders end: exit codes and the one error type of the command line.

Owns: the exit codes (stable) and the mapping from HTTP answers to them. Never: prints.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import typer


class ExitCode(enum.IntEnum):
    """What scripts test for."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_AUTHORISED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    TIMED_OUT = 7
    BUSY = 8
    NO_SPACE = 9
    INTERRUPTED = 130


MEANINGS: Final = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "the order was refused, failed, or was not confirmed",
    ExitCode.USAGE: "wrong usage or client configuration",
    ExitCode.UNREACHABLE: "a controller or its peer does not answer",
    ExitCode.NOT_AUTHORISED: "the token is missing or wrong",
    ExitCode.NOT_FOUND: "something that was named does not exist",
    ExitCode.CONFLICT: "contradicts what exists, or not possible in this state",
    ExitCode.TIMED_OUT: "no answer in time; the order may still be under way",
    ExitCode.BUSY: "something else has to finish first; try again",
    ExitCode.NO_SPACE: "a disk, pool or journal is full",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; the order may still be under way",
}

_BY_STATUS: Final = {
    401: ExitCode.NOT_AUTHORISED,
    403: ExitCode.NOT_AUTHORISED,
    404: ExitCode.NOT_FOUND,
    408: ExitCode.TIMED_OUT,
    409: ExitCode.CONFLICT,
    502: ExitCode.UNREACHABLE,
    503: ExitCode.BUSY,
    504: ExitCode.TIMED_OUT,
    507: ExitCode.NO_SPACE,
}


def exit_code_for(status: int) -> ExitCode:
    """Exit code for an HTTP status that is an error."""
    return _BY_STATUS.get(status, ExitCode.REFUSED)


class CliError(typer.TyperException):
    """Ends the order with one line and ``exit_code``."""

    def __init__(
        self, message: str, exit_code: ExitCode = ExitCode.REFUSED, *, code: str = "", details: Any = None
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = int(exit_code)
        self.code = code or exit_code.name.lower().replace("_", "-")
        self.details: dict[str, Any] = details if isinstance(details, dict) else {}


def usage_error(message: str) -> CliError:
    """Something the caller wrote cannot be understood."""
    return CliError(message, ExitCode.USAGE)
