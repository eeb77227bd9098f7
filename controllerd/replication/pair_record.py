"""Pair documents: what a controller keeps durably of each of its pairs.

Owns: the order's parameters (`PairSpec`), the kept document (`PairRecord`), and how it
is read back.
Never: acts on a pair, or opens the catalogue.

Source: spec §7.1-7.4; VC ¶39-44 (states); RC fig. 4, 7, 8 (peer and volume tables).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from controllerd.model.errors import Corrupt
from controllerd.model.pair_state import PairState, Role
from controllerd.units import format_size

TABLE: Final = "group_pairs"
RUNS_KEPT: Final = 16

Mode = Literal["async", "sync"]
SyncLoss = Literal["suspend", "block"]


@dataclass(frozen=True, slots=True)
class PairVolume:
    """A P-VOL and its S-VOL. ``key`` is the P-VOL's, which the S-VOL adopts; ``size`` in bytes."""

    primary: str
    secondary: str
    key: int
    size: int


@dataclass(frozen=True, slots=True)
class PairSpec:
    """What `pair create` says, the same on both sides. Times in seconds; None: this controller's default."""

    primary_controller: str
    primary_group: str
    secondary_controller: str
    secondary_group: str
    volumes: tuple[PairVolume, ...]
    mode: Mode = "async"
    domain: str = "default"
    order: Literal["time", "sequence"] | None = None
    on_sync_loss: SyncLoss = "suspend"
    sync_timeout_s: float | None = None
    overflow: Literal["suspend", "throttle"] | None = None
    connections: int | None = None
    keep_journal: bool = False
    """Keep the journal for the secondary after a failure, too, as long as there is room."""
    pair_id: str = ""

    @property
    def identity(self) -> str:
        """The pair's id: as given, or made of what it connects."""
        return self.pair_id or (
            f"{self.primary_controller}:{self.primary_group}-{self.secondary_controller}:{self.secondary_group}"
        )


@dataclass(slots=True)
class PairRecord:
    """One side of a pair as it is kept. Sequence numbers are the primary's.

    Attributes:
        generation: the primary group's; at the secondary 0 until the first contact.
        start_seq, base_time: the primary's last number and write time when the pair began.
        runs: at the secondary, (first number, incarnation) of what it journaled, newest last.
        since: wall-clock ns of the last change of ``state`` or ``reason``.
        created: wall-clock ns of the order that made the pair.
        prepared: every change of volumes and groups that create or delete makes is done.
        in_doubt: synchronous secondary: the machine restarted, so acknowledged records may be
            lost here; cleared when the primary has sent everything again.
        adrift_time: synchronous secondary that gives itself ticks, because the primary is not
            heard: it had everything older than this before; 0: it has everything of the primary.
        peer_deleted: the other side has deleted the pair.
        diverged: once the old primary is fenced: ``cut_seq`` and ``last_seq`` (last acknowledged),
            and the ``writes`` and ``bytes`` in between, which the secondary does not have; without
            ``bytes`` these are no longer known, and ``writes`` is the most it can be.
        fence: at a secondary taken over: what the old primary has to be told, None when it knows.
    """

    spec: PairSpec
    role: Role
    state: PairState
    since: int
    created: int
    reason: str = ""
    generation: int = 0
    start_seq: int = 0
    base_time: int = 0
    time_source: str = ""
    runs: list[tuple[int, int]] = field(default_factory=list)
    prepared: bool = False
    in_doubt: bool = False
    adrift_time: int = 0
    peer_deleted: bool = False
    fence: dict[str, Any] | None = None
    diverged: dict[str, int] | None = None

    @property
    def peer(self) -> str:
        """Name of the other controller."""
        return self.spec.secondary_controller if self.role is Role.PRIMARY else self.spec.primary_controller

    @property
    def group(self) -> str:
        """Name of this controller's group."""
        return self.spec.primary_group if self.role is Role.PRIMARY else self.spec.secondary_group

    @property
    def peer_group(self) -> str:
        """Name of the other controller's group."""
        return self.spec.secondary_group if self.role is Role.PRIMARY else self.spec.primary_group

    def incarnation_of(self, sequence: int) -> int:
        """The run of the primary that made record ``sequence``; 0 if the record is not one of the pair."""
        found = 0
        for first, incarnation in self.runs:
            if first <= sequence:
                found = incarnation
        return found

    def note_divergence(self, writes: int, size: int | None) -> str:
        """Keep what the old primary has behind the cut; returns it for people, "" if there is nothing (I13).

        ``size`` None: not known, and there may be fewer ``writes``.
        """
        assert self.diverged is not None
        self.diverged["writes"] = writes
        if size is not None:
            self.diverged["bytes"] = size
        if not writes:
            return ""
        amount = f"up to {writes} writes of unknown size" if size is None else f"{writes} writes, {format_size(size)}"
        found = f"diverged: {amount} behind record {self.diverged['cut_seq']}"
        self.reason += f"; {found} at {self.spec.primary_controller} are not at {self.spec.secondary_controller}"
        return found

    def note_run(self, first: int, incarnation: int) -> bool:
        """The record ``first``, the next one, comes from ``incarnation``; returns whether the record changed.

        Raises:
            Corrupt: the records before are of a later one; a recovery would not find such a journal whole.
        """
        # What was noted beyond was never journaled: a crash came between.
        runs = [run for run in self.runs if run[0] < first]
        if runs and runs[-1][1] > incarnation:
            raise Corrupt(f"received record {first}: run {incarnation} of {self.peer}, after run {runs[-1][1]}")
        if not runs or runs[-1][1] != incarnation:
            runs.append((first, incarnation))
        if runs == self.runs:
            return False
        self.runs = runs[-RUNS_KEPT:]
        return True

    def document(self) -> dict[str, Any]:
        """The record as JSON values."""
        document = asdict(self)
        document["role"], document["state"] = self.role.value, self.state.value
        return document


def read_record(name: str, document: dict[str, Any]) -> PairRecord:
    """Return the record kept in ``document``.

    Raises:
        Corrupt: it is not one.
    """
    try:
        values = dict(document)
        spec = dict(values.pop("spec"))
        spec["volumes"] = tuple(PairVolume(**volume) for volume in spec["volumes"])
        values["role"], values["state"] = Role(values["role"]), PairState(values["state"])
        values["runs"] = [(first, incarnation) for first, incarnation in values["runs"]]
        return PairRecord(spec=PairSpec(**spec), **values)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"pair {name}: the catalogue's document cannot be read: {error}", pair=name) from error
