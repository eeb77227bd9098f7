"""What a takeover gives, or gave: its report, for preview and afterwards.

Owns: the report's fields, how they are found at a given cut, and reading a kept report back.
Never: decides the cut, or changes anything (takeover.py does).

What this side does not know it does not call nothing: seconds are never too few, and
``rpo_exact`` says whether more can be missing (I14).

Source: RC ¶45-46; spec §7.6; invariant I14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from controllerd.model.pair_state import PairState, Role
from controllerd.model.records import Kind
from controllerd.replication.applier import DomainApplier
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.status import why_held

_DATA_KINDS: Final = frozenset({int(Kind.WRITE), int(Kind.ZEROES), int(Kind.TRIM)})


@dataclass(slots=True)
class Cut:
    """What is decided: per group the last record that counts, and how to get there."""

    time: int
    seqs: dict[str, int]
    steps: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MissingVolume:
    """Writes that arrived for a volume and cannot be used, because something older of another group is missing."""

    volume: str
    writes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TakeoverGroup:
    """What a takeover gives or gave for one group.

    ``primary_seq`` and ``primary_time`` are the newest the primary told of (to an earlier run of
    this controller, too), ``primary_age_s`` how long ago; ``missing_writes`` and ``missing_bytes``
    what of that never arrived, and there may be more; ``unusable`` what arrived behind the cut.
    None: not known here.
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
    missing_writes: int | None
    missing_bytes: int | None
    unusable_writes: int
    unusable_bytes: int
    volumes: tuple[str, ...]
    unusable: tuple[MissingVolume, ...]


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    """A takeover, or a preview of one. ``rto_s``: its duration.

    ``rpo_s``: seconds of the primary's writes that are known to be missing, never less; None: not
    known. With ``rpo_exact`` nothing else can be missing; else the primary may have written more
    since it was heard last.
    """

    domain: str
    preview: bool
    cut_time: int
    rpo_s: float | None
    rpo_exact: bool
    rto_s: float | None
    phases_s: dict[str, float]
    holder: str | None
    holder_why: str | None
    groups: tuple[TakeoverGroup, ...]
    warnings: tuple[str, ...]


def describe(domain: DomainApplier, pairs: list[SecondaryPair], cut: Cut, now: int) -> TakeoverReport:
    """What a takeover of ``pairs`` at ``cut`` gives, as a preview; ``now`` in wall-clock ns."""
    by_group = {pair.group.name: pair for pair in pairs}
    groups = tuple(_describe_group(pair, cut, now) for pair in pairs)
    holder = domain.holder()
    return TakeoverReport(
        domain=domain.name,
        preview=True,
        cut_time=cut.time,
        rpo_s=_rpo_s(groups, by_group),
        rpo_exact=all(pair.record.spec.mode == "sync" and pair.active and not pair.record.in_doubt for pair in pairs),
        rto_s=None,
        phases_s={},
        holder=None if holder is None else holder.group,
        holder_why=None if holder is None else why_held(holder.group, by_group),
        groups=groups,
        warnings=tuple(_warnings(pairs)),
    )


def _describe_group(pair: SecondaryPair, cut: Cut, now: int) -> TakeoverGroup:
    group, record = pair.group, pair.record
    cut_seq = cut.seqs.get(group.name, group.applied_seq)
    cut_time = group.applied_time
    names = {volume.key: volume.name for volume in group.volumes.values()}
    lost: dict[int, tuple[int, int]] = {}
    for entry in group.pending:
        if entry.sequence <= cut_seq:
            cut_time = entry.time
        elif entry.kind in _DATA_KINDS:
            writes, size = lost.get(entry.volume, (0, 0))
            lost[entry.volume] = (writes + 1, size + entry.length)
    heard = pair.receiver.heard
    missing = pair.receiver.missing()
    return TakeoverGroup(
        pair_id=record.spec.identity,
        group=group.name,
        peer=record.peer,
        peer_group=record.peer_group,
        mode=record.spec.mode,
        state=record.state.value,
        cut_seq=cut_seq,
        cut_time=cut_time,
        primary_seq=None if heard is None else heard.seq,
        primary_time=None if heard is None else heard.time,
        primary_age_s=None if heard is None else max(0.0, (now - heard.at) / 1e9),
        missing_writes=None if missing is None else missing[0],
        missing_bytes=None if missing is None else missing[1],
        unusable_writes=sum(writes for writes, _ in lost.values()),
        unusable_bytes=sum(size for _, size in lost.values()),
        volumes=tuple(sorted(names.values())),
        unusable=tuple(
            MissingVolume(names.get(key, f"{key:#x}"), writes, size) for key, (writes, size) in sorted(lost.items())
        ),
    )


def _rpo_s(groups: tuple[TakeoverGroup, ...], by_group: dict[str, SecondaryPair]) -> float | None:
    """Seconds between the newest the primary told of and what is in the image, rounded up to ms.

    By write time; where that can stand still (source ``host``) by the primary's clock, if that says more.
    """
    if any(pair.record.time_source == "sequence" for pair in by_group.values()):
        return None
    if all(group.missing_writes == 0 and group.unusable_writes == 0 for group in groups):
        return 0.0
    known = [group.primary_time for group in groups if group.primary_time is not None]
    if len(known) < len(groups):
        return None
    behind = []
    for group in groups:
        if group.missing_writes or group.unusable_writes:
            pair = by_group[group.group]
            by_time, heard = max(known) - group.cut_time, pair.receiver.heard
            stands_still = pair.record.time_source == "host" or by_time <= 0
            if stands_still and heard is not None and heard.image_wall is not None:
                by_time = max(by_time, heard.wall - heard.image_wall)
            behind.append(by_time)
    return math.ceil(max(behind) / 1e6) / 1e3 if max(behind) > 0 else None


def _warnings(pairs: list[SecondaryPair]) -> list[str]:
    found = []
    for pair in pairs:
        name, record = pair.group.name, pair.record
        if pair.receiver.connected:
            found.append(f"group {name}: {record.peer} is connected and still takes writes; stop its hosts first")
        if record.in_doubt:
            found.append(
                f"group {name}: this machine restarted since the last contact with {record.peer};"
                " acknowledged writes may be missing"
            )
        if not record.generation:
            found.append(f"group {name}: {record.peer} was never reached; its volumes are empty")
        if record.state in (PairState.PSUE, PairState.PSUS):
            found.append(f"group {name}: the pair is {record.state.value} ({record.reason}); its image is old")
        if pair.group.describe_fault() is not None and pair.group.role is Role.SECONDARY:
            found.append(f"group {name}: {pair.group.describe_fault()}")
    return found


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
