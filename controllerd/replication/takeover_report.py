"""What a takeover gives or gave, in figures: its report.

Owns: the shape of a report, and reading one that was kept.
Never: works out the figures (takeover.py does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MissingVolume:
    """Writes that arrived for a volume and cannot be used, because something older of another group is missing."""

    volume: str
    writes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TakeoverGroup:
    """What a takeover gives or gave for one group.

    ``primary_seq`` and ``primary_time`` are the newest the primary is known to have,
    ``primary_age_s`` how long ago it told where it is; ``missing_writes`` and ``missing_bytes``
    what hosts wrote up to there that never arrived, ticks not counted;
    ``unusable`` what arrived behind the cut. None: not known here. What the hosts wrote since
    ``unknown_since`` (wall ns), ``unknown_s`` ago, may be missing without this side knowing.
    """

    pair_id: str
    group: str
    peer: str
    peer_group: str
    mode: str
    state: str
    cut_seq: int
    cut_time: int
    primary_seq: int | None
    primary_time: int | None
    primary_age_s: float | None
    unknown_since: int
    unknown_s: float
    unheard_why: str
    missing_writes: int | None
    missing_bytes: int | None
    unusable_writes: int
    unusable_bytes: int
    volumes: tuple[str, ...]
    unusable: tuple[MissingVolume, ...]


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    """A takeover, or a preview of one. ``rto_s``: its duration.

    ``rpo_s``: seconds of the hosts' writes that are missing at the most: ``rpo_known_s`` of what
    the primary told of, and ``unknown_s`` since ``unknown_since`` (wall ns), of which nothing is
    known here; ``unheard_why`` says why not. None: not known.
    """

    domain: str
    preview: bool
    cut_time: int
    rpo_s: float | None
    rpo_known_s: float | None
    unknown_since: int
    unknown_s: float
    unheard_why: str
    rto_s: float | None
    phases_s: dict[str, float]
    holder: str | None
    holder_why: str | None
    groups: tuple[TakeoverGroup, ...]
    warnings: tuple[str, ...]


def read_report(document: dict[str, Any]) -> TakeoverReport:
    """Return a kept report."""
    values = dict(document)
    groups = []
    for item in values["groups"]:
        group = dict(item)
        group["volumes"] = tuple(group["volumes"])
        group["unusable"] = tuple(MissingVolume(**volume) for volume in group["unusable"])
        groups.append(TakeoverGroup(**group))
    values["groups"] = tuple(groups)
    values["warnings"] = tuple(values["warnings"])
    return TakeoverReport(**values)
