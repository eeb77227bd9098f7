"""Changes of groups' roles: in place, or with a new journal; and refusing host writes meanwhile.

Owns: that a change is durable before a host can write in the new role.
Never: decides that a role is to change (pair orders and takeovers do).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from controllerd.model.errors import Busy
from controllerd.model.pair_state import Role
from controllerd.storage.checkpoint import Checkpointer
from controllerd.storage.group import Group


@dataclass(frozen=True, slots=True)
class Restart:
    """How a group's journal begins anew: the next record is ``last_seq + 1``."""

    group: Group
    role: Role
    generation: int
    last_seq: int
    last_origin: int = 0
    last_time: int = 0
    numbered_here: bool = True


class RoleChanges:
    """Orders on the roles of groups, made durable by ``checkpointer``."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer

    async def restart_groups(self, restarts: Sequence[Restart]) -> None:
        """Begin groups' journals anew in another role; durable on return, all together (takeover, pair orders).

        What is visible now stays; what is pending is dropped. Hosts may not write meanwhile.
        """

        def change() -> list[Group]:
            for restart in restarts:
                restart.group.restart(
                    role=restart.role,
                    generation=restart.generation,
                    last_seq=restart.last_seq,
                    last_origin=restart.last_origin,
                    last_time=restart.last_time,
                    numbered_here=restart.numbered_here,
                )
            return [restart.group for restart in restarts]

        await self._change_groups([restart.group for restart in restarts], change)

    async def _change_groups(self, groups: Sequence[Group], change: Callable[[], Sequence[Group]]) -> None:
        """Take a checkpoint, and another with ``change``; refuse host writes until that is durable.

        Else a write could be acknowledged in the new role, and a crash would go back to the old one.
        """
        with refusing(groups, "is changing its role"):
            await self._checkpointer.checkpoint(needed=groups)
            await self._checkpointer.checkpoint(change, needed=groups)

    async def restart_group(
        self, group: Group, *, role: Role, generation: int, last_seq: int, last_origin: int = 0, last_time: int = 0,
        numbered_here: bool = True,
    ) -> None:  # fmt: skip
        """`restart_groups` for one group."""
        await self.restart_groups([Restart(group, role, generation, last_seq, last_origin, last_time, numbered_here)])

    async def change_role(self, group: Group, role: Role, *, last_origin: int | None = None) -> None:
        """Change a group's role in place: its journal goes on. Durable on return."""

        def change() -> list[Group]:
            group.change_role(role, last_origin)
            return [group]

        await self._change_groups([group], change)


@contextlib.contextmanager
def refusing(groups: Sequence[Group], why: str) -> Iterator[None]:
    """Refuse host writes meanwhile; what was refused before or comes on top (a fence, a fault) stays."""
    refusals = {group: (group.refused, Busy(f"group {group.name} {why}")) for group in groups}
    for group, (_, ours) in refusals.items():
        group.refuse_writes(ours)
    try:
        yield
    finally:
        for group, (before, ours) in refusals.items():
            if group.refused is ours:
                group.refuse_writes(before)
