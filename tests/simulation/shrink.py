"""Shrinking: the smallest plan of a seed that still fails.

Owns: leaving out faults, then orders, then steps of the hosts; and the line that replays what is left.
Never: changes what is left in: every part of a plan has its own random stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left out of a seed's plan; ``steps``: most steps of each host, None: all."""

    faults: frozenset[int] = field(default_factory=frozenset)
    orders: frozenset[int] = field(default_factory=frozenset)
    steps: int | None = None

    def command(self, seed: int) -> str:
        """The line that runs what is left."""
        line = f"python -m tests.simulation --seed {seed}"
        if self.faults:
            line += f" --without-faults {_numbers(self.faults)}"
        if self.orders:
            line += f" --without-orders {_numbers(self.orders)}"
        if self.steps is not None:
            line += f" --steps {self.steps}"
        return line


def _numbers(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def shrink(faults: list[int], orders: list[int], steps: int, fails: Callable[[Cut], bool]) -> Cut:
    """Return the smallest cut plan found that ``fails``; the whole plan is known to."""
    cut = Cut()
    gone = _leave_out(faults, lambda some: fails(Cut(frozenset(some))))
    cut = Cut(gone)
    gone_orders = _leave_out(orders, lambda some: fails(Cut(cut.faults, frozenset(some))))
    cut = Cut(cut.faults, gone_orders)
    low, high = 0, steps  # fails with ``high``, not known to with ``low``
    while low < high:
        middle = (low + high) // 2
        if fails(Cut(cut.faults, cut.orders, middle)):
            high = middle
        else:
            low = middle + 1
    return cut if high == steps else Cut(cut.faults, cut.orders, high)


def _leave_out(parts: list[int], fails: Callable[[set[int]], bool]) -> frozenset[int]:
    """Return the parts without which it still fails: all, then half of those left, down to one by one."""
    gone: set[int] = set()
    size = len(parts)
    while size:
        left = [part for part in parts if part not in gone]
        for start in range(0, len(left), size):
            tried = gone | set(left[start : start + size])
            if fails(tried):
                gone = tried
        size //= 2
    return frozenset(gone)
