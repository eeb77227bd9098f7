"""What a client does to a server, and the run of it: fio with its NBD engine.

Owns: fio's arguments and the reading of its report. Never: starts servers or compares results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from deploy.demo.processes import ProgramFailed, run

_RUN_EXTRA_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """One access pattern. block_bytes: size of a request; depth: requests in flight."""

    name: str
    pattern: str
    block_bytes: int
    depth: int

    @property
    def writes(self) -> bool:
        return "write" in self.pattern


@dataclass(frozen=True, slots=True)
class Figures:
    """Result of one run. iops: requests a second; mean_us, p99_us: time from a request to its answer in microseconds,
    its mean and what 99 % of the requests did not exceed."""

    iops: float
    mean_us: float
    p99_us: float


JOBS = (
    Job("4k random write, depth 1", "randwrite", 4096, 1),
    Job("4k random write, depth 32", "randwrite", 4096, 32),
    Job("4k random read, depth 1", "randread", 4096, 1),
    Job("4k random read, depth 32", "randread", 4096, 32),
    Job("128k sequential write, depth 8", "write", 131072, 8),
    Job("128k sequential read, depth 8", "read", 131072, 8),
)


def run_fio(job: Job, uri: str, size: int, seconds: float, seed: int) -> Figures:
    """Run ``job`` on ``uri`` for ``seconds`` after one second of warm-up; ``size`` is the volume's, in bytes.

    Raises ProgramFailed.
    """
    warm_up = min(1.0, seconds / 2)
    arguments = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={job.pattern}", f"--bs={job.block_bytes}",
        f"--iodepth={job.depth}", f"--size={size}", "--norandommap", "--random_generator=tausworthe64",
        f"--randseed={seed}", "--time_based", f"--ramp_time={warm_up * 1000:.0f}ms",
        f"--runtime={seconds * 1000:.0f}ms", "--percentile_list=99", "--output-format=json",
    ]  # fmt: skip
    output = run(*arguments, limit_s=seconds + _RUN_EXTRA_S).output
    report = json.loads(output[output.index("{") :])["jobs"][0]
    side = report["write" if job.writes else "read"]
    if report["error"] or not side["total_ios"]:
        raise ProgramFailed(f"fio: error {report['error']}, {side['total_ios']} requests")
    latency = side["clat_ns"]
    return Figures(side["iops"], latency["mean"] / 1000, latency["percentile"]["99.000000"] / 1000)
