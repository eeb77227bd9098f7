"""What a benchmark run says: medians over paired runs, ratios to peers, targets, and a line of history.

Owns: the arithmetic and the layout. Never: starts anything; figures come in as they were measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from tests.bench.jobs import Figures, Job

ALONE = "controllerd"
ASYNC_PAIR = "controllerd, async pair"
SYNC_PAIR = "controllerd, sync pair"
_WRITE = "4k random write, depth 32"
_READ = "4k random read, depth 32"
_COMMIT_1 = "4k write and flush, 1 client"
_COMMIT_16 = "4k write and flush, 16 clients"
Figure = Literal["iops", "p50_us", "p99_us"]


@dataclass(frozen=True, slots=True)
class Target:
    """``subject`` shall reach ``factor`` times the requests a second of ``reference`` in ``job``; of a time, it shall
    not exceed that."""

    job: str
    subject: str
    factor: float
    reference: str
    figure: Figure = "iops"

    def met(self, ratio: float) -> bool:
        """Whether ``ratio``, subject to reference, is good enough."""
        return ratio >= self.factor if self.figure == "iops" else ratio <= self.factor


TARGETS = (
    Target(_WRITE, ALONE, 1.5, "qemu-nbd"),
    Target(_WRITE, ALONE, 1.0, "nbdkit file"),
    Target(_READ, ALONE, 1.5, "nbdkit file"),
    Target("4k random write, depth 1", ALONE, 1.0, "qemu-nbd", "p50_us"),
    Target("4k random read, depth 1", ALONE, 1.0, "qemu-nbd", "p50_us"),
    Target("4k random 70/30 mixed, depth 32", ALONE, 1.0, "qemu-nbd", "p99_us"),
    Target(_COMMIT_1, ALONE, 1.0, "qemu-nbd"),
    Target(_COMMIT_1, ALONE, 1.0, "nbdkit file"),
    Target(_COMMIT_16, ALONE, 4.0, "qemu-nbd"),
    Target(_COMMIT_16, ALONE, 1.0, "nbdkit file"),
    Target("128k sequential write, depth 8", ALONE, 1.0, "qemu-nbd"),
    Target("128k sequential read, depth 8", ALONE, 1.0, "nbdkit file"),
    Target("4k random read, depth 32, cold", ALONE, 0.9, "qemu-nbd"),
    Target("128k sequential read, depth 8, cold", ALONE, 0.9, "qemu-nbd"),
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

    def ratios(self, target: Target) -> list[float]:
        """The target's figure of its subject over that of its reference, for each round that measured both."""
        wanted = {target.subject, target.reference}
        both = [one[target.job] for one in self.rounds if wanted <= one.get(target.job, {}).keys()]
        return [
            getattr(measured[target.subject], target.figure) / getattr(measured[target.reference], target.figure)
            for measured in both
        ]


def tables(results: Results, jobs: Sequence[Job], subjects: Sequence[str]) -> Iterator[str]:
    """Lines with one table a job: medians, and for requests a second the lowest and highest round too."""
    for job in jobs:
        yield ""
        yield f"{job.name} ({len(results.rounds)} rounds)"
        heads = ("IOPS", "lowest", "highest", "MiB/s", "p50 µs", "p99 µs", "max µs")
        yield f"  {'server':<30}" + "".join(f"{head:>10}" for head in heads)
        for subject in subjects:
            if figures := results.of(job.name, subject):
                iops = sorted(one.iops for one in figures)
                rate = median(iops) * job.block_bytes / (1 << 20)
                p50_us, p99_us = median(one.p50_us for one in figures), median(one.p99_us for one in figures)
                longest_us = max(one.max_us for one in figures)
                yield (
                    f"  {subject:<30}{median(iops):>10,.0f}{iops[0]:>10,.0f}{iops[-1]:>10,.0f}{rate:>10,.0f}"
                    f"{p50_us:>10,.0f}{p99_us:>10,.0f}{longest_us:>10,.0f}"
                )


def verdicts(results: Results, targets: Sequence[Target] = TARGETS) -> Iterator[tuple[Target, float]]:
    """Each target that this run can judge, with the median of the rounds' ratios."""
    for target in targets:
        if ratios := results.ratios(target):
            yield target, median(ratios)


def verdict_lines(results: Results) -> Iterator[str]:
    """Lines that say for each target whether it is met, and by how much."""
    for target, ratio in verdicts(results):
        ratios = results.ratios(target)
        what = "" if target.figure == "iops" else f"{target.figure.removesuffix('_us')} of "
        yield (
            f"  {'met   ' if target.met(ratio) else 'MISSED'} {target.job}: {what}{target.subject} is {ratio:.2f} x "
            f"{target.reference} ({min(ratios):.2f} to {max(ratios):.2f}; target {target.factor:.2f})"
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
            {**asdict(target), "ratio": ratio, "met": target.met(ratio)} for target, ratio in verdicts(results)
        ],
    }


def append_history(path: Path, results: Results, about: dict[str, object]) -> None:
    """Add one line to the history: ``about``, and for each job and server the median requests a second."""
    names = {(job, subject) for one in results.rounds for job, measured in one.items() for subject in measured}
    medians: dict[str, dict[str, int]] = {}
    for job, subject in sorted(names):
        medians.setdefault(job, {})[subject] = round(median(one.iops for one in results.of(job, subject)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as history:
        history.write(json.dumps({**about, "iops": medians}, ensure_ascii=False) + "\n")
