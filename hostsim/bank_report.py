"""What a check of the bank found, as plain data: for people (``render.py``), for scripts (``as_dict``), for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

VIOLATIONS_SHOWN_MAX = 50


class Fault(StrEnum):
    """Ways in which an image is no consistent cut. The names are stable: scripts and tests compare them."""

    FORMAT = "format"  # superblocks missing, damaged, or of different sets
    DAMAGED = "damaged"  # a block is neither empty nor valid: written in part, or changed
    FOREIGN = "foreign"  # a valid block of another run or another place
    MISSING_WRITE = "missing-write"  # a write is not there although a later one of its chain is
    LOST_PREDECESSOR = "lost-predecessor"  # a write is there that was issued after one that is not
    CLEARING = "clearing"  # money was taken in that was never sent
    WRONG_CONTENT = "wrong-content"  # the right write, with another content than it was issued with
    MONEY = "money"  # the total is not what it was at the start
    NEVER_ISSUED = "never-issued"  # a write is there that the host never made
    NOT_ACKNOWLEDGED_ALL = "acknowledged-missing"  # asked for with --lossless, and something acknowledged is missing


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be. ``volume`` and ``chain`` count from 0; None where it is not about one."""

    fault: Fault
    text: str
    volume: int | None = None
    block: int | None = None
    chain: int | None = None


@dataclass(slots=True)
class ChainState:
    """How far one chain is in the image. ``transfer``: last complete one; ``begun``: it shows parts of the next."""

    chain: int
    writes: int = 0
    transfer: int = 0
    begun: bool = False
    host: int | None = None
    mainframe: bool = False
    issued_ns: int = 0
    missing_writes: int = 0
    missing_transfers: int = 0
    beyond_record: int = 0  # visible writes that the host never saw acknowledged: allowed, it may have happened


@dataclass(slots=True)
class BankReport:
    """The verdict. Money in units; times in nanoseconds since 1970, 0 = none."""

    formatted: bool = False
    foreign: bool = False  # there is data, and no trace of a bank in it
    run: int = 0
    violations: list[Violation] = field(default_factory=list)
    violation_count: int = 0
    chains: list[ChainState] = field(default_factory=list)
    money_expected: int = 0
    money_total: int = 0  # after half-done transfers are rolled forward
    money_rolled_back: int = 0  # after they are rolled back
    money_visible: int = 0  # as it stands in the account blocks
    in_clearing: int = 0
    last_issued_ns: int = 0
    recorded: bool = False
    missing_writes: int = 0
    missing_transfers: int = 0
    rpo_s: float = 0.0  # from the oldest acknowledged write that is missing to the last acknowledged one of all

    @property
    def consistent(self) -> bool:
        """True if the image is a consistent cut (and whatever else was asked for holds)."""
        return self.violation_count == 0

    @property
    def nothing_to_judge(self) -> bool:
        """True if there is no bank, or none yet: the volumes are empty, of others, or not completely formatted."""
        return self.foreign or (self.consistent and not self.formatted)

    @property
    def incomplete(self) -> bool:
        """True if the image is a consistent cut, and the one thing wrong is that it must lack nothing and does."""
        return [violation.fault for violation in self.violations] == [Fault.NOT_ACKNOWLEDGED_ALL]

    def add(self, violation: Violation) -> None:
        """Count a violation; the first ones are kept with their text."""
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_SHOWN_MAX:
            self.violations.append(violation)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for ``--json``: the fields, the verdicts, and the last transfer of every host."""
        facts = asdict(self)
        facts["run"] = f"{self.run:016x}"
        facts["consistent"] = self.consistent
        facts["incomplete"] = self.incomplete
        facts["hosts"] = [
            {"host": host, "mainframe": chains[0].mainframe, "transfers": sum(chain.transfer for chain in chains)}
            for host, chains in sorted(self.by_host().items())
        ]
        return facts

    def by_host(self) -> dict[int, list[ChainState]]:
        """Return the chains of each host that has written anything."""
        hosts: dict[int, list[ChainState]] = {}
        for chain in self.chains:
            if chain.host is not None:
                hosts.setdefault(chain.host, []).append(chain)
        return hosts
