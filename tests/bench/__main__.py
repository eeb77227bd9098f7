"""``make bench``: measure this system and its peers with the same client, file size and machine, in the same run.

Owns: the order of the runs and the options. Never: judges by one run: every round measures all servers one after the
other, and what is reported are medians over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from deploy.demo.processes import ProgramFailed, run
from tests.bench import ours, peers, report
from tests.bench.jobs import JOBS, Job, drop_page_cache, run_fio
from tests.bench.subject import Subject, make_image

_HISTORY = Path(__file__).parent / "history" / "runs.jsonl"


def main() -> int:
    """Measure, print, and return 0; 1 if something failed. A missed target is a result, not a failure."""
    options = _options()
    subjects = [
        one for one in _subjects(tcp=options.tcp) if not options.only or any(word in one.name for word in options.only)
    ]
    jobs = [job for job in JOBS if not options.jobs or any(word in job.name for word in options.jobs)]
    about = _about(options)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    results = report.Results()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
            _measure(Path(name), subjects, jobs, options, results)
    except ProgramFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what follows is what was measured", file=sys.stderr)
    for line in report.tables(results, jobs, [one.name for one in subjects]):
        print(line)
    print("\nTargets (medians of the rounds' ratios)")
    for line in report.verdict_lines(results):
        print(line)
    if options.json:
        document = report.as_document(results, about)
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.history:
        report.append_history(_HISTORY, results, about)
    return 0


def _subjects(*, tcp: bool) -> list[Subject]:
    alone: list[Subject] = [peers.QemuNbd(tcp=tcp), peers.NbdkitFile(tcp=tcp), ours.Alone(tcp=tcp)]
    if tcp:
        return alone
    return [
        *alone,
        peers.QemuMirror("background"),
        ours.Pair("async"),
        peers.QemuMirror("write-blocking"),
        ours.Pair("sync"),
    ]


def _measure(
    directory: Path,
    subjects: Sequence[Subject],
    jobs: Sequence[Job],
    options: argparse.Namespace,
    results: report.Results,
) -> None:
    """Start everything, then for each round and job measure one server after the other."""
    size = options.size << 20
    image = directory / "image"
    make_image(image, size)
    with contextlib.ExitStack() as stack:
        uris = {}
        for number, subject in enumerate(subjects):
            place = directory / str(number)
            place.mkdir()
            stack.callback(subject.stop)
            uris[subject.name] = subject.start(place, image)
            subject.settle()
        for round_number in range(options.rounds):
            for job in jobs:
                for subject in subjects:
                    if subject.copies and not job.copied:
                        continue
                    # Written-back pages of the run before must not slow down this one.
                    run("sync", "--file-system", directory)
                    if job.cold and not drop_page_cache():
                        continue  # not root
                    figures = run_fio(job, uris[subject.name], size, options.seconds, seed=1 + round_number)
                    subject.settle()
                    results.add(round_number, job, subject.name, figures)
                    print(
                        f"round {round_number + 1}  {job.name:<34}{subject.name:<30}{figures.iops:>10,.0f} IOPS",
                        flush=True,
                    )


def _about(options: argparse.Namespace) -> dict[str, object]:
    commit = ""
    with contextlib.suppress(ProgramFailed):  # no git, or no repository
        commit = run("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty").output.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "transport": "tcp" if options.tcp else "unix",
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "volume_mib": options.size,
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...",
        description="Measure this system against qemu-nbd, nbdkit and qemu-storage-daemon, with fio's NBD engine.",
        epilog="Example: make bench ARGS=\"--only controllerd --jobs 'depth 32' --rounds 5\"",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a rough look: one round, short runs, a small volume, no history"
    )
    parser.add_argument("--rounds", type=int, help="times that everything is measured (default: 3)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default: 4)")
    parser.add_argument("--size", type=int, metavar="MIB", help="size of the volumes (default: 1024)")
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="only servers with WORD in their name; may be repeated"
    )
    parser.add_argument(
        "--jobs", action="append", metavar="WORD", help="only jobs with WORD in their name; may be repeated"
    )
    parser.add_argument(
        "--tcp", action="store_true", help="over TCP on loopback, without the pairs (default: UNIX sockets)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    parser.add_argument(
        "--directory", type=Path, help="where the volumes lie (default: the system's temporary directory)"
    )
    parser.add_argument("--no-history", dest="history", action="store_false", help=f"add nothing to {_HISTORY.name}")
    options = parser.parse_args()
    rounds, seconds, size = (1, 1.5, 256) if options.quick else (3, 4.0, 1024)
    options.rounds = options.rounds or rounds
    options.seconds = options.seconds or seconds
    options.size = options.size or size
    options.history = options.history and not options.quick
    return options


if __name__ == "__main__":
    sys.exit(main())
