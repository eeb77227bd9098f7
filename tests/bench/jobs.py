"""What a client does to a server, and the run of it: fio with its NBD engine.

Owns: fio's arguments and the reading of its report. Never: starts servers or compares results.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.processes import ProgramFailed, run

_RUN_EXTRA_S = 60.0
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Job:
    """One access pattern. block_bytes: size of a request; depth: requests in flight on each of ``clients`` connections.

    more: further options of fio. cold: the page cache is dropped first. copied: measured on pairs too.
    """

    name: str
    pattern: str
    block_bytes: int
    depth: int
    clients: int = 1
    more: tuple[str, ...] = ()
    cold: bool = False
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """Result of one run. iops: requests a second; p50_us, p99_us, max_us: time from a request to its answer in
    microseconds: what half and 99 % of the requests did not exceed, and the longest. Of reads and writes mixed, iops is
    the sum and the times are those of the slower kind."""

    iops: float
    p50_us: float
    p99_us: float
    max_us: float


JOBS = (
    Job("4k random write, depth 1", "randwrite", 4096, 1, copied=True),
    Job("4k random write, depth 32", "randwrite", 4096, 32, copied=True),
    Job("4k random read, depth 1", "randread", 4096, 1),
    Job("4k random read, depth 32", "randread", 4096, 32),
    Job("4k random 70/30 mixed, depth 32", "randrw", 4096, 32, more=("--rwmixread=70",)),
    Job("4k write and flush, 1 client", "randwrite", 4096, 1, more=("--fsync=1",)),
    Job("4k write and flush, 16 clients", "randwrite", 4096, 1, 16, more=("--fsync=1",)),
    Job("128k sequential write, depth 8", "write", 131072, 8, copied=True),
    Job("128k sequential read, depth 8", "read", 131072, 8),
    Job("4k random read, depth 32, cold", "randread", 4096, 32, cold=True),
    Job("128k sequential read, depth 8, cold", "read", 131072, 8, cold=True),
)


def run_fio(job: Job, uri: str, size: int, seconds: float, seed: int) -> Figures:
    """Run ``job`` on ``uri`` for ``seconds`` after one second of warm-up; ``size`` is the volume's, in bytes.

    A cold job has no warm-up, and ends when it has read the volume once.

    Raises ProgramFailed.
    """
    warm_up = min(1.0, seconds / 2)
    arguments = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={job.pattern}", f"--bs={job.block_bytes}",
        f"--iodepth={job.depth}", f"--numjobs={job.clients}", "--group_reporting", f"--size={size}",
        "--random_generator=tausworthe64", f"--randseed={seed}", f"--runtime={seconds * 1000:.0f}ms",
        "--percentile_list=50:99", "--output-format=json", *job.more,
    ]  # fmt: skip
    if not job.cold:
        arguments += ["--norandommap", "--time_based", f"--ramp_time={warm_up * 1000:.0f}ms"]
    output = run(*arguments, limit_s=seconds + _RUN_EXTRA_S).output
    report = json.loads(output[output.index("{") :])["jobs"][0]
    sides = [side for side in (report["read"], report["write"]) if side["total_ios"]]
    if report["error"] or not sides:
        raise ProgramFailed(f"fio: error {report['error']}, {len(sides)} kinds of requests answered")
    times = [side["clat_ns"] for side in sides]
    return Figures(
        sum(side["iops"] for side in sides),
        max(time["percentile"]["50.000000"] for time in times) / 1000,
        max(time["percentile"]["99.000000"] for time in times) / 1000,
        max(time["max"] for time in times) / 1000,
    )


def drop_page_cache() -> bool:
    """Make the kernel forget what it holds of files; False without the right to (root has it)."""
    run("sync")
    try:
        _DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True
