"""Orders about pairs: ``mgmtctl pair``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Literal

import typer

from controllerd.management.schemas import Done, PairAnswer, SystemAnswer
from mgmtctl import output
from mgmtctl.errors import CliError, ExitCode, usage_error
from mgmtctl.options import ControllerOption, JsonOption, Target, YesOption, complete_target, session_of
from mgmtctl.pair_create import PairPlan, create_pair
from mgmtctl.session import split_target

app = typer.Typer(no_args_is_help=True, help="Groups and their copies on other controllers.")

_CREATE_EXAMPLE = "Example: mgmtctl pair create A:g1 B:g1 --mode async --create-secondary --pool p"
_RoleOption = Annotated[
    Literal["primary", "secondary"] | None, typer.Option(help="Which pair, when the group is in several.")
]
_PeerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which pair, when the group is in several: the peer controller.")
]


def _both(value: str, what: str) -> tuple[str, str]:
    controller, group = split_target(value, None)
    if controller is None:
        raise usage_error(f'{what} "{value}": write CONTROLLER:GROUP, for instance A:g1')
    return controller, group


@app.command("create", epilog=_CREATE_EXAMPLE)
def create(
    context: typer.Context,
    primary: Annotated[
        str,
        typer.Argument(metavar="PRIMARY:GROUP", help="Group that hosts write to.", autocompletion=complete_target),
    ],
    secondary: Annotated[
        str, typer.Argument(metavar="SECONDARY:GROUP", help="Group that is its copy.", autocompletion=complete_target)
    ],
    mode: Annotated[
        Literal["async", "sync"],
        typer.Option(help="sync: a host write is acknowledged only when the secondary has it too."),
    ] = "async",
    create_secondary: Annotated[
        bool, typer.Option("--create-secondary", help="Make the secondary group and volumes that are missing.")
    ] = False,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="With --create-secondary: pool on the secondary.")
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="PVOL=SVOL", help="Secondary volume of another name; may be repeated."),
    ] = None,
    domain: Annotated[
        str, typer.Option(metavar="NAME", help="Groups of a domain are kept consistent together at the secondary.")
    ] = "default",
    order: Annotated[
        Literal["time", "sequence"] | None,
        typer.Option(help="How the secondary applies. Default: apply.order of its configuration."),
    ] = None,
    on_sync_loss: Annotated[
        Literal["suspend", "block"],
        typer.Option(help="The secondary does not answer: go on alone, or fail writes with EIO until it does."),
    ] = "suspend",
    sync_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.001, max=600, help="How long a write waits for it.")
    ] = None,
    overflow: Annotated[
        Literal["suspend", "throttle"] | None,
        typer.Option(help="Journal full because the secondary is slow. Default: that of the primary group."),
    ] = None,
    connections: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=16, help="TCP connections. Default: from the configuration.")
    ] = None,
    keep_journal: Annotated[
        bool, typer.Option("--keep-journal", help="Keep the journal after a failure, too, as long as there is room.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a pair of two groups: first its secondary, then its primary side; what was made is undone on failure.

    The same order given twice does nothing the second time. When the two sides do not find each other (no path, a wrong
    key), the pair is kept and the exit code is 3: nothing is mirrored until they do.
    """
    primary_name, primary_group = _both(primary, "primary")
    secondary_name, secondary_group = _both(secondary, "secondary")
    if create_secondary != (pool is not None):
        raise usage_error("--create-secondary and --pool POOL go together")
    plan = PairPlan(
        primary_group=primary_group,
        secondary_group=secondary_group,
        mode=mode,
        domain=domain,
        order=order,
        on_sync_loss=on_sync_loss,
        sync_timeout_s=sync_timeout,
        overflow=overflow,
        connections=connections,
        keep_journal=keep_journal,
        pool=pool,
        mapping=_mapping(mapping or []),
    )
    session = session_of(context)
    with session.client(primary_name, long=True) as first, session.client(secondary_name, long=True) as second:
        answers = create_pair(plan, first, second, quiet=as_json)
    if as_json:
        output.print_json(
            {"primary": answers[0].model_dump(mode="json"), "secondary": answers[1].model_dump(mode="json")}
        )
    else:
        output.print_line(
            f"pair {primary} -> {secondary} created: {mode}, {output.counted(len(answers[0].volumes), 'volume')}"
        )
    sides = ((secondary_name, answers[1]), (primary_name, answers[0]))
    apart = [f"{name} says: {side.reason or 'no reason'}" for name, side in sides if not side.connected]
    if apart:
        text = f"the pair is made, and nothing is mirrored: not connected yet; {'; '.join(apart)}"
        raise CliError(text, ExitCode.UNREACHABLE)


def _mapping(items: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        first, equals, second = item.partition("=")
        if not (first and equals and second):
            raise usage_error(f'--map "{item}": write PVOL=SVOL')
        if first in pairs or second in pairs.values():
            raise usage_error(f'--map "{item}": every volume can be named once')
        pairs[first] = second
    return pairs


@app.command("list", epilog="Example: mgmtctl pair list -c A")
def list_pairs(context: typer.Context, controller: ControllerOption = None, as_json: JsonOption = False) -> None:
    """List the controller's sides of pairs."""
    with session_of(context).client(controller) as client:
        answer = client.get("/v1/pairs", list[PairAnswer])
    if as_json:
        output.print_json(answer)
        return
    columns = ("group", "role", "peer", "state", "mode", "domain", "link", "volumes", "reason")
    rows = [
        (
            p.group,
            p.role,
            f"{p.peer}:{p.peer_group}",
            p.state,
            p.mode,
            p.domain,
            "connected" if p.connected else "not connected",
            str(len(p.volumes)),
            p.reason or "",
        )
        for p in answer
    ]
    output.print_table(output.table("", columns, rows, right=("volumes",)))


@app.command("show", epilog="Example: mgmtctl pair show A:g1")
def show(
    context: typer.Context, group: Target, controller: ControllerOption = None, as_json: JsonOption = False
) -> None:
    """Show the pairs that a group is in."""
    owner, name = split_target(group, controller)
    with session_of(context).client(owner) as client:
        answer = client.get(f"/v1/pairs/{name}", list[PairAnswer])
    if as_json:
        output.print_json(answer)
        return
    if not answer:
        raise CliError(f"group {name} is in no pair", ExitCode.NOT_FOUND)
    for index, pair in enumerate(answer):
        if index:
            output.print_line("")
        output.print_fields(_fields(pair))


def _fields(pair: PairAnswer) -> list[tuple[str, str]]:
    since = f" since {output.wall_time(pair.since)}" if pair.since is not None else ""
    sync = f", on loss {pair.on_sync_loss}, waits {output.seconds(pair.sync_timeout_s)}" if pair.mode == "sync" else ""
    volumes = [f"{volume.primary} -> {volume.secondary} ({output.size(volume.size)})" for volume in pair.volumes]
    return [
        ("group", f"{pair.group} ({pair.role})"),
        ("peer", f"{pair.peer}:{pair.peer_group}, {'connected' if pair.connected else 'not connected'}"),
        ("state", f"{pair.state}{since}"),
        ("reason", pair.reason or output.UNKNOWN),
        ("mode", f"{pair.mode}{sync}"),
        ("domain", f"{pair.domain}, order {pair.order or output.UNKNOWN}"),
        *(("volumes" if index == 0 else "", text) for index, text in enumerate(volumes)),
    ]


@app.command("suspend", epilog="Example: mgmtctl pair suspend A:g1")
def suspend(
    context: typer.Context,
    group: Target,
    role: _RoleOption = None,
    peer: _PeerOption = None,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Split a pair by order: hosts go on, nothing is transferred."""
    owner, name = split_target(group, controller)
    with session_of(context).client(owner) as client:
        answer = client.post(f"/v1/pairs/{name}/suspend", None, PairAnswer, role=role, peer=peer)
    output.print_done(
        answer, f"pair {answer.group} -> {answer.peer}:{answer.peer_group} is {answer.state}", as_json=as_json
    )


@app.command("delete", epilog="Example: mgmtctl pair delete A:g1 B:g1 --yes")
def delete(
    context: typer.Context,
    groups: Annotated[
        list[str],
        typer.Argument(
            metavar="CONTROLLER:GROUP [CONTROLLER:GROUP]",
            help="One side of the pair, or both.",
            autocompletion=complete_target,
        ),
    ],
    role: _RoleOption = None,
    peer: _PeerOption = None,
    force: Annotated[bool, typer.Option("--force", help="Although the peer cannot be told.")] = False,
    yes: YesOption = False,
    controller: ControllerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a pair: both sides when both groups are named, else one controller's side. Volumes and data stay."""
    if len(groups) > 2:
        raise usage_error(f"a pair has two sides, and {len(groups)} groups are named")
    output.confirm(f"Delete the pair of {' and '.join(groups)}?", yes=yes)
    session = session_of(context)
    messages = []
    with ExitStack() as stack:
        sides = []
        for owner, name in [split_target(group, controller) for group in groups]:
            sides.append((stack.enter_context(session.client(owner, long=True)), name))
        peers: list[str | None] = [peer] * len(sides)
        if len(sides) == 2 and peer is None:
            peers = [client.get("/v1/system", SystemAnswer).name for client, _ in reversed(sides)]
        for (client, name), other in zip(sides, peers, strict=True):
            query = {"role": role, "peer": other, "force": "true" if force else None}
            messages.append(client.delete(f"/v1/pairs/{name}", Done, **query))
    if as_json:
        output.print_json(messages[0] if len(messages) == 1 else messages)
        return
    for message in messages:
        output.print_line(message.message)
