"""Options that many orders share, and their completion.

Owns: ``-c/--controller``, ``--json`` and how names of controllers are completed in a shell.
Never: talks to a controller while completing; only the client file is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controllerd.management.schemas import parse_size
from mgmtctl.errors import CliError
from mgmtctl.session import Session
from mgmtctl.settings import client_file, load_settings


def session_of(context: typer.Context) -> Session:
    """What stood before the order."""
    session = context.find_root().obj
    return session if isinstance(session, Session) else Session()


def _controllers(context: typer.Context) -> list[str]:
    option = context.find_root().params.get("config")
    try:
        path, _ = client_file(Path(option) if option else None, os.environ)
        return list(load_settings(path, required=False).endpoints)
    except CliError:
        return []


def complete_controller(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the client file that begin with what is there."""
    return [name for name in _controllers(context) if name.startswith(incomplete)]


def complete_target(context: typer.Context, incomplete: str) -> list[str]:
    """``A:`` for every controller; what follows the colon is the caller's."""
    if ":" in incomplete:
        return []
    return [f"{name}:" for name in _controllers(context) if name.startswith(incomplete)]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ControllerOption = Annotated[
    str | None,
    typer.Option("--controller", "-c", metavar="NAME", help="Controller to order.", autocompletion=complete_controller),
]
ControllersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--controller",
        "-c",
        metavar="NAME",
        help="Controller to ask; may be repeated. Default: all of the client file.",
        autocompletion=complete_controller,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON, for scripts.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
SizeOption = Annotated[
    int, typer.Option(parser=_size, metavar="SIZE", help="Bytes, or for instance 64MiB, 1.5GiB, 10GB.")
]
OptionalSizeOption = Annotated[
    int | None, typer.Option(parser=_size, metavar="SIZE", help="Bytes, or for instance 64MiB, 1.5GiB, 10GB.")
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="[CONTROLLER:]NAME",
        help="Its name; the controller before it, unless -c or the default says which.",
        autocompletion=complete_target,
        show_default=False,
    ),
]
