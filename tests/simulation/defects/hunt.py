"""Hunts for a defect in the tree that it is run in: seeds one after the other until one fails.

Owns: the hunters, by name:
    storage     random histories of a primary's storage (storage_case)
    secondary   a secondary that receives, crashes and is taken over (test_takeover_crashes)
    small       every workload of up to two operations (small_case)
    swarm       whole systems (python -m tests.simulation), from seed 1000000 on
    unit:PATH   the tests below PATH
Never: judges; what runs the seed does.

`python -m tests.simulation.defects.hunt HUNTER SEEDS [AFTER]` prints "CAUGHT seeds=N by=..." and exits with 1, or exits
with 0. AFTER: so many seeds are passed over.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from controllerd.storage import journal
from tests.simulation.disk import Loss
from tests.simulation.shrink import Cut
from tests.simulation.small_case import OPERATIONS, PIECE, SmallCase
from tests.simulation.storage_case import MAX_WRITE, Case
from tests.simulation.swarm import run_seed
from tests.simulation.test_takeover_crashes import Secondary, check_and_receive

Seeds = Iterator[Callable[[], None]]


def _pieces_of(size: int) -> None:
    """Let segments be small enough that cases fill, roll and recycle them."""
    vars(journal)["PIECE_MAX"] = size


def storage() -> Seeds:
    """Random histories of a primary."""
    _pieces_of(MAX_WRITE + 1024)
    return (Case(seed).run for seed in itertools.count())


def secondary() -> Seeds:
    """Random lives of a secondary, with a takeover at the end."""
    _pieces_of(16 << 10)
    return (partial(_one_secondary, seed) for seed in itertools.count())


def _one_secondary(seed: int) -> None:
    case = Secondary(seed)
    rng = case.rng
    try:
        case.machine.run(case.create)
        for _ in range(rng.randint(1, 4)):
            case.machine.run(check_and_receive(case), cut_in=rng.choice((None, rng.randint(20, 150))))
            case.machine.crash(rng.choice(list(Loss)))
        case.machine.run(case.check)
        case.machine.run(case.take_over)
        case.machine.crash(rng.choice(list(Loss)))
        case.machine.run(case.check)
    finally:
        case.machine.destroy()


def small() -> Seeds:
    """Small workloads, all of them."""
    _pieces_of(PIECE)
    tried: set[bytes] = set()
    workloads = itertools.chain.from_iterable(itertools.product(OPERATIONS, repeat=length) for length in (1, 2))
    return (SmallCase(workload, tried).run for workload in workloads)


def swarm() -> Seeds:
    """Whole systems."""
    return (partial(_one_system, seed) for seed in itertools.count(1_000_000))


def _one_system(seed: int) -> None:
    problems = run_seed(seed, Cut()).problems
    assert not problems, problems[0]


IN_PROCESS = {"storage": storage, "secondary": secondary, "small": small, "swarm": swarm}


def hunt(hunter: str, seeds: int, after: int = 0) -> str | None:
    """Try the first ``seeds`` seeds but ``after``; return what caught the defect, None if nothing did."""
    kind, _, path = hunter.partition(":")
    if kind == "unit":
        return _tests(path)
    for number, seed in enumerate(itertools.islice(IN_PROCESS[hunter](), after, seeds), after + 1):
        try:
            seed()
        except BaseException as error:  # whatever it is: with the defect something is wrong that is not without it
            return f"seeds={number} by={_line(error)}"
    return None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _tests(path: str) -> str | None:
    done = _run("-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", path)
    caught = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return f"seeds=1 by={caught[0].rsplit('/', 1)[-1]}" if caught else None


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def main() -> int:
    """Hunt as the command line says."""
    caught = hunt(sys.argv[1], *map(int, sys.argv[2:]))
    if caught is None:
        return 0
    print(f"CAUGHT {caught}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
