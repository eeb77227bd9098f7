"""A host's own record of what was acknowledged: what a copy is measured against.

Owns: the record file, append and read. Never: decides whether a copy is good (``bank_check.py``).

JSON lines. The first names the run; ``{"event": "start", "from": [...]}`` begins a session and says how far every chain
was in the volumes it found (acknowledgements beyond that, from an earlier session, are on a copy that was given up);
``[chain, counter, ns]`` is one acknowledgement; ``{"event": "end"}`` says that nothing was issued after it. Lines reach
the kernel every ``FLUSH_INTERVAL_S`` (the workload's timer), so that the record survives a kill of the host; the last
line may then be cut short.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from hostsim.errors import BadRecord

VERSION = 1
FLUSH_INTERVAL_S = 0.1


class BankRecorder:
    """Appends to a record file. Wall time in nanoseconds; one recorder for all chains of a process."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path, run: int) -> Self:
        """Begin or continue the record of a run. Raises BadRecord if the file is the record of something else."""
        if path.exists() and path.stat().st_size > 0:
            if read_bank_record(path).run != run:
                raise BadRecord(f"{path}: is the record of another run; give a new file, or remove it")
            return cls(path.open("a", encoding="ascii"))
        recorder = cls(path.open("a", encoding="ascii"))
        recorder.event(hostsim="bank", version=VERSION, run=f"{run:016x}")
        return recorder

    def acknowledged(self, chain: int, counter: int, wall_ns: int) -> None:
        """Note an acknowledgement: called the moment it came."""
        self._file.write(f"[{chain},{counter},{wall_ns}]\n")

    def flush(self) -> None:
        """Hand what was noted to the kernel."""
        self._file.flush()

    def event(self, **facts: Any) -> None:
        """Write a line of any other kind, at once. A cut line before it is closed by an empty line."""
        self._file.write("\n" + json.dumps(facts) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was noted is with the kernel."""
        self._file.close()


@dataclass
class ChainRecord:
    """Acknowledgements of one chain since its session's start: write ``first`` + i came at ``times_ns[i]``."""

    first: int
    times_ns: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def last(self) -> int:
        """Number of the last acknowledged write; what the session found, if none was acknowledged in it."""
        return self.first + len(self.times_ns) - 1


@dataclass
class BankRecord:
    """A record as read. ``complete``: nothing was issued beyond one write more per chain than it names."""

    run: int
    chains: dict[int, ChainRecord] = field(default_factory=dict)
    complete: bool = False

    @property
    def last_ns(self) -> int:
        """Wall time of the last acknowledgement of all, 0 if there was none."""
        return max((chain.times_ns[-1] for chain in self.chains.values() if chain.times_ns), default=0)


def read_bank_record(path: Path) -> BankRecord:
    """Read a record, whole or cut short by a kill. Raises BadRecord."""
    try:
        with path.open(encoding="ascii") as file:
            lines = (line for line in file if line != "\n")
            record = BankRecord(_run_of(path, next(lines, "")))
            cut_at = 0
            for number, line in enumerate(lines, 2):
                try:
                    entry = json.loads(line)
                except ValueError:
                    cut_at = number  # fine where a session ended by a kill: then a start, or nothing, follows
                    continue
                _take(record, entry, cut_at, path)
                cut_at = 0
    except (OSError, UnicodeDecodeError, TypeError, ValueError, KeyError) as error:
        raise BadRecord(f"{path}: {error}") from None
    return record


def _run_of(path: Path, line: str) -> int:
    try:
        head = json.loads(line)
        if head["hostsim"] == "bank" and head["version"] == VERSION:
            return int(head["run"], 16)
    except (ValueError, TypeError, KeyError):
        pass
    raise BadRecord(f"{path}: is not a record of hostsim's bank, or of another version of it")


def _take(record: BankRecord, entry: Any, cut_at: int, path: Path) -> None:
    if isinstance(entry, dict):
        if entry["event"] == "start":
            _start(record, entry["from"])
        record.complete = entry["event"] == "end"
        return
    if cut_at:
        raise BadRecord(f"{path}: line {cut_at} cannot be read, and the record goes on after it")
    chain, counter, wall_ns = entry
    known = record.chains[chain]
    if counter != known.last + 1:
        raise BadRecord(f"{path}: chain {chain}: write {counter} follows {known.last}")
    known.times_ns.append(wall_ns)


def _start(record: BankRecord, found: Sequence[int]) -> None:
    """Begin a session: keep what was acknowledged up to what the volumes held, forget what was beyond."""
    for chain, done in enumerate(found):
        known = record.chains.setdefault(chain, ChainRecord(done + 1))
        if known.first <= done + 1 <= known.last + 1:
            del known.times_ns[done + 1 - known.first :]
        else:
            record.chains[chain] = ChainRecord(done + 1)
