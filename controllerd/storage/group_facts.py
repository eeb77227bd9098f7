"""What the catalogue keeps of a group.

Owns: the entry's shape, and taking it from a group.
Never: writes the catalogue (catalogue.py does).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controllerd.model.pair_state import Role
from controllerd.storage.acknowledge import Durability

if TYPE_CHECKING:
    from controllerd.storage.group import Group


@dataclass(slots=True)
class GroupFacts:
    """What the catalogue keeps of a group. Sequence numbers and times are those of the checkpoint."""

    group_id: int
    durability: Durability = "cache"
    overflow: str = "suspend"
    journal_bytes: int = 1 << 30
    role: str = Role.PRIMARY.value
    numbered_here: bool = True
    generation: int = 0
    incarnations: list[tuple[int, int]] = field(default_factory=lambda: [(1, 1)])
    destaged: int = 0
    destaged_time: int = 0
    destaged_origin: int = 0
    retained: int = 0
    start_ordinal: int = 1
    bytes_written: int = 0


def group_document(group: Group, mark: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """The group as the catalogue keeps it, destaged up to ``mark`` (default: the last checkpoint)."""
    facts = group.facts
    destaged, time, origin = mark or (facts.destaged, facts.destaged_time, facts.destaged_origin)
    return {
        "group_id": facts.group_id,
        "durability": facts.durability,
        "overflow": facts.overflow,
        "journal_bytes": facts.journal_bytes,
        "role": group.role.value,
        "numbered_here": facts.numbered_here,
        "generation": group.generation,
        "incarnations": [list(item) for item in facts.incarnations],
        "destaged": destaged,
        "destaged_time": time,
        "destaged_origin": origin,
        # A held group's journal is not known, so what its consumers say they need may long be gone from it.
        "retained": facts.retained if group.read_error else group.retention.lowest(destaged),
        "start_ordinal": facts.start_ordinal,
        "bytes_written": group.bytes_written,
    }


def fresh_group_id(taken: set[int]) -> int:
    """Return the lowest group id that is not taken."""
    return next(number for number in itertools.count(1) if number not in taken)
