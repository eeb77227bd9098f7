"""Orders about capacity: ``mgmtctl disk`` and ``mgmtctl pool``."""

from __future__ import annotations

from typing import Annotated

import typer

from controllerd.management.schemas import DiskAnswer, DiskCreate, PoolAnswer, PoolCreate, PoolGrow
from mgmtctl import output
from mgmtctl.options import ControllerOption, JsonOption, OptionalSizeOption, Target, session_of
from mgmtctl.requests import build
from mgmtctl.session import split_target

disk_app = typer.Typer(no_args_is_help=True, help="Files or block devices that give capacity.")
pool_app = typer.Typer(no_args_is_help=True, help="Disks cut into regions that volumes take space from.")


@disk_app.command("create", epilog="Example: mgmtctl disk create A:d1 --size 10GiB")
def create_disk(
    context: typer.Context,
    name: Target,
    size: OptionalSizeOption = None,
    path: Annotated[
        str | None, typer.Option(metavar="PATH", help="File or device on the controller. Default: disks/NAME.")
    ] = None,
    erase: Annotated[bool, typer.Option("--erase", help="Take it although it holds data, which is lost.")] = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a file with SIZE, or take an existing file or block device."""
    owner, disk = split_target(name, controller)
    order = build(DiskCreate, name=disk, path=path, size=size, erase=erase)
    with session_of(context).client(owner, long=True) as client:
        with output.spinner(f"making disk {disk}", quiet=as_json):
            answer = client.post("/v1/disks", order, DiskAnswer)
    output.print_done(
        answer, f"disk {answer.name} created: {output.size(answer.size)} at {answer.path}", as_json=as_json
    )


@disk_app.command("list", epilog="Example: mgmtctl disk list -c A")
def list_disks(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """List the disks."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/disks", list[DiskAnswer])
    if as_json:
        output.print_json(answer)
        return
    rows = [(d.name, output.size(d.size), d.pool or output.UNKNOWN, d.path, d.fault or "none") for d in answer]
    output.print_table(output.table("", ("disk", "size", "pool", "path", "fault"), rows, right=("size",)))


@pool_app.command("create", epilog="Example: mgmtctl pool create A:p --disk d1 --disk d2")
def create_pool(
    context: typer.Context,
    name: Target,
    disks: Annotated[list[str], typer.Option("--disk", metavar="DISK", help="A disk of it; may be repeated.")],
    region_size: OptionalSizeOption = None,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a pool of disks that are in none."""
    owner, pool = split_target(name, controller)
    order = build(PoolCreate, name=pool, disks=disks, region_size=region_size)
    with session_of(context).client(owner) as client:
        answer = client.post("/v1/pools", order, PoolAnswer)
    output.print_done(
        answer, f"pool {answer.name} created: {output.size(answer.size)} on {', '.join(answer.disks)}", as_json=as_json
    )


@pool_app.command("add-disk", epilog="Example: mgmtctl pool add-disk A:p --disk d3")
def add_disk(
    context: typer.Context,
    name: Target,
    disk: Annotated[str, typer.Option("--disk", metavar="DISK", help="A disk that is in no pool.")],
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a pool larger by a disk; hosts and copies that found it full go on by themselves."""
    owner, pool = split_target(name, controller)
    order = build(PoolGrow, disk=disk)
    with session_of(context).client(owner) as client:
        answer = client.post(f"/v1/pools/{pool}/disks", order, PoolAnswer)
    output.print_done(
        answer, f"pool {answer.name} has {output.size(answer.size)} on {', '.join(answer.disks)}", as_json=as_json
    )


@pool_app.command("list", epilog="Example: mgmtctl pool list -c A")
def list_pools(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """List the pools with their free space."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/pools", list[PoolAnswer])
    if as_json:
        output.print_json(answer)
        return
    columns = ("pool", "size", "free", "provisioned", "region size", "disks")
    rows = [
        (p.name, *(output.size(value) for value in (p.size, p.free, p.provisioned, p.region_size)), ", ".join(p.disks))
        for p in answer
    ]
    output.print_table(output.table("", columns, rows, right=columns[1:5]))
    output.warn(warning for pool in answer for warning in pool.warnings)
