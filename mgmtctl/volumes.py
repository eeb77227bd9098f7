"""Orders about volumes: ``mgmtctl volume``."""

from __future__ import annotations

from typing import Annotated

import typer

from controllerd.management.schemas import Done, VolumeAnswer, VolumeCreate, VolumeResize
from mgmtctl import output
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
        ("key", f"{answer.key:#010x}"),
        ("sessions", str(len(answer.sessions))),
    ]
    sessions = [("", ", ".join(f"{key} {value}" for key, value in item.items())) for item in answer.sessions]
    output.print_fields(fields + sessions)


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
