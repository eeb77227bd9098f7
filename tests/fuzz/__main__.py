"""`python -m tests.fuzz`: run targets under atheris, each for a time, with coverage to guide it.

Owns: the list of targets, and one process for each (libFuzzer ends the process it runs in).
Never: keeps findings by itself; libFuzzer writes the input that broke the contract and says where.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {
    "nbd_handshake": "controllerd.targets.nbd",
    "nbd_transmission": "controllerd.targets.nbd",
    "transfer_frames": "controllerd.replication",
    "transfer_link": "controllerd.replication",
    "transfer_primary": "controllerd.replication",
    "transfer_secondary": "controllerd.replication",
    "journal": "controllerd.storage",
    "catalogue": "controllerd.storage",
    "data_directory": "controllerd.storage",
    "configuration": "controllerd.config",
    "management": "controllerd.management",
    "management_port": "controllerd.management",
    "mgmtctl_answers": "mgmtctl",
}
"""Module with a function ``run``, and the package whose coverage guides it."""


def main() -> int:
    """Run the targets named, or all; return how many had findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", default=sorted(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (60)")
    parser.add_argument("--corpus", type=Path, help="keep inputs that reach new code here, and begin with them")
    parser.add_argument("--reproduce", type=Path, help="run one input, written by an earlier finding, and no more")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.reproduce:
        importlib.import_module(f"tests.fuzz.{options.targets[0]}").run(options.reproduce.read_bytes())
        return 0
    if options.inside:
        _fuzz(options.targets[0], options.corpus, options.seconds)
    with tempfile.TemporaryDirectory() as scratch:
        return sum(_run(name, options.corpus or Path(scratch), options.seconds) for name in options.targets)


def _run(name: str, directory: Path, seconds: int) -> int:
    corpus = directory / name
    corpus.mkdir(parents=True, exist_ok=True)
    print(f"== {name}: {seconds} s", flush=True)
    arguments = [name, "--inside", f"--seconds={seconds}", f"--corpus={corpus}"]
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], check=False)
    print(f"== {name}: {'nothing found' if not done.returncode else 'FINDING'}", flush=True)
    return int(done.returncode != 0)


def _fuzz(name: str, corpus: Path, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=[TARGETS[name]]):
        run = importlib.import_module(f"tests.fuzz.{name}").run
    arguments = [
        f"-max_total_time={seconds}",
        "-max_len=2000",
        "-len_control=20",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    atheris.Setup([name, str(corpus), *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
