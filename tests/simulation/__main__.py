"""Simulate: many seeds with a report, or one seed again.

    python -m tests.simulation --seeds 1000:500            seeds 1000 to 1499
    python -m tests.simulation --minutes 5                 fresh seeds for so long
    python -m tests.simulation --seed 17 --without-faults 0,3 --steps 12

Exit code: 0 all is well, 1 a seed failed (a line `FAILED seed=N ...` for each), 2 a mark was not reached.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from pathlib import Path

from tests.simulation.marks import missing_marks
from tests.simulation.shrink import Cut
from tests.simulation.swarm import SHRINKS_MAX, Report, Result, plan_of, run_many, run_seed, shrink_seed
from tests.simulation.world import World


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit code."""
    options = _parse(arguments)
    if options.seed is not None:
        cut = Cut(frozenset(options.without_faults), frozenset(options.without_orders), options.steps)
        return _run_one(options.seed, cut, options.history)
    return _run_many(options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Simulate whole remote copy systems."
    )
    parser.add_argument("--seeds", help="FIRST:COUNT, or COUNT fresh ones")
    parser.add_argument("--minutes", type=float, help="begin no seed after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--marks", action="store_true", help="print what was reached how often; fail if something was not"
    )
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--without-faults", type=_numbers, default=[], help="numbers of faults to leave out")
    parser.add_argument("--without-orders", type=_numbers, default=[], help="numbers of orders to leave out")
    parser.add_argument("--steps", type=int, help="most steps of each host")
    parser.add_argument("--history", type=Path, help="write the history of --seed to this file")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _run_one(seed: int, cut: Cut, history: Path | None) -> int:
    plan = plan_of(seed, cut)
    print(f"seed {seed}: {plan.topology}, {plan.time_source} times, order {plan.order}, {plan.durability}")
    for each in (*plan.faults, *plan.orders):
        print(f"  {each.at:6.3f} s  {each.number}: {each.kind}")
    if history is not None:
        World(plan).run().history.save(history)
    result = run_seed(seed, cut)
    print(f"{result.writes} writes, {result.simulated_s:.1f} simulated s, hash {result.hash}")
    return _say_failed(result, cut.command(seed)) if result.problems else 0


def _say_failed(result: Result, command: str) -> int:
    for problem in result.problems[:10]:
        invariant, _, text = problem.partition(": ")
        print(f"FAILED seed={result.seed} invariant={invariant} {text}")
    print(f"  again: {command}", flush=True)
    return 1


def _run_many(options: argparse.Namespace) -> int:
    first, count = _range(options.seeds, options.minutes)
    print(f"seeds from {first} on", flush=True)
    begun_s = time.monotonic()
    end_s = None if options.minutes is None else begun_s + 60 * options.minutes
    report = Report()
    seeds = itertools.count(first) if count is None else range(first, first + count)
    for result in run_many(seeds, options.jobs, end_s):
        report.add(result)
        if result.problems:
            shrunk = len(report.failed) <= SHRINKS_MAX
            _say_failed(result, (shrink_seed(result.seed) if shrunk else Cut()).command(result.seed))
    report.elapsed_s = time.monotonic() - begun_s
    print("\n".join(report.lines()))
    missing = missing_marks(report.marks)
    if options.marks:
        for mark, hits in sorted(report.marks.items()):
            print(f"{hits:8d}  {mark}")
    for mark in missing:
        print(f"{'NOT REACHED' if options.marks else 'not reached'}: {mark}")
    if report.failed:
        return 1
    return 2 if options.marks and missing else 0


def _range(seeds: str | None, minutes: float | None) -> tuple[int, int | None]:
    fresh = random.SystemRandom().randrange(1 << 40)
    if seeds is None:
        return fresh, None if minutes is not None else 100
    first, _, count = seeds.rpartition(":")
    return int(first) if first else fresh, int(count)


if __name__ == "__main__":
    sys.exit(main())
