"""Metadata contexts: what a client can ask BLOCK_STATUS about, and what it may negotiate.

Owns: the names, their numbers on a connection, and the states each one reports.
Never: parses options or requests (negotiation.py and transmission.py do).

``remotecopy:write-time`` describes nothing about blocks: negotiating it changes the
payload of WRITE (spec §3.4), and a context is the one thing that any client library can
negotiate without knowing what it means. A server that does not know it does not offer it.

``remotecopy:dirty`` is for whoever copies only what changed: bit 0 of a state says that some
copy of the volume may not have these bytes durably. A volume without a copy does not offer it.

Source: proto.md, "Metadata querying"; RC ¶26 (hosts that give a write time); spec §3.7 (differences).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controllerd.targets.nbd.ports import Volume
from controllerd.targets.nbd.wire import State

_HOLE: Final = int(State.HOLE | State.ZERO)
_DIRTY: Final = 1
"""As in QEMU's ``qemu:dirty-bitmap:`` contexts."""

States = Callable[[Volume, int, int], list[tuple[int, int]]]
"""(volume, offset, length) -> (length, state) runs, at least one, covering the range or a part from its start."""


@dataclass(frozen=True, slots=True)
class Context:
    """One context. ``number`` identifies it on every connection; ``offered``: whether a volume has it."""

    number: int
    name: str
    states: States
    offered: Callable[[Volume], bool]


def _allocation(volume: Volume, offset: int, length: int) -> list[tuple[int, int]]:
    return [(size, _HOLE if hole else 0) for size, hole in volume.extents(offset, length)]


def _dirty(volume: Volume, offset: int, length: int) -> list[tuple[int, int]]:
    return [(size, _DIRTY if differs else 0) for size, differs in volume.differing(offset, length)]


def _nothing(_volume: Volume, _offset: int, length: int) -> list[tuple[int, int]]:
    return [(length, 0)]


def _always(_volume: Volume) -> bool:
    return True


def _copied(volume: Volume) -> bool:
    return volume.copied


ALLOCATION: Final = Context(1, "base:allocation", _allocation, _always)
WRITE_TIME: Final = Context(2, "remotecopy:write-time", _nothing, _always)
DIRTY: Final = Context(3, "remotecopy:dirty", _dirty, _copied)
CONTEXTS: Final = (ALLOCATION, WRITE_TIME, DIRTY)


def listed(volume: Volume, queries: list[str]) -> list[Context]:
    """Return a volume's contexts that match a LIST_META_CONTEXT; a bare ``namespace:`` stands for all in it."""
    return [
        context
        for context in CONTEXTS
        if context.offered(volume)
        and (
            not queries
            or any(
                query == context.name or (query.endswith(":") and context.name.startswith(query)) for query in queries
            )
        )
    ]


def selected(volume: Volume, queries: list[str]) -> list[Context]:
    """Return a volume's contexts that a SET_META_CONTEXT names; unknown names and bare namespaces select nothing."""
    return [context for context in CONTEXTS if context.name in queries and context.offered(volume)]
