"""Where every group stands, over all controllers: ``mgmtctl status``.

Owns: asking all controllers at once, and the table. A controller that does not answer is shown as such and the rest
still shown. Never: adds up or interprets; the figures are the controllers' own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.console import Group as RichGroup
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controllerd.management.schemas import PairStatus, Position, StatusAnswer
from mgmtctl import output
from mgmtctl.client import Client
from mgmtctl.errors import CliError, ExitCode
from mgmtctl.options import ControllersOption, JsonOption, session_of

_COLUMNS: Final = (
    "group", "role", "peer", "state", "written", "transferred", "arrived", "applied", "lag", "lag (time)", "held by"
)  # fmt: skip
TABLE_WIDTH_MIN: Final = 200
"""Columns of a terminal from which on the table is readable."""
_BLOCKED: Final = {
    "primary": "hosts cannot write (EIO) until the secondary has caught up",
    "secondary": "no room for what arrives",
}
_NO_LAG: Final = frozenset({"SMPL", "SSWS"})
_MIRRORED: Final = frozenset({"PAIR", "COPY"})
_GOOD: Final = frozenset({"PAIR", "SMPL"})
_Result = tuple[str, StatusAnswer | CliError]


def status(
    context: typer.Context,
    controllers: ControllersOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Time between two refreshes.")
    ] = 1.0,
    count: Annotated[int | None, typer.Option(metavar="N", min=1, help="With --watch: stop after N refreshes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show per group what is written, transferred, arrived and applied, the lag, and what holds it back.

    The exit code is 3 when a controller did not answer; what the others say is shown all the same.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(client) for client in session_of(context).clients(controllers or [])]
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(clients), thread_name_prefix="status"))
        if not watch:
            results = list(pool.map(_ask, clients))
            _print_once(results, as_json)
        elif as_json:
            results = _watch_json(clients, pool, interval, count)
        else:
            results = _watch_table(clients, pool, interval, count)
    failed = [result for _, result in results if isinstance(result, CliError)]
    if failed:
        raise typer.Exit(ExitCode.UNREACHABLE if len(failed) < len(results) else failed[0].exit_code)


def _ask(client: Client) -> _Result:
    try:
        return client.endpoint.name, client.get("/v1/status", StatusAnswer)
    except CliError as error:
        return client.endpoint.name, error


def _watch_json(
    clients: Sequence[Client], pool: ThreadPoolExecutor, interval: float, count: int | None
) -> list[_Result]:
    """One line of JSON per refresh."""
    while True:
        results = list(pool.map(_ask, clients))
        sys.stdout.write(json.dumps(_document(results)) + "\n")
        sys.stdout.flush()
        if count is not None and (count := count - 1) == 0:
            return results
        time.sleep(interval)


def _watch_table(
    clients: Sequence[Client], pool: ThreadPoolExecutor, interval: float, count: int | None
) -> list[_Result]:
    results = list(pool.map(_ask, clients))
    console = Console()
    with Live(_render(results, console.width), console=console, auto_refresh=False, screen=False) as live:
        while count is None or (count := count - 1) > 0:
            try:
                time.sleep(interval)
                results = list(pool.map(_ask, clients))
            except KeyboardInterrupt:
                break
            live.update(_render(results, console.width), refresh=True)
    return results


def _print_once(results: Sequence[_Result], as_json: bool) -> None:
    if as_json:
        output.print_json(_document(results))
        return
    output.print_wide(lambda width: _render(results, width))
    for name, result in results:
        if isinstance(result, StatusAnswer):
            output.warn(f"{name}: {fault}" for fault in result.faults)
        else:
            output.warn([result.message])


def _document(results: Sequence[_Result]) -> dict[str, Any]:
    """The stable form: every controller that was asked, with ``error`` where it did not answer."""
    controllers: list[dict[str, Any]] = []
    for name, result in results:
        if isinstance(result, StatusAnswer):
            controllers.append({"name": name, "reachable": True, "error": None, **result.model_dump(mode="json")})
        else:
            error = {"code": result.code, "message": result.message}
            controllers.append({"name": name, "reachable": False, "error": error, "groups": []})
    return {"controllers": controllers}


def _render(results: Sequence[_Result], width: int) -> Table | RichGroup:
    """One table, or a few lines per group where the table's cells would be broken."""
    return _table(results) if width >= TABLE_WIDTH_MIN else RichGroup(*_blocks(results))


def _table(results: Sequence[_Result]) -> Table:
    rows: list[Sequence[str | Text]] = []
    for name, result in results:
        if isinstance(result, CliError):
            rows.append((f"{name}:", "", "", Text(_failure(result), style="bold red"), *[""] * 7))
        elif not result.groups:
            rows.append((f"{name}:", "", "", "no groups", *[""] * 7))
        else:
            rows += [_row(name, result, entry) for entry in result.groups]
    return output.table("", _COLUMNS, rows, right=("lag", "lag (time)"))


def _failure(error: CliError) -> str:
    return "unreachable" if error.exit_code == ExitCode.UNREACHABLE else error.code


def _blocks(results: Sequence[_Result]) -> Iterator[Text]:
    for name, result in results:
        if isinstance(result, CliError):
            yield Text(f"{name}: {_failure(result)}", style="bold red")
        elif not result.groups:
            yield Text(f"{name}: no groups")
        else:
            for entry in result.groups:
                yield from _block(name, result, entry)


def _block(name: str, answer: StatusAnswer, entry: PairStatus) -> Iterator[Text]:
    peer = f" of {entry.peer}:{entry.peer_group}" if entry.peer else ""
    link = f", {entry.mode}, {_link(entry, answer.now)}" if entry.mode is not None else ""
    yield Text.assemble((f"{name}:{entry.group}", "bold"), f" {entry.role}{peer}{link}")
    yield Text.assemble("  ", _state(entry), f"   lag {_lag(entry)}, {output.size(entry.lag_bytes)}")
    for words in (("written", "transferred"), ("arrived", "applied")):
        yield Text("  " + "".join(f"{word:<12}{_on_line(getattr(entry, word)):<25}" for word in words).rstrip())
    held = _holder(entry, answer.now)
    remarks = [*_remarks(entry), *([] if held == output.UNKNOWN else [f"held by {held}".replace("\n", ": ")])]
    yield from (Text(f"  {remark}") for remark in remarks)


def _on_line(item: Position) -> str:
    return _position(item).replace("\n", " ")


def _row(name: str, answer: StatusAnswer, entry: PairStatus) -> Sequence[str | Text]:
    peer = f"{entry.peer}:{entry.peer_group}" if entry.peer else output.UNKNOWN
    if entry.mode is not None:
        peer += f"\n{entry.mode}, {_link(entry, answer.now)}"
    state = _state(entry)
    for remark in _remarks(entry):
        state.append(f"\n{remark}", style="not bold")
    return (
        f"{name}:{entry.group}",
        entry.role,
        peer,
        state,
        *(_position(item) for item in (entry.written, entry.transferred, entry.arrived, entry.applied)),
        output.size(entry.lag_bytes),
        _lag(entry),
        _holder(entry, answer.now),
    )


def _state(entry: PairStatus) -> Text:
    cut = entry.connected is False and entry.state in _MIRRORED
    good = entry.state in _GOOD and not cut
    return Text(f"{entry.state}, cut" if cut else entry.state, style="" if good else "bold yellow")


def _remarks(entry: PairStatus) -> list[str]:
    blocked = _BLOCKED[entry.role] if entry.blocked else None
    return [remark for remark in (entry.reason, entry.link_reason, blocked) if remark]


def _lag(entry: PairStatus) -> str:
    return output.UNKNOWN if entry.lag_s is None and entry.state in _NO_LAG else output.seconds(entry.lag_s)


def _link(entry: PairStatus, now: int) -> str:
    if entry.connected:
        return "connected"
    if entry.last_contact is None:
        return "not connected"
    return f"not heard for {output.seconds(max(0.0, (now - entry.last_contact) / 1e9))}"


def _position(item: Position) -> str:
    if item.seq is None and item.time is None:
        return output.UNKNOWN
    return f"{output.number(item.seq)}\n{_time_of_day(item.time)}"


def _time_of_day(value: int | None) -> str:
    """The table has no room for the date; --json has everything."""
    text = output.write_time(value)
    return text.split(" ", 1)[-1]


def _holder(entry: PairStatus, now: int) -> str:
    if entry.holder is None:
        return output.UNKNOWN
    held = f"group {entry.holder}"
    if entry.holder_since is not None:
        held += f" for {output.seconds(max(0.0, (now - entry.holder_since) / 1e9))}"
    return f"{held}\n{entry.holder_why}" if entry.holder_why else held
