"""What a benchmark run says: medians over paired runs, ratios to peers, targets, and a line of history.

Owns: the arithmetic and the layout. Never: starts anything; figures come in as they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.jobs import Figures, Job

ALONE = "controllerd"
ASYNC_PAIR = "controllerd, async pair"
SYNC_PAIR = "controllerd, sync pair"
_WRITE = "4k random write, depth 32"
_READ = "4k random read, depth 32"


@dataclass(frozen=True, slots=True)
class Target:
    """``subject`` shall reach ``factor`` times the requests a second of ``reference`` in ``job``."""

    job: str
    subject: str
    factor: float
    reference: str


TARGETS = (
    Target(_WRITE, ALONE, 1.0, "qemu-nbd"),
    Target(_READ, ALONE, 1.0, "nbdkit file"),
    Target(_WRITE, ASYNC_PAIR, 0.5, ALONE),
    Target(_WRITE, ASYNC_PAIR, 2.5, "qemu mirror, background"),
    Target(_WRITE, SYNC_PAIR, 2.0, "qemu mirror, write-blocking"),
)


@dataclass
class Results:
    """All figures of a run: ``rounds[n][job name][subject name]``. Runs of one round and job followed each other, so
    they are compared as pairs: what the machine did meanwhile touched both."""

    rounds: list[dict[str, dict[str, Figures]]] = field(default_factory=list)

    def add(self, round_number: int, job: Job, subject: str, figures: Figures) -> None:
        while len(self.rounds) <= round_number:
            self.rounds.append({})
        self.rounds[round_number].setdefault(job.name, {})[subject] = figures

    def of(self, job: str, subject: str) -> list[Figures]:
        """The figures of all rounds, in their order; empty if it was not measured."""
        return [one[job][subject] for one in self.rounds if subject in one.get(job, {})]

    def ratios(self, job: str, subject: str, reference: str) -> list[float]:
        """Requests a second of ``subject`` over those of ``reference``, for each round that measured both."""
        both = [one[job] for one in self.rounds if {subject, reference} <= one.get(job, {}).keys()]
        return [measured[subject].iops / measured[reference].iops for measured in both]


def tables(results: Results, jobs: Sequence[Job], subjects: Sequence[str]) -> Iterator[str]:
    """Lines with one table a job: medians, and for requests a second the lowest and highest round too."""
    for job in jobs:
        yield ""
        yield f"{job.name} ({len(results.rounds)} rounds)"
        yield f"  {'server':<30}{'IOPS':>10}{'lowest':>10}{'highest':>10}{'MiB/s':>9}{'mean µs':>10}{'p99 µs':>10}"
        for subject in subjects:
            if figures := results.of(job.name, subject):
                iops = sorted(one.iops for one in figures)
                rate = median(iops) * job.block_bytes / (1 << 20)
                mean_us, p99_us = median(one.mean_us for one in figures), median(one.p99_us for one in figures)
                yield (
                    f"  {subject:<30}{median(iops):>10,.0f}{iops[0]:>10,.0f}{iops[-1]:>10,.0f}{rate:>9,.0f}"
                    f"{mean_us:>10,.0f}{p99_us:>10,.0f}"
                )


def verdicts(results: Results, targets: Sequence[Target] = TARGETS) -> Iterator[tuple[Target, float]]:
    """Each target that this run can judge, with the median of the rounds' ratios."""
    for target in targets:
        if ratios := results.ratios(target.job, target.subject, target.reference):
            yield target, median(ratios)


def verdict_lines(results: Results) -> Iterator[str]:
    """Lines that say for each target whether it is met, and by how much."""
    for target, ratio in verdicts(results):
        lowest, highest = (pick(results.ratios(target.job, target.subject, target.reference)) for pick in (min, max))
        yield (
            f"  {'met   ' if ratio >= target.factor else 'MISSED'} {target.job}: {target.subject} is {ratio:.2f} x "
            f"{target.reference} ({lowest:.2f} to {highest:.2f}; target {target.factor:.2f})"
        )


def as_document(results: Results, about: dict[str, object]) -> dict[str, object]:
    """Everything measured and judged, for JSON. ``about`` says of what and how."""
    return {
        "about": about,
        "rounds": [
            {job: {subject: asdict(figures) for subject, figures in measured.items()} for job, measured in one.items()}
            for one in results.rounds
        ],
        "targets": [
            {**asdict(target), "ratio": ratio, "met": ratio >= target.factor} for target, ratio in verdicts(results)
        ],
    }


def append_history(path: Path, results: Results, about: dict[str, object]) -> None:
    """Add one line to the history: ``about``, and the median requests a second of each job and server."""
    names = {(job, subject) for one in results.rounds for job, measured in one.items() for subject in measured}
    medians: dict[str, dict[str, int]] = {}
    for job, subject in sorted(names):
        medians.setdefault(job, {})[subject] = round(median(one.iops for one in results.of(job, subject)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as history:
        history.write(json.dumps({**about, "iops": medians}, ensure_ascii=False) + "\n")
