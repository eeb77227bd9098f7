"""What an invariant's checker is.

Owns: the verdict, and how events reach a checker.
Never: knows any one invariant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tests.simulation.checker.world import World
from tests.simulation.history import Event


@dataclass(frozen=True, slots=True)
class Violation:
    """``invariant`` does not hold at ``at`` seconds."""

    invariant: str
    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.3f} s: {self.text}"


class Invariant(ABC):
    """Sees events once, after ``world`` has taken them in, and then the end. A new one is one small class."""

    name: ClassVar[str]
    sees: ClassVar[tuple[type[Event], ...]]
    """Kinds of events that `see` is called with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []

    @abstractmethod
    def see(self, event: Event) -> None:
        """Judge one event."""

    def end(self) -> None:  # noqa: B027 - most have nothing to say at the end
        """The history is over."""

    def wrong(self, text: str) -> None:
        """Report what does not hold now."""
        self.violations.append(Violation(self.name, self.world.now, text))
