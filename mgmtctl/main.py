"""The command line as a whole: ``mgmtctl [options] ORDER ...``.

Owns: the options before the order, exit codes at the very end, and that every error is one line.
Never: knows what an order does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from controllerd.management.schemas import VERSION
from mgmtctl import disks, groups, pairs, status, system, takeover, volumes
from mgmtctl.errors import MEANINGS, CliError, ExitCode
from mgmtctl.options import complete_controller
from mgmtctl.session import Session
from mgmtctl.settings import DEFAULT_FILE, Overrides

_EXIT_CODES = "\n".join(f"  {int(code):3}  {meaning}" for code, meaning in MEANINGS.items())
_EPILOG = f"""Example: mgmtctl status --watch

Exit codes:
{_EXIT_CODES}

Controllers and their tokens stand in {DEFAULT_FILE} (or --config, or MGMTCTL_CONFIG): \\[controllers.A] with url, \
token_file (or token) and, for https with an authority of your own, ca; default = "A" names the one for orders without \
-c. MGMTCTL_URL, MGMTCTL_TOKEN and MGMTCTL_CONTROLLER override the file, options override both. MGMTCTL_DEBUG=1 shows \
where an unexpected error came from."""

app = typer.Typer(
    name="mgmtctl",
    help="Manage remote-copy storage controllers.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(system.app, name="system")
app.add_typer(disks.disk_app, name="disk")
app.add_typer(disks.pool_app, name="pool")
app.add_typer(volumes.app, name="volume")
app.add_typer(groups.app, name="group")
app.add_typer(pairs.app, name="pair")
app.command("status", epilog="Example: mgmtctl status -c A -c B --watch")(status.status)
app.command("takeover", epilog="Example: mgmtctl takeover B --preview")(takeover.takeover)
app.command("metrics", epilog="Example: mgmtctl metrics -c A")(system.metrics)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mgmtctl {VERSION}\n")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Client file with the controllers.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Address of the controller.")] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="File with the controller's token.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, max=86400, help="Longest wait for an answer."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, max=86400, help="Wait for a controller that is starting."),
    ] = 0.0,
    default: Annotated[
        str | None,
        typer.Option(
            "--default-controller",
            metavar="NAME",
            help="Controller for orders that name none.",
            autocompletion=complete_controller,
        ),
    ] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take what stands before the order."""
    context.obj = Session(
        config=config,
        options=Overrides(url=url, token_file=token_file, controller=default),
        timeout_s=timeout,
        wait_s=wait,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one order; returns the exit code and prints every error as one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = app(args=words, prog_name="mgmtctl", standalone_mode=False)
    except typer.TyperException as error:
        return _report(error, as_json="--json" in words)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("mgmtctl: interrupted\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.REFUSED
    except Exception as error:
        if os.environ.get("MGMTCTL_DEBUG"):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"mgmtctl: unexpected error ({text}); MGMTCTL_DEBUG=1 shows where\n")
        return ExitCode.REFUSED
    return outcome if isinstance(outcome, int) else ExitCode.OK


def _report(error: typer.TyperException, *, as_json: bool) -> int:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if context is not None:
        message = f"{message.rstrip('.')} (see: {context.command_path} --help)"
    if as_json:
        known = error if isinstance(error, CliError) else None
        document = {
            "code": known.code if known else "usage",
            "message": message,
            "details": known.details if known else {},
            "exit_code": error.exit_code,
        }
        sys.stderr.write(json.dumps(document) + "\n")
    else:
        sys.stderr.write(f"mgmtctl: {message}\n")
    return error.exit_code
