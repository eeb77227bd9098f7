"""Orders about volume groups: ``mgmtctl group``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from controllerd.management.schemas import Done, GroupAnswer, GroupCreate, GroupForgotten, PairAnswer
from mgmtctl import output
from mgmtctl.options import ControllerOption, JsonOption, OptionalSizeOption, Target, YesOption, session_of
from mgmtctl.requests import build
from mgmtctl.session import split_target

app = typer.Typer(no_args_is_help=True, help="Volumes whose writes share one order, journal and copy.")


@app.command("create", epilog="Example: mgmtctl group create A:g1 --durability stable --journal-bytes 4GiB")
def create(
    context: typer.Context,
    name: Target,
    durability: Annotated[
        Literal["cache", "stable"] | None,
        typer.Option(help="Acknowledged writes survive a crash of the daemon (cache), or power loss too (stable)."),
    ] = None,
    overflow: Annotated[
        Literal["suspend", "throttle"] | None,
        typer.Option(help="Journal full because a peer is slow: suspend the pair, or let hosts wait."),
    ] = None,
    journal_bytes: OptionalSizeOption = None,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a group; what is not given comes from the section 'defaults' of the controller's configuration."""
    owner, group = split_target(name, controller)
    order = build(GroupCreate, name=group, durability=durability, overflow=overflow, journal_bytes=journal_bytes)
    with session_of(context).client(owner) as client:
        answer = client.post("/v1/groups", order, GroupAnswer)
    journal = output.size(answer.journal_bytes)
    output.print_done(
        answer, f"group {answer.name} created: durability {answer.durability}, journal {journal}", as_json=as_json
    )


@app.command("list", epilog="Example: mgmtctl group list -c A")
def list_groups(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """List the groups."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/groups", list[GroupAnswer])
    if as_json:
        output.print_json(answer)
        return
    columns = ("group", "role", "volumes", "last number", "durable", "applied", "durability", "journal", "fault")
    rows = [
        (
            g.name,
            g.role,
            str(len(g.volumes)),
            output.number(g.written.seq),
            str(g.durable_seq),
            output.number(g.applied.seq),
            g.durability,
            f"{output.size(g.journal_used_bytes)} of {output.size(g.journal_bytes)}",
            g.fault or "none",
        )
        for g in answer
    ]
    output.print_table(output.table("", columns, rows, right=("volumes", "last number", "durable", "applied")))


@app.command("show", epilog="Example: mgmtctl group show A:g1")
def show(
    context: typer.Context, name: Target, controller: ControllerOption = None, as_json: JsonOption = False
) -> None:
    """Show one group."""
    owner, group = split_target(name, controller)
    with session_of(context).client(owner) as client:
        answer = client.get(f"/v1/groups/{group}", GroupAnswer)
    if as_json:
        output.print_json(answer)
        return
    used = f"{output.size(answer.journal_used_bytes)} of {output.size(answer.journal_bytes)} in use"
    output.print_fields(
        [
            ("group", answer.name),
            ("role", answer.role),
            ("volumes", ", ".join(answer.volumes) or "none"),
            ("durability", answer.durability),
            ("overflow", answer.overflow),
            ("journal", used),
            ("written", _position(answer.written.seq, answer.written.time)),
            ("durable", f"number {answer.durable_seq}"),
            ("applied", _position(answer.applied.seq, answer.applied.time)),
            ("bytes journaled", output.size(answer.bytes_written)),
            ("takes writes", "yes" if answer.accepting else "hosts wait for room"),
            ("generation", f"{answer.generation} ({answer.incarnation})"),
            ("fault", answer.fault or "none"),
        ]
    )


def _position(seq: int | None, time: int | None) -> str:
    return f"number {output.number(seq)}, write time {output.write_time(time)}"


@app.command("delete", epilog="Example: mgmtctl group delete A:g1 --yes")
def delete(
    context: typer.Context,
    name: Target,
    yes: YesOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a group that has neither volumes nor pairs."""
    owner, group = split_target(name, controller)
    output.confirm(f"Delete group {name} and its journal?", yes=yes)
    with session_of(context).client(owner) as client:
        answer = client.delete(f"/v1/groups/{group}", Done)
    output.print_done(answer, answer.message, as_json=as_json)


@app.command("recover", epilog="Example: mgmtctl group recover A:g1")
def recover(
    context: typer.Context, name: Target, controller: ControllerOption = None, as_json: JsonOption = False
) -> None:
    """Try the recovery of a held group again, once its disk or journal is back; no restart is needed.

    A group whose disk failed while it was in use needs a restart of the controller, and the order says so.
    """
    owner, group = split_target(name, controller)
    with session_of(context).client(owner, long=True) as client:
        answer = client.post(f"/v1/groups/{group}/recover", None, GroupAnswer)
    warnings = [] if answer.fault is None else [answer.fault]
    text = f"group {answer.name} recovered: {_position(answer.written.seq, answer.written.time)}"
    output.print_done(answer, text, as_json=as_json, warnings=warnings)


@app.command("forget", epilog="Example: mgmtctl group forget A:g1 --yes")
def forget(
    context: typer.Context,
    name: Target,
    yes: YesOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a group whose journal or disk failed: its volumes and ALL THEIR DATA here are lost, its pairs deleted.

    For a group that group recover cannot bring back. Says what is lost before it asks. Other groups go on, and the
    peers keep their volumes and are told. A group that works is refused.
    """
    owner, group = split_target(name, controller)
    with session_of(context).client(owner, long=True) as client:
        volumes = client.get(f"/v1/groups/{group}", GroupAnswer).volumes
        pairs = client.get(f"/v1/pairs/{group}", list[PairAnswer])
        output.warn([f"everything in {_volumes(volumes)} of group {name} is lost for good", *map(_pair_loss, pairs)])
        output.confirm(f"Forget group {name}?", yes=yes)
        answer = client.post(f"/v1/groups/{group}/forget", None, GroupForgotten)
    later = [
        f"{pair.peer} was not connected: it hears that its pair with {group} is gone when it is reached"
        for pair in answer.pairs
        if not pair.told
    ]
    output.print_done(
        answer, f"group {answer.group} forgotten, and {_volumes(answer.volumes)}", as_json=as_json, warnings=later
    )


def _volumes(names: list[str]) -> str:
    return f"{'volume' if len(names) == 1 else 'volumes'} {', '.join(names)}" if names else "no volume"


def _pair_loss(pair: PairAnswer) -> str:
    other = f"{pair.peer}:{pair.peer_group}"
    kept = (
        "hosts go on there without this copy" if pair.role == "secondary" else "the copy there is not updated any more"
    )
    return f"the pair with {other} is deleted here; {kept}; delete its other side with: mgmtctl pair delete {other}"
