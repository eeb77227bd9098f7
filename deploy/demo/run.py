"""``make demo``: three sites, real data, a disaster in the middle, and the far site takes over.

Owns: the story, step by step, and what is claimed at its end.
Never: reaches into a controller; everything goes through mgmtctl, hostsim and NBD clients, as an administrator would.

    hosts ---> C ---synchronous---> A ---asynchronous---> B
               |____ kill -9 _______|                     takes over
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from deploy.demo.filesystem import Writer, verify
from deploy.demo.hosts import Checked, Hosts
from deploy.demo.orders import Orders
from deploy.demo.processes import ProgramFailed
from deploy.demo.site import Controller, Site
from deploy.demo.verdicts import Verdicts

_GROUPS = {"office": ("accounts1", "log"), "branch": ("accounts2", "accounts3", "files")}
_BANK = (("office", "accounts1"), ("branch", "accounts2"), ("branch", "accounts3"), ("office", "log"))
_SIZES_MIB = {"files": 128}
_SIZE_MIB = 32
_DISK = "1GiB"


def main() -> int:
    """Run the demonstration. Returns 0 if every claim held, 1 if one did not, 2 if it could not be carried out."""
    options = _options()
    directory = Path(tempfile.mkdtemp(prefix="remotecopy-demo-"))
    demo = Demo(directory)
    try:
        demo.run(options.seconds)
    except (ProgramFailed, OSError) as error:
        print(f"\nThe demo could not be carried out: {error}", file=sys.stderr)
        print(f"What the daemons said is in {directory}", file=sys.stderr)
        demo.stop()
        return 2
    except KeyboardInterrupt:
        demo.stop()
        shutil.rmtree(directory, ignore_errors=True)
        return 130
    for line in demo.verdicts.lines():
        print(line)
    if options.keep:
        _keep(demo)
    demo.stop()
    shutil.rmtree(directory, ignore_errors=True)
    return 0 if demo.verdicts.good else 1


class Demo:
    """The whole story; ``stop`` ends whatever still runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.site = Site(directory)
        self.orders = Orders(self.site.client_file)
        self.verdicts = Verdicts()
        self._hosts = Hosts(directory)
        self._writer: Writer | None = None

    def run(self, seconds: float) -> None:
        """Tell it all; hosts work for ``seconds`` before the disaster."""
        self._start()
        self._make_volumes()
        self._use_volumes(seconds)
        self._disaster()
        cut_time = self._take_over(self.site.b, "the far site")
        self._judge_far_site(cut_time)
        self._judge_near_site()

    def stop(self) -> None:
        """End hosts and daemons, and let go of mounts."""
        self._hosts.stop()
        if self._writer is not None:
            self._writer.close()
        self.site.stop()

    def _start(self) -> None:
        _say("Three controllers on this machine, from the examples in deploy/")
        for controller in reversed(self.site.controllers):
            controller.start()
            print(f"  controllerd --config {controller.config}   (process {controller.pid})")

    def _make_volumes(self) -> None:
        _say("Disks and pools everywhere, volumes in two groups at C, pairs C -> A (sync) and A -> B (async)")
        show = self.orders.show
        for name in ("C", "A", "B"):
            show("disk", "create", f"{name}:disk", "--size", _DISK)
            show("pool", "create", f"{name}:pool", "--disk", "disk")
        for group, volumes in _GROUPS.items():
            show("group", "create", f"C:{group}")
            for volume in volumes:
                size = f"{_SIZES_MIB.get(volume, _SIZE_MIB)}MiB"
                show("volume", "create", f"C:{volume}", "--size", size, "--pool", "pool", "--group", group)
        for primary, secondary, mode in (("C", "A", "sync"), ("A", "B", "async")):
            for group in _GROUPS:
                show("pair", "create", f"{primary}:{group}", f"{secondary}:{group}", "--mode", mode,
                     "--create-secondary", "--pool", "pool")  # fmt: skip

    def _use_volumes(self, seconds: float) -> None:
        _say("A real ext4 file system, and a bank with one mainframe and two open hosts")
        self._writer = Writer(
            self.site.c.uri("files"), self.directory / "files", _SIZES_MIB["files"] << 20, self._write_time
        )
        self._hosts.begin(_bank_uris(self.site.c))
        print(f"  files are written with {self._writer.how}")
        self._writer.wave()
        self._files = threading.Thread(target=self._write_files, args=(self._writer,), daemon=True)
        if self._writer.repeats:
            self._files.start()
        time.sleep(seconds)
        self._hosts.check_running()
        self.orders.show("status")

    def _write_files(self, writer: Writer) -> None:
        with contextlib.suppress(OSError, ProgramFailed):  # how the disaster looks from here
            while True:
                writer.wave()

    def _write_time(self) -> int:
        (group,) = [name for name, volumes in _GROUPS.items() if "files" in volumes]
        return int(self.orders.ask("group", "show", f"C:{group}")["written"]["time"] or 0)

    def _disaster(self) -> None:
        _say("Disaster: kill -9 of C and A while everybody writes")
        assert self._writer is not None
        print(f"  $ kill -9 {self.site.c.pid} {self.site.a.pid}")
        self.site.c.kill()
        self.site.a.kill()
        did = self._hosts.wait_until_lost()
        if self._writer.repeats:
            self._files.join()
        self._writer.close()
        self.verdicts.figure("hosts before the disaster", f"{did['transfers']} transfers, {did['writes']} writes")
        self.verdicts.figure("files before the disaster", f"{len(self._writer.records)} synced, on ext4")

    def _take_over(self, controller: Controller, what: str) -> int:
        _say(f"Takeover at {controller.name}, {what}: first what would be lost, then the order")
        self.orders.show("takeover", controller.name, "--preview")
        answer = self.orders.ask("takeover", controller.name, "--yes")
        print(f"  $ mgmtctl takeover {controller.name} --yes", flush=True)
        self.orders.show("volume", "list", "--controller", controller.name)
        self.verdicts.figure(f"takeover at {controller.name} took (RTO)", f"{answer['rto_s']:.2f} s")
        known = "unknown" if answer["rpo_known_s"] is None else f"{answer['rpo_known_s'] * 1000:.1f} ms known"
        lacks = f"{known}, and up to {answer['unknown_s']:.1f} s that it did not hear of"
        self.verdicts.figure(f"{controller.name} says it lacks (RPO)", lacks)
        self.verdicts.figure(f"{controller.name} last heard its primary", _clock(answer["unknown_since"]))
        return int(answer["cut_time"])

    def _judge_far_site(self, cut_time: int) -> None:
        _say("What B has: the bank, and every file that B's cut says it has")
        checked = self._hosts.check(_bank_uris(self.site.b), lossless=False)
        self._judge_bank("B", checked)
        last = self._hosts.last_acknowledged()
        self.verdicts.figure("last acknowledged by C", _clock(last))
        self.verdicts.figure("last write time in B's image", _clock(cut_time))
        self.verdicts.figure("between the two (RPO)", f"{max(0, last - cut_time) / 1e6:.1f} ms")
        lost = f"{checked.missing_transfers} transfers, {checked.missing_writes} writes"
        self.verdicts.figure("acknowledged by C, not at B", lost)
        self._judge_files(self.site.b, cut_time)

    def _judge_near_site(self) -> None:
        _say("A is started again, alone: by the synchronous promise it has everything that C acknowledged")
        self.site.b.stop()
        self.site.a.start()
        self._take_over(self.site.a, "the near site")
        checked = self._hosts.check(_bank_uris(self.site.a), lossless=True)
        self._judge_bank("A", checked)
        missing = f"{checked.missing_transfers} transfers, {checked.missing_writes} writes"
        self.verdicts.claim("acknowledged by C, not at A", missing, checked.missing_writes == 0)
        self._judge_files(self.site.a, None)

    def _judge_bank(self, name: str, checked: Checked) -> None:
        seen = f"{checked.transfers} transfers whole, {checked.half_done} under way, {checked.violations} violations"
        self.verdicts.claim(f"bank at {name} is a consistent prefix", seen, checked.consistent)

    def _judge_files(self, controller: Controller, cut_time: int | None) -> None:
        """``cut_time``: what was synced before it must be there; None: everything that was synced."""
        assert self._writer is not None
        records = self._writer.records
        limit = cut_time if cut_time is not None else max(record.synced_time for record in records) + 1
        place = self.directory / f"files-{controller.name}"
        found = verify(controller.uri("files"), place, records, limit)
        seen = f"{found.intact} files intact, {len(found.damaged)} not; {found.later} later ones seen too"
        print(f"  {found.how}: e2fsck finds nothing; {seen}")
        self.verdicts.claim(
            f"ext4 at {controller.name}: fsck, files up to the cut", seen, not found.damaged and found.intact > 0
        )


def _bank_uris(controller: Controller) -> list[str]:
    return [controller.uri(volume) for _, volume in _BANK]


def _clock(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%H:%M:%S.%f")


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _keep(demo: Demo) -> None:
    print(f"\nKept: {demo.directory}. A still runs; look around in another terminal with")
    print(f"  .venv/bin/mgmtctl --config {demo.site.client_file} status")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        input("Enter ends it all and removes the directory. ")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo ARGS=...", description=main.__doc__)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="how long hosts work before the disaster (default: 8)"
    )
    parser.add_argument("--keep", action="store_true", help="at the end, wait before everything is stopped and removed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
