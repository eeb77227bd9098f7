"""``mgmtctl takeover``: what would be lost, and the order itself."""

from __future__ import annotations

from typing import Annotated

import typer

from controllerd.management.schemas import TakeoverAnswer, TakeoverGroup, TakeoverOrder
from mgmtctl import output
from mgmtctl.errors import usage_error
from mgmtctl.options import JsonOption, YesOption, complete_controller, session_of
from mgmtctl.requests import build


def takeover(
    context: typer.Context,
    controller: Annotated[
        str,
        typer.Argument(
            metavar="CONTROLLER", help="Controller whose copies are to be used.", autocompletion=complete_controller
        ),
    ],
    domain: Annotated[
        str, typer.Option(metavar="NAME", help="Apply domain whose groups are taken over together.")
    ] = "default",
    preview: Annotated[bool, typer.Option("--preview", help="Only say what would be lost; change nothing.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a controller's secondary volumes writable, at the latest point that is consistent over all groups.

    First it is said up to which write time they are current and what would be missing; then it is asked.
    """
    order = build(TakeoverOrder, domain=domain)
    with session_of(context).client(controller, long=True) as client:
        if preview or not yes:
            if as_json and not preview:
                raise usage_error("--json cannot ask: give --yes, or --preview")
            answer = client.get("/v1/takeover", TakeoverAnswer, domain=domain)
            if preview and as_json:
                output.print_json(answer)
            else:
                _show(answer)
            if preview:
                return
            output.confirm(f"Take over domain {domain} at {controller}?", yes=False)
        with output.spinner(f"taking over at {controller}", quiet=as_json):
            answer = client.post("/v1/takeover", order, TakeoverAnswer)
    if as_json:
        output.print_json(answer)
    else:
        _show(answer)


def _show(answer: TakeoverAnswer) -> None:
    verb = "would be" if answer.preview else "is"
    what = "preview, nothing was changed" if answer.preview else f"took {output.seconds(answer.rto_s)} (RTO)"
    output.print_fields(
        [
            ("takeover", f"domain {answer.domain}; {what}"),
            ("image", f"{verb} consistent up to {output.point(answer.cut_time)}"),
            ("missing (RPO)", _missing(answer)),
            ("held back by", _holder(answer)),
        ]
    )
    output.print_line("")
    columns = ("group", "primary", "state", "last in image", "last at primary", "never arrived", "unusable", "volumes")
    rows = [_row(group) for group in answer.groups]
    output.print_table(output.table("", columns, rows))
    lost = [(f"{g.group}/{v.volume}", str(v.writes), output.size(v.bytes)) for g in answer.groups for v in g.unusable]
    if lost:
        output.print_line("\narrived, and cannot be used because something older is missing:")
        output.print_table(output.table("", ("volume", "writes", "bytes"), lost, right=("writes", "bytes")))
    output.warn(answer.warnings)


def _missing(answer: TakeoverAnswer) -> str:
    """What is missing for certain, and what may be: silence is never told as "nothing"."""
    known = "unknown" if answer.rpo_known_s is None else f"{_plain(answer.rpo_known_s)} known"
    heard = f"last heard {output.moment(answer.unknown_since)}"
    if answer.unheard_why:
        heard += f"; {answer.unheard_why}"
    return f"{known}; the primary may have acknowledged up to {output.seconds(answer.unknown_s)} more ({heard})"


def _plain(value: float) -> str:
    return output.seconds(value) if value else "0 s"


def _holder(answer: TakeoverAnswer) -> str:
    if answer.holder is None:
        return output.UNKNOWN
    return f"group {answer.holder}" + (f": {answer.holder_why}" if answer.holder_why else "")


def _row(group: TakeoverGroup) -> tuple[str, ...]:
    known = output.number(group.primary_seq)
    if group.primary_age_s is not None:
        known += f" ({output.seconds(group.primary_age_s)} ago)"
    return (
        group.group,
        f"{group.peer}:{group.peer_group}, {group.mode}",
        group.state,
        str(group.cut_seq),
        known,
        _amount(group.missing_writes, group.missing_bytes),
        _amount(group.unusable_writes, group.unusable_bytes) if group.unusable_writes else "nothing",
        ", ".join(group.volumes),
    )


def _amount(writes: int | None, size: int | None) -> str:
    if writes is None:
        return "unknown"
    return f"{output.counted(writes, 'write')}, {output.size(size)}" if writes else "none known"
