"""A remote copy system in a few lines that is right by construction, and keeps a history: what the checker must accept.

Owns: sites as plain logs of writes. Tests change a log or a history to make the mistake they want to see found.
Never: imports the controllers' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tests.simulation.history import (
    SECTOR,
    ZEROS,
    Acknowledged,
    Answered,
    Crashed,
    Domain,
    Event,
    FlushAnswered,
    FlushSubmitted,
    History,
    Image,
    Journaled,
    Ordered,
    Quiet,
    ReadAnswered,
    ReadSubmitted,
    Restarted,
    Status,
    Submitted,
)

VOLUMES = {"g0": {"v0": 8 * SECTOR}, "g1": {"v1": 8 * SECTOR}}


@dataclass
class Toy:
    """Sites C, A and B. ``logs``: what each shows, in order. C is the primary; A a mirror of it, B behind A.

    Args:
        paired: C copies to A synchronously and A to B asynchronously; else C is alone.
    """

    paired: bool = True
    time_source: str = "clock"
    history: History = field(init=False)
    logs: dict[str, list[Submitted]] = field(init=False)
    flushed: int = 0
    now: float = 0.0
    primary: str = "C"
    generation: int = 1
    _serial: int = 0
    _request: int = 0

    def __post_init__(self) -> None:
        domain = Domain(self.time_source, "time", ("g0", "g1"))
        self.history = History.make(7, VOLUMES, domains=[domain], prompt=True, hold_bound_s=50.0)
        self.logs = {"C": [], "A": [], "B": []}
        if self.paired:
            for primary, secondary, mode in (("C", "A", "sync"), ("A", "B", "async")):
                for group in VOLUMES:
                    self.order(primary, "pair-create", group, {"secondary": secondary, "mode": mode})
                    self.status(primary, group, "primary", secondary, "PAIR")

    def add(self, event: type[Event], /, **facts: Any) -> None:
        """Note an event."""
        self.now += 0.01
        self.history.add(event(at=self.now, **facts))

    # ---- hosts -----------------------------------------------------------------

    def submit(self, volume: str, sector: int, count: int = 1, **facts: Any) -> Submitted:
        """A write that has happened at the primary, and at its mirror, before anyone hears of it."""
        self._serial += 1
        group = self.history.volumes[volume].group
        self.add(
            Submitted, serial=self._serial, site=self.primary, connection="h", group=group, volume=volume,
            offset=sector * SECTOR, length=count * SECTOR, **facts,
        )  # fmt: skip
        write = self.history.events[-1]
        assert isinstance(write, Submitted)
        self.logs[self.primary].append(write)
        if self.paired and self.primary == "C":
            self.logs["A"].append(write)
        return write

    def ack(self, write: Submitted) -> None:
        self.add(Acknowledged, serial=write.serial)

    def write(self, volume: str, sector: int, count: int = 1, **facts: Any) -> Submitted:
        """A write and its acknowledgement."""
        write = self.submit(volume, sector, count, **facts)
        self.ack(write)
        return write

    def flush(self) -> None:
        """Flush both volumes."""
        for volume in ("v0", "v1"):
            self._request += 1
            self.add(FlushSubmitted, flush=self._request, site=self.primary, connection="h", volume=volume)
            self.add(FlushAnswered, flush=self._request)
        self.flushed = len(self.logs[self.primary])

    def read(self, site: str, volume: str) -> None:
        """Read a whole volume."""
        self._request += 1
        size = self.history.volumes[volume].size
        self.add(
            ReadSubmitted, read=self._request, site=site, connection="r", volume=volume, offset=0, length=size
        )  # fmt: skip
        self.add(ReadAnswered, read=self._request, shown=self.shown(site)[volume])

    # ---- sites -----------------------------------------------------------------

    def shown(self, site: str) -> dict[str, tuple[int, ...]]:
        """What a site's volumes show."""
        shown = {volume: [ZEROS] * (facts.size // SECTOR) for volume, facts in self.history.volumes.items()}
        for write in self.logs[site]:
            for sector in range(write.offset // SECTOR, (write.offset + write.length) // SECTOR):
                shown[write.volume][sector] = write.serial if write.what == "write" else ZEROS
        return {volume: tuple(content) for volume, content in shown.items()}

    def image(self, site: str, shown: dict[str, tuple[int, ...]] | None = None, **facts: Any) -> None:
        self.add(Image, site=site, shown=shown or self.shown(site), **facts)

    def apply(self, count: int) -> None:
        """B applies as many more of A's writes, in the order of all groups."""
        through = min(len(self.logs["B"]) + count, len(self.logs["A"]))
        self.logs["B"] = self.logs["A"][:through]

    def crash(self, site: str, how: Literal["kill", "power", "disk", "stop", "fault"], lose: int = 0) -> None:
        """``lose``: how many of the writes that are not flushed go with the power."""
        self.add(Crashed, site=site, how=how)
        if how == "power":
            del self.logs[site][max(self.flushed, len(self.logs[site]) - lose) :]

    def restart(self, site: str) -> None:
        self.add(Restarted, site=site)
        self.flushed = len(self.logs[site])

    def take_over(self, site: str) -> None:
        """A or B becomes the primary at what it has."""
        self.order(site, "takeover", "", {})
        if site == "B":
            self.flushed = len(self.logs["B"])
        self.primary = site
        self.generation += 1

    def order(self, site: str, name: str, group: str, facts: dict[str, Any]) -> None:
        self._request += 1
        self.add(Ordered, order=self._request, site=site, name=name, group=group, facts=facts)
        self.add(Answered, order=self._request)

    def status(self, site: str, group: str, role: str, peer: str, state: str, **facts: Any) -> None:
        self.add(Status, site=site, group=group, role=role, peer=peer, state=state, **facts)

    def journaled(self, site: str, write: Submitted, sequence: int, **facts: Any) -> None:
        """A record of a write; its time is its number unless ``facts`` say otherwise."""
        record: dict[str, Any] = {
            "site": site, "group": write.group, "generation": 5, "incarnation": 1, "sequence": sequence,
            "time": sequence, "kind": 1, "volume": write.volume, "offset": write.offset, "length": write.length,
            "data_crc": write.serial, "serial": write.serial,
        }  # fmt: skip
        self.add(Journaled, **{**record, **facts})

    def rest(self) -> None:
        """Faults are over and everything has arrived."""
        self.add(Quiet, bound_s=1.0)
        self.now += 2.0
        self.apply(1 << 30)
        if self.paired and self.primary == "C":
            for primary, secondary in (("C", "A"), ("A", "B")):
                for group in VOLUMES:
                    self.status(primary, group, "primary", secondary, "PAIR")
                    self.status(secondary, group, "secondary", primary, "PAIR", lag_s=0.0)
            for site in "CAB":
                self.image(site)
