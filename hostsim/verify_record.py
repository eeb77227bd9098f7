"""The record file of `hostsim write-verify`: every write before it is sent, and what became of it.

Owns: the file, append and read back into a Ledger. Never: reads a volume.

JSON lines. ``["w", counter, block, count, zero]`` sent, ``["a", counter]`` acknowledged, ``["u", counter]`` lost or
refused (outcome unknown), ``["s", block, counter]`` read back while its outcome was unknown; ``{"event": "start"}``
begins another session. A "w" line is with the kernel before its write is sent, and so is all that was noted before: if
the host is killed, the record lacks acknowledgements of the last moment at most.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hostsim.errors import BadRecord
from hostsim.ledger import Issued, Ledger

VERSION = 1


@dataclass(slots=True)
class VerifyRecord:
    """A record as read."""

    run: int
    block_size: int
    ledger: Ledger


class VerifyRecorder:
    """Appends to a record file."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="ascii")

    def begin(self, run: int, block_size: int, blocks: int) -> None:
        """Write the head of a new record."""
        facts = {"hostsim": "write-verify", "version": VERSION, "run": f"{run:016x}"}
        self._event({**facts, "block_size": block_size, "blocks": blocks})

    def resume(self) -> None:
        """Begin another session: what was in flight when the last one ended has an unknown outcome."""
        self._event({"event": "start"})

    def issued(self, write: Issued) -> None:
        """Note a write; before it is sent."""
        self._file.write(f'["w",{write.counter},{write.block},{write.count},{int(write.zero)}]\n')
        self._file.flush()

    def acknowledged(self, counter: int) -> None:
        """Note an acknowledgement."""
        self._file.write(f'["a",{counter}]\n')

    def lost(self, counter: int) -> None:
        """Note that a write got no answer, or an error."""
        self._file.write(f'["u",{counter}]\n')

    def seen(self, block: int, counter: int) -> None:
        """Note what a block of unknown state was found to show."""
        self._file.write(f'["s",{block},{counter}]\n')

    def close(self) -> None:
        """Close the file; what was noted is with the kernel."""
        self._file.close()

    def _event(self, facts: dict[str, Any]) -> None:
        self._file.write("\n" + json.dumps(facts) + "\n")  # an empty line closes one that a kill cut short
        self._file.flush()


def read_verify_record(path: Path) -> VerifyRecord:
    """Read a record, whole or cut short. Raises BadRecord."""
    record: VerifyRecord | None = None
    cut_at = 0
    try:
        with path.open(encoding="ascii") as file:
            for number, line in enumerate(file, 1):
                if line == "\n":
                    continue
                try:
                    entry = json.loads(line)
                except ValueError:
                    cut_at = number
                    continue
                if record is None:
                    record = _head(path, entry)
                    continue
                if cut_at and not isinstance(entry, dict):
                    raise BadRecord(f"{path}: line {cut_at} cannot be read, and the record goes on after it")
                cut_at = 0
                _take(record, entry)
    except (OSError, UnicodeDecodeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise BadRecord(f"{path}: {error}") from None
    if record is None:
        raise BadRecord(f"{path}: is empty")
    record.ledger.lose_all()
    return record


def _head(path: Path, entry: Any) -> VerifyRecord:
    if not isinstance(entry, dict) or entry.get("hostsim") != "write-verify" or entry.get("version") != VERSION:
        raise BadRecord(f"{path}: is not a record of hostsim write-verify, or of another version of it")
    return VerifyRecord(int(entry["run"], 16), int(entry["block_size"]), Ledger(int(entry["blocks"])))


def _take(record: VerifyRecord, entry: Any) -> None:
    ledger = record.ledger
    if isinstance(entry, dict):
        ledger.lose_all()
        return
    what, *numbers = entry
    if what == "w":
        ledger.issue(Issued(numbers[0], numbers[1], numbers[2], bool(numbers[3])))
    elif what == "a":
        ledger.acknowledge(numbers[0])
    elif what == "u":
        ledger.lose(numbers[0])
    else:
        ledger.seen(numbers[0], numbers[1])
