"""Plant every defect and see it caught: `python -m tests.simulation.defects`.

Exit code: 0 all were caught, 1 some were not, 2 a defect does not fit the source any more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.defects.listing import DEFECTS, PARTS
from tests.simulation.defects.plant import ROOT, Defect, DoesNotFit, check_fits, plant


@dataclass(frozen=True, slots=True)
class Catch:
    """What became of one defect. ``hunter`` "": nobody caught it."""

    defect: Defect
    hunter: str = ""
    seeds: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to hunt. ``swarm``: seeds of whole systems, which take longer."""

    seeds: int
    swarm: int
    timeout_s: float


def pursue(defect: Defect, directory: Path, limits: Limits, hunters: tuple[str, ...] = ()) -> Catch:
    """Plant a defect below ``directory`` and let its hunters (or ``hunters``) try, one after the other."""
    tree = directory / re.sub(r"\W+", "-", defect.name)
    plant(defect, tree)
    try:
        return _pursue(defect, tree, limits, hunters or defect.hunters)
    finally:
        shutil.rmtree(tree)


def _pursue(defect: Defect, tree: Path, limits: Limits, hunters: tuple[str, ...]) -> Catch:
    for hunter in hunters:
        most = limits.swarm if hunter == "swarm" else limits.seeds
        after = 0
        while after < most:
            catch = _hunt(tree, hunter, most, after, limits.timeout_s)
            if catch is None:
                break
            seed, by = catch
            # A seed that fails without the defect too has caught something else.
            if hunter.startswith("unit:") or _hunt(ROOT, hunter, seed, seed - 1, limits.timeout_s) is None:
                return Catch(defect, hunter, seed, by)
            after = seed
    return Catch(defect)


def _hunt(tree: Path, hunter: str, seeds: int, after: int, timeout_s: float) -> tuple[int, str] | None:
    """Hunt in ``tree``; return the seed that failed and how, None if none did in time.

    Raises:
        RuntimeError: the hunter does not run there.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.defects.hunt", hunter, str(seeds), str(after)],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"},
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    found = re.search(r"^CAUGHT seeds=(\d+) by=(.*)", done.stdout, re.MULTILINE)
    if found is None and done.returncode:
        raise RuntimeError(f"{hunter} does not run in {tree}: {done.stderr.strip()[-300:]}")
    return None if found is None else (int(found[1]), found[2])


def table(catches: list[Catch]) -> str:
    """Return the report: defect, invariants, who caught it, seeds needed, how it showed."""
    lines = ["| defect | breaks | caught by | seeds | shows as |", "| --- | --- | --- | --- | --- |"]
    for catch in catches:
        who = catch.hunter or "**NOT CAUGHT**"
        shows = catch.by.replace("|", "/")
        lines.append(f"| {catch.defect.name} | {catch.defect.breaks} | {who} | {catch.seeds or ''} | {shows} |")
    caught = sum(bool(catch.hunter) for catch in catches)
    return "\n".join([*lines, "", f"{caught} of {len(catches)} caught"])


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.defects", description="Plant and hunt defects.")
    parser.add_argument("--seeds", type=int, default=1000, help="most seeds of each hunter")
    parser.add_argument("--swarm", type=int, default=300, help="most seeds of whole systems")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each hunter")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", choices=sorted(PARTS), help="only the defects of this layer")
    parser.add_argument("--only", default="", help="defects whose name contains this")
    parser.add_argument("--hunter", action="append", default=[], help="only this hunter; several are tried in order")
    parser.add_argument("--report", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    chosen = [defect for defect in PARTS.get(options.part, DEFECTS) if options.only in defect.name]
    try:
        for defect in chosen:
            check_fits(defect)
    except DoesNotFit as error:
        print(error, file=sys.stderr)
        return 2
    hunters = tuple(options.hunter)
    limits = Limits(options.seeds, options.swarm, options.timeout)
    with tempfile.TemporaryDirectory(prefix="defects-") as directory, ThreadPoolExecutor(options.jobs) as pool:

        def one(defect: Defect) -> Catch:
            catch = pursue(defect, Path(directory), limits, hunters)
            print(f"{catch.hunter or 'NOT CAUGHT':10} {catch.seeds:6}  {defect.name}: {catch.by}", flush=True)
            return catch

        catches = list(pool.map(one, chosen))
    report = table(catches)
    print(report)
    if options.report is not None:
        options.report.write_text(report + "\n")
    return 0 if all(catch.hunter for catch in catches) else 1


if __name__ == "__main__":
    sys.exit(main())
