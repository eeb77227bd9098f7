"""Hunts for one planted defect after the other, and what is known of each.

Owns: the order of the hunters, what has been tried already (`Results`, which a file can keep), and the table.
Never: plants (`plant`) or runs seeds (`hunt`) itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.simulation.defects.hunt import SEED_S, Found
from tests.simulation.defects.plant import ROOT, Defect, plant


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to hunt. ``swarm``: seeds of whole systems, which take longer.

    ``hunter_s``: computing time of a hunter for one defect; ``end_s``: no hunter begins after it (`time.monotonic`).
    """

    seeds: int
    swarm: int
    hunter_s: float
    end_s: float = float("inf")

    def of(self, hunter: str) -> int:
        """Seeds that ``hunter`` tries at most."""
        return 1 if hunter.startswith("unit:") else self.swarm if hunter == "swarm" else self.seeds

    def allow(self, hunt: Hunt) -> bool:
        """Whether ``hunt`` may go on."""
        more = hunt.tried < self.of(hunt.hunter) and hunt.seconds < self.hunter_s
        return more and time.monotonic() < self.end_s


@dataclass(frozen=True, slots=True)
class Hunt:
    """One hunter and one defect. ``tried``: seeds from the first on; ``by``: how the last one failed, "": none did.

    ``seconds``: computing time.
    """

    defect: str
    digest: str
    hunter: str
    tried: int = 0
    by: str = ""
    seconds: float = 0.0


class Results:
    """All hunts so far, the newest of each hunter and defect; kept in ``path`` if there is one, a JSON object a line.

    What was found about other edits under the same name is not read.
    """

    def __init__(self, defects: Iterable[Defect], path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._hunts: dict[tuple[str, str], Hunt] = {}
        digests = {defect.name: defect.digest for defect in defects}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            hunt = Hunt(**json.loads(line))
            if digests.get(hunt.defect) == hunt.digest:
                self._hunts[hunt.defect, hunt.hunter] = hunt

    def add(self, hunt: Hunt) -> None:
        """Remember a hunt, in place of what is known of it."""
        with self._lock:
            self._hunts[hunt.defect, hunt.hunter] = hunt
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps(asdict(hunt)) + "\n")

    def of(self, defect: Defect, hunter: str) -> Hunt:
        """Return what is known of one hunter and defect."""
        return self._hunts.get((defect.name, hunter)) or Hunt(defect.name, defect.digest, hunter)

    def catch(self, defect: Defect) -> Hunt | None:
        """Return the first hunt that caught the defect."""
        hunts = (self.of(defect, hunter) for hunter in defect.hunters)
        return next((hunt for hunt in hunts if hunt.by), None)


def pursue(
    defect: Defect, directory: Path, limits: Limits, results: Results, hunters: tuple[str, ...] = ()
) -> Hunt | None:
    """Plant a defect below ``directory`` and let its hunters (or ``hunters``) try, one after the other.

    Returns the catch. What ``results`` has already is not tried again.
    """
    tree = directory / re.sub(r"\W+", "-", defect.name)
    try:
        for hunter in hunters or defect.hunters:
            hunt = results.of(defect, hunter)
            while not hunt.by and limits.allow(hunt):
                if not tree.exists():
                    plant(defect, tree)
                hunt = _go_on(tree, hunt, limits)
                results.add(hunt)
            if hunt.by:
                return hunt
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return None


def _go_on(tree: Path, hunt: Hunt, limits: Limits) -> Hunt:
    """Hunt from where ``hunt`` ended; return it with what came of that."""
    limit_s = limits.hunter_s - hunt.seconds
    found = _run(tree, hunt.hunter, limits.of(hunt.hunter), hunt.tried, limit_s)
    by = found.by
    if by and not hunt.hunter.startswith("unit:") and _fails_without(hunt.hunter, found.tried):
        by = ""  # it has caught something else
    return Hunt(hunt.defect, hunt.digest, hunt.hunter, found.tried, by, round(hunt.seconds + found.seconds, 1))


@cache
def _fails_without(hunter: str, seed: int) -> bool:
    return bool(_run(ROOT, hunter, seed, seed - 1, SEED_S).by)


def _run(tree: Path, hunter: str, seeds: int, after: int, limit_s: float) -> Found:
    """Hunt in ``tree``.

    Raises:
        RuntimeError: the hunter does not run there.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.defects.hunt", hunter, str(seeds), str(after), str(limit_s)],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{hunter} does not run in {tree}: {done.stderr.strip()[-300:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def row(defect: Defect, results: Results) -> tuple[str, str, str, float, str]:
    """What is known: seeds of the swarm, who else caught the defect, after how many seeds, seconds, how it shows."""
    hunts = [results.of(defect, hunter) for hunter in defect.hunters]
    swarm = results.of(defect, "swarm")
    catch = results.catch(defect)
    needed = defect.unseen or (str(swarm.tried) if swarm.by else f"> {swarm.tried}")
    seconds = sum(hunt.seconds for hunt in hunts)
    if catch is None:
        return needed, "**NOT CAUGHT**", "", seconds, ""
    if catch.hunter == "swarm":
        return needed, "", "", seconds, catch.by
    kind, _, _ = catch.hunter.partition(":")
    return needed, kind, "" if kind == "unit" else str(catch.tried), seconds, catch.by


def table(defects: Iterable[Defect], results: Results) -> str:
    """Return the report."""
    lines = [
        "| defect | breaks | seeds of the swarm | or else | seeds | seconds | shows as |",
        "| --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    caught = by_swarm = count = 0
    for defect in defects:
        swarm, other, seeds, seconds, shows = row(defect, results)
        shows = shows.replace("|", "/")
        lines.append(f"| {defect.name} | {defect.breaks} | {swarm} | {other} | {seeds} | {seconds:.0f} | {shows} |")
        catch = results.catch(defect)
        count += 1
        caught += catch is not None
        by_swarm += catch is not None and catch.hunter == "swarm"
    return "\n".join([*lines, "", f"{caught} of {count} caught, {by_swarm} of them by the swarm"])
