"""Hunts for a defect in the tree that it is run in: seeds one after the other until one fails.

Owns: the hunters, by name:
    storage     random histories of a primary's storage (storage_case)
    secondary   a secondary that receives, crashes and is taken over (test_takeover_crashes)
    small       every workload of up to two operations (small_case)
    swarm       whole systems (python -m tests.simulation), from seed 1000000 on
    unit:PATH   the tests below PATH
Never: judges; what runs the seed does.

`python -m tests.simulation.defects.hunt HUNTER SEEDS AFTER SECONDS` passes AFTER seeds over, and begins none once
it has computed for SECONDS. Its last line is a JSON object of `Found`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType
from typing import Final

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
SEED_S: Final = 20
"""A seed that computes for longer than this has no end."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a hunt. ``tried``: seeds from the first on; ``by``: how the last of them failed, "": none did.

    ``seconds``: computing time.
    """

    tried: int
    by: str
    seconds: float


def hunt(hunter: str, seeds: int, after: int, limit_s: float) -> Found:
    """Try the first ``seeds`` seeds but ``after``, until one fails."""
    kind, _, path = hunter.partition(":")
    if kind == "unit":
        return Found(1, _tests(path), _computed_s())
    signal.signal(signal.SIGPROF, _endless)
    tried = after
    for seed in itertools.islice(IN_PROCESS[hunter](), after, seeds):
        if _computed_s() > limit_s:
            break
        tried += 1
        signal.setitimer(signal.ITIMER_PROF, SEED_S)
        try:
            seed()
        except BaseException as error:  # whatever it is: with the defect something is wrong that is not without it
            return Found(tried, _line(error), _computed_s())
    return Found(tried, "", _computed_s())


def _computed_s() -> float:
    return sum(os.times()[:4])


def _endless(signum: int, frame: FrameType | None) -> None:
    signal.setitimer(signal.ITIMER_PROF, 1)  # in case somebody takes it for an error of his
    raise KeyboardInterrupt(f"still computing after {SEED_S} s")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _tests(path: str) -> str:
    """Return the first test below ``path`` that failed, "" if none did.

    Raises:
        RuntimeError: the tests could not be run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed:
        return str(failed[0]).rsplit("/", 1)[-1]
    if done.returncode == 1:  # pytest-timeout ends it without a summary
        return f"no end of {path.rsplit('/', 1)[-1]}"
    if done.returncode:
        raise RuntimeError(f"pytest {path}: {done.stdout.strip()[-300:]}")
    return ""


def main() -> None:
    """Hunt as the command line says."""
    hunter, seeds, after, limit_s = sys.argv[1:]
    print(json.dumps(asdict(hunt(hunter, int(seeds), int(after), float(limit_s)))))


if __name__ == "__main__":
    main()
