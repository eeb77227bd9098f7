"""``pair create``: one order over two controllers, done wholly or undone.

Owns: the sequence (secondary group, volumes, secondary side, primary side) and the way back when a step fails.
Never: touches what was there before; only what this run made is undone.

The secondary side comes first, so that a primary that takes writes for the pair always has somewhere to send them.
Every step is idempotent: the same order again finds everything there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from controllerd.management.schemas import (
    Done,
    GroupAnswer,
    GroupCreate,
    PairAnswer,
    PairCreate,
    PairVolume,
    RoleName,
    SystemAnswer,
    VolumeAnswer,
    VolumeCreate,
    format_size,
)
from mgmtctl.client import Client
from mgmtctl.errors import CliError, ExitCode
from mgmtctl.requests import build

CONNECT_LIMIT_S: Final = 5.0
"""How long the two sides may take to find each other before the order says that they have not."""
CONNECT_POLL_S: Final = 0.1
MIRRORING: Final = frozenset({"PAIR", "COPY"})


@dataclass(frozen=True, slots=True)
class PairPlan:
    """What was ordered. ``pool`` is None when the secondary's volumes must be there already."""

    primary_group: str
    secondary_group: str
    mode: Literal["async", "sync"]
    domain: str
    order: Literal["time", "sequence"] | None
    on_sync_loss: Literal["suspend", "block"]
    sync_timeout_s: float | None
    overflow: Literal["suspend", "throttle"] | None
    connections: int | None
    keep_journal: bool
    pool: str | None
    mapping: dict[str, str] = field(default_factory=dict)


def create_pair(plan: PairPlan, primary: Client, secondary: Client, *, quiet: bool) -> tuple[PairAnswer, PairAnswer]:
    """Make both sides; returns (primary side, secondary side). Raises CliError after undoing what was made."""
    undo: list[tuple[str, Callable[[], object]]] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        try:
            return _Run(plan, primary, secondary, undo, progress).run()
        except (CliError, KeyboardInterrupt):
            for what, step in reversed(undo):
                try:
                    step()
                except CliError as error:
                    sys.stderr.write(f"warning: {what} could not be undone: {error.message}\n")
            raise


class _Run:
    """One attempt; ``undo`` grows with what was made."""

    def __init__(
        self,
        plan: PairPlan,
        primary: Client,
        secondary: Client,
        undo: list[tuple[str, Callable[[], object]]],
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._primary = primary
        self._secondary = secondary
        self._undo = undo
        self._progress = progress

    def run(self) -> tuple[PairAnswer, PairAnswer]:
        plan = self._plan
        first = self._primary.get("/v1/system", SystemAnswer)
        second = self._secondary.get("/v1/system", SystemAnswer)
        if first.serial == second.serial:
            raise CliError(f"{first.name} is primary and secondary at once; name two controllers", ExitCode.USAGE)
        self._check_peer(first, second)
        self._check_peer(second, first)
        group = self._primary.get(f"/v1/groups/{plan.primary_group}", GroupAnswer)
        volumes = [
            volume for volume in self._primary.get("/v1/volumes", list[VolumeAnswer]) if volume.group == group.name
        ]
        if not volumes:
            raise CliError(f"group {first.name}:{group.name} has no volumes; create them first", ExitCode.CONFLICT)
        if unknown := set(plan.mapping) - {volume.name for volume in volumes}:
            names = ", ".join(sorted(unknown))
            raise CliError(f"--map: {names}: not in group {first.name}:{group.name}", ExitCode.NOT_FOUND)
        task = self._progress.add_task(f"pair with {second.name}", total=len(volumes) + 3)
        self._ensure_group(group)
        self._progress.advance(task)
        matched = []
        present = {volume.name: volume for volume in self._secondary.get("/v1/volumes", list[VolumeAnswer])}
        for volume in volumes:
            matched.append(self._ensure_volume(volume, present))
            self._progress.advance(task)
        secondary_side = self._create_side(self._secondary, role="secondary", peer=first, volumes=matched)
        self._progress.advance(task)
        primary_side = self._create_side(self._primary, role="primary", peer=second, volumes=matched)
        self._progress.advance(task)
        return self._wait_connected(primary_side, secondary_side)

    def _wait_connected(self, primary: PairAnswer, secondary: PairAnswer) -> tuple[PairAnswer, PairAnswer]:
        """Both sides once they have found each other, or as they are when that takes too long."""
        ends = time.monotonic() + CONNECT_LIMIT_S
        while not (primary.connected and secondary.connected) and time.monotonic() < ends:
            time.sleep(CONNECT_POLL_S)
            primary = self._present(self._primary, primary)
            secondary = self._present(self._secondary, secondary)
        return primary, secondary

    @staticmethod
    def _present(client: Client, side: PairAnswer) -> PairAnswer:
        sides = client.get(f"/v1/pairs/{side.group}", list[PairAnswer])
        return next((found for found in sides if found.pair_id == side.pair_id), side)

    def _check_peer(self, here: SystemAnswer, there: SystemAnswer) -> None:
        if there.name not in {peer.name for peer in here.peers}:
            right = f'add a [[peer]] section with name = "{there.name}" to its configuration'
            raise CliError(f"controller {here.name} has no peer {there.name}; {right}", ExitCode.CONFLICT)

    def _ensure_group(self, source: GroupAnswer) -> None:
        """The secondary's group, made like the primary's when that is wanted and it is not there."""
        name = self._plan.secondary_group
        try:
            self._secondary.get(f"/v1/groups/{name}", GroupAnswer)
        except CliError as error:
            if error.exit_code != ExitCode.NOT_FOUND or self._plan.pool is None:
                raise
            order = build(GroupCreate, name=name, durability=source.durability, overflow=source.overflow)
            self._secondary.post("/v1/groups", order, GroupAnswer)
            self._undo.append((f"group {name}", lambda: self._secondary.delete(f"/v1/groups/{name}", Done)))

    def _ensure_volume(self, source: VolumeAnswer, present: dict[str, VolumeAnswer]) -> PairVolume:
        """The counterpart of ``source``: there already and fit for it, or made."""
        plan = self._plan
        name = plan.mapping.get(source.name, source.name)
        found = present.get(name)
        where = f"{self._secondary.endpoint.name}:{name}"
        if found is None:
            if plan.pool is None:
                right = "create it, or give --create-secondary --pool POOL"
                raise CliError(f"there is no volume {where} for {source.name}; {right}", ExitCode.NOT_FOUND)
            order = build(
                VolumeCreate,
                name=name,
                size=source.size,
                pool=plan.pool,
                group=plan.secondary_group,
                block_size=source.block_size,
                description=source.description,
                allow=source.allow,
            )
            self._secondary.post("/v1/volumes", order, VolumeAnswer)
            self._undo.append((f"volume {name}", lambda: self._secondary.delete(f"/v1/volumes/{name}", Done)))
        elif found.group != plan.secondary_group:
            right = "name another with --map"
            text = f"volume {where} is in group {found.group}, not in {plan.secondary_group}; {right}"
            raise CliError(text, ExitCode.CONFLICT)
        elif plan.pool is not None and found.pool != plan.pool:
            right = f"leave --create-secondary and --pool out to take it, or give --pool {found.pool}"
            raise CliError(f"volume {where} is there already, in pool {found.pool}; {right}", ExitCode.CONFLICT)
        elif found.size != source.size:
            sizes = f"{format_size(found.size)}, {source.name} has {format_size(source.size)}"
            raise CliError(f"volume {where} has {sizes}; both must be equal", ExitCode.CONFLICT)
        return PairVolume(primary=source.name, secondary=name, key=source.key, size=source.size)

    def _create_side(
        self,
        client: Client,
        *,
        role: RoleName,
        peer: SystemAnswer,
        volumes: list[PairVolume],
    ) -> PairAnswer:
        plan = self._plan
        group, peer_group = plan.primary_group, plan.secondary_group
        if role == "secondary":
            group, peer_group = peer_group, group
        order = build(
            PairCreate,
            group=group,
            role=role,
            peer=peer.name,
            peer_group=peer_group,
            volumes=volumes,
            mode=plan.mode,
            domain=plan.domain,
            order=plan.order,
            on_sync_loss=plan.on_sync_loss,
            sync_timeout_s=plan.sync_timeout_s,
            overflow=plan.overflow,
            connections=plan.connections,
            keep_journal=plan.keep_journal or None,
        )
        answer, new = client.create("/v1/pairs", order, PairAnswer)
        if not new and answer.state not in MIRRORING:
            why = f"is there already and is {answer.state} ({answer.reason or 'no reason'})"
            right = "delete it on both sides before it is made anew"
            raise CliError(f"{client.endpoint.name}: the pair of group {group} {why}; {right}", ExitCode.CONFLICT)
        if new:

            def forget() -> None:
                # By force: the other side is not there yet, or about to be undone as well.
                client.delete(f"/v1/pairs/{group}", Done, role=role, peer=peer.name, force="true")

            self._undo.append((f"{role} side of the pair", forget))
        return answer
