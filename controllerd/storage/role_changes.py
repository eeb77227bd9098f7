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
from controllerd.storage.received import Applied


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
            for order in restarts:
                restart(
                    order.group,
                    role=order.role,
                    generation=order.generation,
                    last_seq=order.last_seq,
                    last_origin=order.last_origin,
                    last_time=order.last_time,
                    numbered_here=order.numbered_here,
                )
            return [order.group for order in restarts]

        await self._change_groups([order.group for order in restarts], change)

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
            _change_role(group, role, last_origin)
            return [group]

        await self._change_groups([group], change)


def restart(
    group: Group, *, role: Role, generation: int, last_seq: int, last_origin: int, last_time: int, numbered_here: bool
) -> None:
    """Begin a new journal: the next record is ``last_seq + 1``.

    The caller has taken a checkpoint first, so that recovery needs nothing of the old
    journal, and takes another with this as its change.

    Raises:
        JournalFailed: no new segment could be begun.
    """
    incarnation = group.incarnation + 1
    group.facts.start_ordinal = group.journal.reset(last_seq, incarnation)
    group.facts.incarnations = [(last_seq + 1, incarnation)]
    group.pending.clear()
    group.role = role
    group.generation = generation
    group.last_seq = group.staged_seq = last_seq
    group.last_origin = last_origin
    group.last_time = max(group.last_time, last_time) if role is Role.PRIMARY else last_time
    if role is Role.PRIMARY:
        group.write_time.observe(group.last_time)
    group.applied = Applied(last_seq, group.last_time, last_origin)
    group.facts.numbered_here = numbered_here
    group.destaged_mark = (last_seq, group.last_time, last_origin)
    group.retention.clear()
    group.acks.restart(last_seq)
    group.update_accepting()


def _change_role(group: Group, role: Role, last_origin: int | None) -> None:
    """Change the role in place: journal, numbers and consumers stay (synchronous secondaries).

    The caller has made everything visible before a group becomes primary, and takes a
    checkpoint with this as its change.
    """
    group.role = role
    if last_origin is not None:
        group.last_origin = group.applied.origin = last_origin
        group.destaged_mark = (group.destaged_mark[0], group.destaged_mark[1], last_origin)
    group.update_accepting()


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
