"""Memory of a controller under full mixed load, at intervals: is it flat?

Owns: the run and its table. Never: judges; the suite asserts bounds on the memory that is accounted for
(tests/integration/test_host_memory.py), and how much the process has in all is for people to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from deploy.demo.processes import ProgramFailed, run
from tests.bench.load import MixedLoad, stuck_client
from tests.bench.ours import Alone
from tests.bench.subject import make_image
from tests.integration.harness import samples

MIB: Final = 1 << 20
_COLUMNS: Final = (
    ("sessions", 'remotecopy_nbd_memory_bytes{kind="sessions"}'),
    ("receive", 'remotecopy_nbd_memory_bytes{kind="receive-buffers"}'),
    ("reply", 'remotecopy_nbd_memory_bytes{kind="reply-buffers"}'),
    ("cache", "remotecopy_cache_used_bytes"),
)


def main() -> int:
    """Run, print a line per interval and the trend, and return 0; 1 if something failed."""
    options = _options()
    try:
        with tempfile.TemporaryDirectory(prefix="memory-", dir=options.directory) as name:
            rows = _run(Path(name), options)
    except ProgramFailed as error:
        print(f"memory: {error}", file=sys.stderr)
        return 1
    late = rows[len(rows) // 2 :]
    resident = [row["resident"] / MIB for row in late]
    minutes = [row["seconds"] / 60 for row in late]
    trend = statistics.linear_regression(minutes, resident).slope if len(late) > 1 else 0.0
    print(
        f"second half: {min(resident):.0f} to {max(resident):.0f} MiB resident, trend {trend:+.1f} MiB a minute;"
        f" {rows[-1]['requests']:,.0f} requests in all"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def _run(directory: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    size = options.size * MIB
    image = directory / "image"
    make_image(image, size)
    subject = Alone()
    rows = []
    with contextlib.ExitStack() as stack:
        stack.callback(subject.stop)
        uri = subject.start(directory, image)
        (server,) = subject.processes
        load = MixedLoad(uri, size, directory / "fio.log", options.seconds + 300)
        stack.callback(load.stop)
        for _ in range(options.stuck):
            stack.enter_context(stuck_client(directory / "P" / "nbd.sock", "bench", 32 * MIB))
        print("".join(f"{word:>12}" for word in ("seconds", "resident", *(name for name, _ in _COLUMNS), "requests")))
        start = time.monotonic()
        while (passed := time.monotonic() - start) < options.seconds:
            time.sleep(min(options.interval, options.seconds - passed))
            server.check()
            load.check()
            rows.append(_sample(server.pid, directory / "mgmtctl.toml", time.monotonic() - start))
            sizes = [f"{rows[-1][name] / MIB:.0f} MiB" for name in ("resident", *(name for name, _ in _COLUMNS))]
            cells = (f"{rows[-1]['seconds']:.0f}", *sizes, f"{rows[-1]['requests']:,.0f}")
            print("".join(f"{cell:>12}" for cell in cells), flush=True)
    return rows


def _sample(pid: int, client_file: Path, seconds: float) -> dict[str, float]:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    text = run(sys.executable, "-m", "mgmtctl", "--config", client_file, "metrics").output
    found = samples(text)
    requests = sum(value for name, value in found.items() if name.startswith("remotecopy_nbd_requests_total{"))
    figures = {name: found[sample] for name, sample in _COLUMNS}
    return {"seconds": seconds, "resident": pages * 4096.0, **figures, "requests": requests}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make memory ARGS=...", description="Show a controller's memory under full mixed load, at intervals."
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the run (default: 300)")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two looks (default: 10)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of the volume (default: 1024)")
    parser.add_argument("--stuck", type=int, default=2, help="clients that take no answers (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--directory", type=Path, help="where the volume lies (default: the temporary directory)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
