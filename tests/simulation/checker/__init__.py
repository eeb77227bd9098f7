"""Judges a recorded history: the invariants I1-I20, as far as they can be seen from outside.

Owns: which invariants are judged, and one pass over a history.
Never: imports the controllers' code (a contract in pyproject.toml says so), nor the simulator's.

A new invariant is one class with `see`, added to `INVARIANTS`. Several classes may carry
one name: an invariant can be broken, and seen to be, in more than one way.
"""

from __future__ import annotations

from typing import Final

from tests.simulation.checker.base import Invariant, Violation
from tests.simulation.checker.hosts import BoundedHold, NoDamagedReads, Registers, StaysUp
from tests.simulation.checker.images import Cut, Lineage, NoDamage, Prefix, WholeRecords
from tests.simulation.checker.journals import DurableFirst, JournaledFirst, MirroredFirst, Numbers, Times
from tests.simulation.checker.status import (
    Converges,
    ExplicitSuspension,
    Forward,
    HonestLag,
    Label,
    NoReunion,
    OneWriter,
    SameAgain,
)
from tests.simulation.checker.survivors import FlushedSurvives, SynchronousSurvives
from tests.simulation.checker.world import World
from tests.simulation.history import EVENTS, History

INVARIANTS: Final[tuple[type[Invariant], ...]] = (
    Prefix,
    Numbers,
    SynchronousSurvives,
    MirroredFirst,
    FlushedSurvives,
    JournaledFirst,
    DurableFirst,
    Cut,
    BoundedHold,
    WholeRecords,
    Registers,
    NoDamage,
    NoDamagedReads,
    Times,
    Forward,
    Lineage,
    NoReunion,
    HonestLag,
    ExplicitSuspension,
    Label,
    OneWriter,
    StaysUp,
    Converges,
    SameAgain,
)

NOT_JUDGED: Final[dict[str, str]] = {
    "I6": "markers are not built yet: there is no marker event, and no marker cut to compare with",
    "I12": "there is no difference map yet: a suspended pair is made anew on empty volumes, so no bit decides a copy",
    "I18": "snapshots are not built yet",
}
"""Invariants that no class judges yet, and why."""


def check(history: History) -> list[Violation]:
    """Return what does not hold, in the order in which it shows; empty: nothing was seen to break."""
    world = World(history)
    judges = [kind(world) for kind in INVARIANTS]
    seers = {event: [judge.see for judge in judges if event in judge.sees] for event in EVENTS.values()}
    for event in history.events:
        world.feed(event)
        for see in seers[type(event)]:
            see(event)
    for judge in judges:
        judge.end()
    found = [violation for judge in judges for violation in judge.violations]
    return sorted(found, key=lambda violation: violation.at)


__all__ = ["INVARIANTS", "NOT_JUDGED", "Violation", "check"]
