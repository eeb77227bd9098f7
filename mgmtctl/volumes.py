"""Orders about volumes: ``mgmtctl volume``."""

from __future__ import annotations

from typing import Annotated

import typer

from controllerd.management.schemas import Done, VolumeAllow, VolumeAnswer, VolumeCreate, VolumeResize
from mgmtctl import output
from mgmtctl.host_rules import EveryoneOption, NobodyOption, RulesOption, parse_rules, rule_text
from mgmtctl.options import ControllerOption, JsonOption, SizeOption, Target, YesOption, session_of
from mgmtctl.requests import build
from mgmtctl.session import split_target

app = typer.Typer(no_args_is_help=True, help="What hosts see: logical volumes.")


@app.command("create", epilog="Example: mgmtctl volume create A:vol1 --size 1GiB --pool p --group g1")
def create(
    context: typer.Context,
    name: Target,
    size: SizeOption,
    pool: Annotated[str, typer.Option(metavar="POOL", help="Where it takes its space from.")],
    group: Annotated[str, typer.Option(metavar="GROUP", help="Group whose order of writes it shares.")],
    block_size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Preferred block size. Default: 4096.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="For people.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Hosts may not write to it.")] = False,
    to: RulesOption = None,
    nobody: NobodyOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume that reads as zeros and takes space as it is written."""
    owner, volume = split_target(name, controller)
    order = build(
        VolumeCreate,
        name=volume,
        size=size,
        pool=pool,
        group=group,
        block_size=block_size,
        description=description,
        access="read-only" if read_only else None,
        allow=parse_rules(to, everyone=False, nobody=nobody) if to or nobody else None,
    )
    with session_of(context).client(owner) as client:
        answer = client.post("/v1/volumes", order, VolumeAnswer)
    output.print_done(
        answer,
        f"volume {answer.name} created: {output.size(answer.size)} in group {answer.group}",
        as_json=as_json,
        warnings=answer.warnings,
    )


@app.command("list", epilog="Example: mgmtctl volume list -c A --json")
def list_volumes(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """List the volumes."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/volumes", list[VolumeAnswer])
    if as_json:
        output.print_json(answer)
        return
    columns = ("volume", "size", "allocated", "pool", "group", "hosts may", "sessions", "description")
    rows = [
        (
            v.name,
            output.size(v.size),
            output.size(v.allocated),
            v.pool,
            v.group,
            _access(v),
            str(len(v.sessions)),
            v.description,
        )
        for v in answer
    ]
    output.print_table(output.table("", columns, rows, right=("size", "allocated", "sessions")))


def _access(volume: VolumeAnswer) -> str:
    if not volume.visible:
        return "not open it"
    return "write" if volume.writable else "read"


@app.command("show", epilog="Example: mgmtctl volume show A:vol1")
def show(
    context: typer.Context, name: Target, controller: ControllerOption = None, as_json: JsonOption = False
) -> None:
    """Show one volume with its open sessions."""
    owner, volume = split_target(name, controller)
    with session_of(context).client(owner) as client:
        answer = client.get(f"/v1/volumes/{volume}", VolumeAnswer)
    if as_json:
        output.print_json(answer)
        return
    fields = [
        ("volume", answer.name),
        ("description", answer.description or output.UNKNOWN),
        ("size", f"{output.size(answer.size)} ({answer.size} bytes)"),
        ("allocated", output.size(answer.allocated)),
        ("pool", answer.pool),
        ("group", answer.group),
        ("block size", output.size(answer.block_size)),
        ("access", answer.access),
        ("hosts may", _access(answer)),
        ("allowed to", "every host" if answer.allow is None else "; ".join(map(rule_text, answer.allow)) or "no host"),
        ("key", f"{answer.key:#010x}"),
        ("sessions", str(len(answer.sessions))),
    ]
    sessions = [("", f"{one.id}: {one.peer} since {output.wall_time(one.opened)}") for one in answer.sessions]
    output.print_fields(fields + sessions)


@app.command(
    "allow", epilog="Example: mgmtctl volume allow A:vol1 --to network=10.1.0.0/16 --to certificate=backup,read-only"
)
def allow(
    context: typer.Context,
    name: Target,
    to: RulesOption = None,
    everyone: EveryoneOption = False,
    nobody: NobodyOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which hosts may open a volume, in place of what was said before; it counts at once.

    A host gets the most that any rule which fits it gives. For the others the volume does not exist.
    """
    owner, volume = split_target(name, controller)
    order = VolumeAllow(allow=parse_rules(to, everyone=everyone, nobody=nobody))
    with session_of(context).client(owner) as client:
        answer = client.put(f"/v1/volumes/{volume}/allow", order, VolumeAnswer)
    if as_json:
        output.print_json(answer)
    else:
        rules = "every host" if answer.allow is None else "; ".join(map(rule_text, answer.allow)) or "no host"
        output.print_line(f"volume {answer.name} is for {rules}")


@app.command("connections", epilog="Example: mgmtctl volume connections A:vol1")
def connections(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[CONTROLLER:]VOLUME", help="Default: all volumes.")] = None,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the hosts that have volumes open."""
    owner, volume = (controller, None) if name is None else split_target(name, controller)
    with session_of(context).client(owner) as client:
        if volume is None:
            answer = client.get("/v1/volumes", list[VolumeAnswer])
        else:
            answer = [client.get(f"/v1/volumes/{volume}", VolumeAnswer)]
    if as_json:
        output.print_json([{"volume": item.name, **one.model_dump()} for item in answer for one in item.sessions])
        return
    columns = (
        "volume", "id", "client", "since", "tls", "certificate", "may", "requests", "errors", "read", "written",
        "in flight", "memory",
    )  # fmt: skip
    rows = [
        (
            item.name,
            str(one.id),
            one.peer,
            output.wall_time(one.opened),
            one.tls or output.UNKNOWN,
            ", ".join(one.certificate) or output.UNKNOWN,
            "read" if one.read_only else "write",
            str(one.requests),
            str(one.errors),
            output.size(one.bytes_read),
            output.size(one.bytes_written),
            str(one.in_flight),
            output.size(one.memory),
        )
        for item in answer
        for one in item.sessions
    ]
    right = ("id", "requests", "errors", "read", "written", "in flight", "memory")
    output.print_table(output.table("", columns, rows, right=right))


@app.command("disconnect", epilog="Example: mgmtctl volume disconnect A:vol1 17")
def disconnect(
    context: typer.Context,
    name: Target,
    number: Annotated[int, typer.Argument(metavar="ID", help='As in "mgmtctl volume connections".')],
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Close one host's connection; the host may connect again, unless the volume is no longer allowed to it."""
    owner, volume = split_target(name, controller)
    with session_of(context).client(owner) as client:
        answer = client.delete(f"/v1/volumes/{volume}/sessions/{number}", Done)
    if as_json:
        output.print_json(answer)
    else:
        output.print_line(answer.message)


@app.command("resize", epilog="Example: mgmtctl volume resize A:vol1 --size 2GiB")
def resize(
    context: typer.Context,
    name: Target,
    size: SizeOption,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a volume larger; hosts that connect from then on see the new size."""
    owner, volume = split_target(name, controller)
    with session_of(context).client(owner) as client:
        answer = client.patch(f"/v1/volumes/{volume}", build(VolumeResize, size=size), VolumeAnswer)
    output.print_done(
        answer, f"volume {answer.name} has {output.size(answer.size)} now", as_json=as_json, warnings=answer.warnings
    )


@app.command("delete", epilog="Example: mgmtctl volume delete A:vol1 --yes")
def delete(
    context: typer.Context,
    name: Target,
    yes: YesOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a volume that no host has open, with what is on it."""
    owner, volume = split_target(name, controller)
    output.confirm(f"Delete volume {name} and what is on it?", yes=yes)
    with session_of(context).client(owner, long=True) as client:
        with output.spinner(f"deleting volume {volume}", quiet=as_json):
            answer = client.delete(f"/v1/volumes/{volume}", Done)
    output.print_done(answer, answer.message, as_json=as_json)
