"""Orders about a controller as a whole: ``mgmtctl system`` and ``mgmtctl metrics``."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from controllerd.management.schemas import Done, PeerAnswer, SystemAnswer
from mgmtctl import output
from mgmtctl.options import ControllerOption, JsonOption, session_of

app = typer.Typer(no_args_is_help=True, help="The controller as a whole.")


@app.command("show", epilog="Example: mgmtctl system show -c A")
def show(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """Show which controller this is, and what is wrong with it, if anything."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/system", SystemAnswer)
    if as_json:
        output.print_json(answer)
        return
    peers = [f"{peer.name} at {peer.address} ({_link(peer)})" for peer in answer.peers]
    things = ((answer.disks, "disk"), (answer.pools, "pool"), (answer.groups, "group"), (answer.volumes, "volume"))
    output.print_fields(
        [
            ("controller", f"{answer.name}, serial {answer.serial}"),
            ("version", answer.version),
            ("running since", f"{output.wall_time(answer.started_at)} ({output.seconds(answer.uptime_s)})"),
            ("time source", answer.time_source),
            ("hosts connect to", ", ".join(answer.nbd_listen) or "none"),
            ("has", ", ".join(output.counted(count, thing) for count, thing in things)),
            ("pairs", str(answer.pairs)),
            ("open sessions", str(answer.sessions)),
            ("cache", f"{output.size(answer.cache_used_bytes)} of {output.size(answer.cache_limit_bytes)} in use"),
            ("peers", ", ".join(peers) or "none"),
            ("faults", "; ".join(answer.faults) or "none"),
        ]
    )


def _link(peer: PeerAnswer) -> str:
    if peer.connected is None:
        return peer.reason or "not in use"
    return "connected" if peer.connected else f"not connected: {peer.reason}"


@app.command("config", epilog="Example: mgmtctl system config -c A --json")
def config(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """Show the configuration in force, defaults included and secrets hidden."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/config", dict[str, Any])
    if as_json:
        output.print_json(answer)
    else:
        output.print_fields(_flat(answer, ""))


def _flat(value: object, path: str) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in _flat(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [pair for index, item in enumerate(value, 1) for pair in _flat(item, f"{path} {index}")]
    return [(path, "none" if value is None else value if isinstance(value, str) else json.dumps(value))]


@app.command("checkpoint", epilog="Example: mgmtctl system checkpoint -c A")
def checkpoint(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """Bring the disks up to date and free journal space now."""
    with session_of(context).client(controller, long=True) as client:
        with output.spinner("taking a checkpoint", quiet=as_json):
            answer = client.post("/v1/system/checkpoint", None, Done)
    output.print_done(answer, answer.message, as_json=as_json)


def metrics(context: typer.Context, controller: ControllerOption = None) -> None:
    """Print the metrics as Prometheus reads them."""
    with session_of(context).client(controller) as client:
        sys.stdout.write(client.text("/metrics"))
