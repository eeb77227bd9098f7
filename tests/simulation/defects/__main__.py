"""Plant every defect and see it caught: `python -m tests.simulation.defects`.

Exit code: 0 all were caught, 1 some were not (or the time was up before), 2 a defect does not fit the source any more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.simulation.defects.listing import DEFECTS, PARTS
from tests.simulation.defects.plant import Defect, DoesNotFit, check_fits
from tests.simulation.defects.pursuit import Limits, Results, pursue, row, table


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; returns the exit code."""
    options = _parse(arguments)
    chosen = [defect for defect in PARTS.get(options.part, DEFECTS) if options.only in defect.name]
    try:
        for defect in chosen:
            check_fits(defect)
    except DoesNotFit as error:
        print(error, file=sys.stderr)
        return 2
    results = Results(DEFECTS, options.results)
    if not options.table:
        _hunt_all(chosen, results, options)
    report = table(chosen, results)
    print(report)
    if options.report is not None:
        options.report.write_text(report + "\n")
    return 0 if all(results.catch(defect) for defect in chosen) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.defects",
        description="Plant and hunt defects.",
        epilog="All of them take about 15 minutes of computing. A hunter that finds nothing costs --timeout at most, "
        "a test file its own time limits; --minutes ends it all, and --results lets the next run go on from there.",
    )
    parser.add_argument("--seeds", type=int, default=400, help="most seeds of each hunter but the swarm")
    parser.add_argument("--swarm", type=int, default=100, help="most seeds of whole systems")
    parser.add_argument("--timeout", type=float, default=60, help="most computing seconds of a hunter for a defect")
    parser.add_argument("--minutes", type=float, help="begin no hunt after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="defects hunted at a time")
    parser.add_argument("--part", choices=sorted(PARTS), help="only the defects of this layer")
    parser.add_argument("--only", default="", help="defects whose name contains this")
    parser.add_argument("--hunter", action="append", default=[], help="only this hunter; several are tried in order")
    parser.add_argument(
        "--results", type=Path, help="a file that keeps every hunt; what is in it is not repeated, only gone on with"
    )
    parser.add_argument("--table", action="store_true", help="hunt for nothing, print the table of --results")
    parser.add_argument("--report", type=Path, help="write the table to this file")
    return parser.parse_args(arguments)


def _hunt_all(chosen: list[Defect], results: Results, options: argparse.Namespace) -> None:
    end_s = float("inf") if options.minutes is None else time.monotonic() + 60 * options.minutes
    limits = Limits(options.seeds, options.swarm, options.timeout, end_s)
    done = itertools.count(1)
    with tempfile.TemporaryDirectory(prefix="defects-") as directory, ThreadPoolExecutor(options.jobs) as pool:

        def one(defect: Defect) -> None:
            pursue(defect, Path(directory), limits, results, tuple(options.hunter))
            swarm, other, seeds, seconds, shows = row(defect, results)
            how = " ".join(filter(None, (f"swarm {swarm}", other, seeds)))
            print(f"[{next(done)}/{len(chosen)}] {defect.name}: {how}, {seconds:.0f} s: {shows}", flush=True)

        list(pool.map(one, chosen))


if __name__ == "__main__":
    sys.exit(main())
