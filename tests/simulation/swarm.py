"""Swarm: many seeds on all cores, and the report.

Owns: running seeds, judging them, shrinking what fails, and the figures.
Never: decides what is right; world and checker do.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.simulation import faults, orders
from tests.simulation.checker import check
from tests.simulation.plan import Plan, draw
from tests.simulation.shrink import Cut, shrink
from tests.simulation.world import World

SHRINKS_MAX = 3
"""Failing seeds that are shrunk in one report; the others are only named."""


@dataclass(slots=True)
class Result:
    """One run, small enough for another process. ``problems``: lines "invariant: text", none when all is well."""

    seed: int
    problems: list[str]
    marks: Counter[str]
    writes: int
    simulated_s: float
    faults: int
    hash: str
    cpu_s: float

    @property
    def invariants(self) -> set[str]:
        """Names of what does not hold."""
        return {problem.partition(":")[0] for problem in self.problems}


@dataclass(slots=True)
class Report:
    """Sums over many runs."""

    seeds: int = 0
    writes: int = 0
    simulated_s: float = 0.0
    faults: int = 0
    cpu_s: float = 0.0
    elapsed_s: float = 0.0
    marks: Counter[str] = field(default_factory=Counter)
    failed: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one run."""
        self.seeds += 1
        self.writes += result.writes
        self.simulated_s += result.simulated_s
        self.faults += result.faults
        self.cpu_s += result.cpu_s
        self.marks.update(result.marks)
        if result.problems:
            self.failed.append(result)

    def lines(self) -> list[str]:
        """The report, for people."""
        minutes = self.elapsed_s / 60 or 1.0
        return [
            f"seeds              {self.seeds}  ({self.seeds / (self.elapsed_s or 1):.1f} a second)",
            f"host writes        {self.writes}  ({self.writes / minutes:.0f} a minute)",
            f"writes a seed      {self.writes / max(1, self.seeds):.0f}",
            f"simulated hours    {self.simulated_s / 3600:.2f}  ({self.simulated_s / 3600 / minutes:.2f} a minute)",
            f"faults             {self.faults}  ({self.faults / minutes:.0f} a minute)",
            f"CPU seconds        {self.cpu_s:.1f}",
            f"marks reached      {len(self.marks)}",
            f"failed seeds       {len(self.failed)}",
        ]


def plan_of(seed: int, cut: Cut | None = None) -> Plan:
    """Return what ``seed`` means, without what ``cut`` leaves out."""
    plan = draw(seed, faults.KINDS, orders.KINDS, faults.RARE, orders.RARE)
    return plan if cut is None else plan.without(set(cut.faults), set(cut.orders), cut.steps)


def run_seed(seed: int, cut: Cut | None = None) -> Result:
    """Run and judge one seed."""
    begun_s = time.process_time()
    world = World(plan_of(seed, cut))
    try:
        outcome = world.run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"run: raised {error!r} at {where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return Result(seed, [*world.problems, problem], world.marks, 0, 0.0, 0, "", time.process_time() - begun_s)
    violations = check(outcome.history)
    return Result(
        seed,
        [*outcome.problems, *(f"{found.invariant}: at {found.at:.3f} {found.text}" for found in violations)],
        outcome.marks,
        outcome.writes,
        outcome.simulated_s,
        outcome.faults,
        outcome.hash,
        time.process_time() - begun_s,
    )


def shrink_seed(seed: int) -> Cut:
    """Return the smallest part of a failing seed's plan that still fails."""
    plan = plan_of(seed)
    known = run_seed(seed).invariants
    return shrink(
        [fault.number for fault in plan.faults],
        [order.number for order in plan.orders],
        max(host.steps for host in plan.hosts),
        lambda cut: bool(run_seed(seed, cut).invariants & known),
    )


def run_many(seeds: Iterable[int], jobs: int, end_s: float | None = None) -> Iterator[Result]:
    """Run seeds in ``jobs`` processes, and yield each result; begin no more after ``end_s`` (`time.monotonic`)."""
    gc.collect()
    gc.freeze()  # what is here already need not be looked at again for each seed
    in_time = itertools.takewhile(lambda _: end_s is None or time.monotonic() < end_s, seeds)  # they may be endless
    if jobs == 1:
        yield from map(run_seed, in_time)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        waiting = []
        for seed in in_time:
            waiting.append(pool.apply_async(run_seed, (seed,)))
            if len(waiting) >= 4 * jobs:
                yield waiting.pop(0).get()
        for each in waiting:
            yield each.get()
