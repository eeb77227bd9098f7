"""Where pairs stand: what can be asked for at any time (RC ¶46, spec §5.5).

Owns: the figures of one pair as seen from one side, and how they are found.
Never: changes anything.

Sequence numbers of an asynchronous pair are the same on both sides. On a synchronous one
each side speaks of the primary's numbers, except ``journal_seq``.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from controllerd.model.pair_state import PairState
from controllerd.replication.applier import DomainApplier
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.secondary import SecondaryPair


@dataclass(frozen=True, slots=True)
class Position:
    """A record: its number, and its write time in ns (a number if the time source is ``sequence``). None: not known."""

    seq: int | None = None
    time: int | None = None


@dataclass(frozen=True, slots=True)
class PairStatus:
    """One pair from one side. Times named ``*_ns`` and ``since``: wall clock; None: not known on this side.

    Attributes:
        written: the primary's newest record; transferred: sent; arrived: journaled at the
            secondary; durable: there for good; applied: visible there.
        lag_s: how old the secondary's image is; 0.0 when it is like the primary's.
        lag_bytes: bytes of data that are not applied.
        missing_writes, missing_bytes: what hosts wrote and the secondary has not received; ticks
            are no writes.
        unknown_since: secondary: since when nothing is known of what the hosts wrote;
            ``unheard_why``: why that is so, "" while the primary is heard.
        diverged_writes, diverged_bytes: after a takeover, what the old primary has behind the
            cut; None: there was none, or the old primary was not reached yet.
        corrupt_frames: how often damaged data came from the peer, since the start.
        holder: the group that holds the apply domain's line, or whose path is cut, since
            when and why.
    """

    pair_id: str
    group: str
    role: str
    state: str
    since: int
    reason: str
    peer: str
    peer_group: str
    mode: str
    domain: str
    connected: bool
    connected_since: int | None
    last_contact: int | None
    link_reason: str
    blocked: bool
    written: Position
    transferred: Position
    arrived: Position
    durable: Position
    applied: Position
    lag_s: float | None
    lag_bytes: int | None
    missing_writes: int | None
    missing_bytes: int | None
    pending_writes: int
    cut_time: int | None
    unknown_since: int | None
    unheard_why: str
    diverged_writes: int | None
    diverged_bytes: int | None
    corrupt_frames: int
    holder: str | None
    holder_since: int | None
    holder_why: str | None


def primary_status(pair: PrimaryPair) -> PairStatus:
    """Status of a pair whose primary is here."""
    record, group, sender, ack = pair.record, pair.group, pair.sender, pair.sender.ack
    # The secondary had everything up to the beginning of the pair.
    received, applied = max(ack.received, record.start_seq), max(ack.applied, record.start_seq)
    at = sender.tally_at(received)
    now_s = asyncio.get_running_loop().time()
    lag_s = sender.lag.lag_seconds(now_s, missing=group.last_seq > ack.applied)
    cut = pair.active and not sender.connected
    return PairStatus(
        pair_id=record.spec.identity,
        group=record.group,
        role=record.role.value,
        state=record.state.value,
        since=record.since,
        reason=record.reason,
        peer=record.peer,
        peer_group=record.peer_group,
        mode=record.spec.mode,
        domain=record.spec.domain,
        connected=sender.connected,
        connected_since=sender.connected_since,
        last_contact=sender.last_contact,
        link_reason="" if sender.connected else f"waiting for {record.peer} to connect ({sender.reason})",
        blocked=pair.mirror is not None and pair.mirror.blocked,
        written=Position(group.last_seq, group.last_time),
        transferred=Position(sender.transferred_seq, sender.time_at(sender.transferred_seq)),
        arrived=Position(ack.received, sender.time_at(ack.received)),
        durable=Position(ack.durable, sender.time_at(ack.durable)),
        applied=Position(ack.applied, ack.applied_time or None),
        lag_s=None if math.isinf(lag_s) else lag_s,
        lag_bytes=sender.bytes_behind(applied),
        missing_writes=None if at is None else group.writes_total - at.writes,
        missing_bytes=sender.bytes_behind(received),
        pending_writes=max(0, ack.received - ack.applied),
        cut_time=None,
        unknown_since=None,
        unheard_why="",
        diverged_writes=(record.diverged or {}).get("writes"),
        diverged_bytes=(record.diverged or {}).get("bytes"),
        corrupt_frames=sender.corrupt_frames,
        holder=record.group if cut else None,
        holder_since=(sender.last_contact or record.since) if cut else None,
        holder_why=f"no connection from {record.peer}: {sender.reason}" if cut else None,
    )


def secondary_status(pair: SecondaryPair, by_group: dict[str, SecondaryPair]) -> PairStatus:
    """Status of a pair whose secondary is here; ``by_group``: the pairs of the apply domain."""
    record, group, receiver, intake = pair.record, pair.group, pair.receiver, pair.intake
    now_s = asyncio.get_running_loop().time()
    lacking = intake.applied_seq < intake.received_seq or pair.contact.missing_records(intake.next_seq - 1) > 0
    lag_s = pair.contact.lag.lag_seconds(now_s, missing=lacking)
    taken_over = record.state is PairState.SSWS
    missing_writes, missing_bytes = (None, None) if taken_over else pair.missing()
    unheard = {name: other.why_unheard() for name, other in by_group.items()}
    held = None if taken_over else find_holder(pair.domain, by_group, unheard)
    return PairStatus(
        pair_id=record.spec.identity,
        group=record.group,
        role=record.role.value,
        state=record.state.value,
        since=record.since,
        reason=record.reason,
        peer=record.peer,
        peer_group=record.peer_group,
        mode=record.spec.mode,
        domain=record.spec.domain,
        connected=receiver.connected,
        connected_since=receiver.connected_since,
        last_contact=receiver.last_contact,
        link_reason="" if receiver.connected or taken_over else receiver.reason,
        blocked=pair.stall is not None,
        written=Position(*pair.newest()),
        transferred=Position(intake.next_seq - 1),
        arrived=Position(intake.next_seq - 1, pair.known_time(group.last_time)),
        durable=Position(intake.durable_seq),
        applied=Position(intake.applied_seq, pair.known_time(group.applied_time)),
        lag_s=None if math.isinf(lag_s) or taken_over else lag_s,
        lag_bytes=None if missing_bytes is None else missing_bytes + group.pending.bytes,
        missing_writes=missing_writes,
        missing_bytes=missing_bytes,
        pending_writes=len(group.pending),
        cut_time=None if taken_over else pair.known_time(pair.domain.cut_time),
        unknown_since=None if taken_over else pair.contact.unknown_since,
        unheard_why=unheard[group.name],
        diverged_writes=(record.diverged or {}).get("writes"),
        diverged_bytes=(record.diverged or {}).get("bytes"),
        corrupt_frames=receiver.corrupt_frames,
        holder=None if held is None else held.group,
        holder_since=None if held is None else held.since,
        holder_why=None if held is None else held.why,
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What holds the line of an apply domain: a group, since when (wall ns), and why, for people."""

    group: str
    since: int
    why: str


def find_holder(domain: DomainApplier, by_group: dict[str, SecondaryPair], unheard: dict[str, str]) -> Held | None:
    """Which group holds the line, or else whose path from the primary is cut; None: the line is free.

    ``unheard``: for each group why its primary is not heard, "" if it is.
    """
    holder = domain.holder()
    if holder is not None:
        return Held(holder.group, holder.since, _why_held(by_group.get(holder.group), unheard))
    cut = [(by_group[name].contact.unknown_since, name) for name, why in unheard.items() if why]
    if not cut:
        return None
    since, name = min(cut)
    return Held(name, since, unheard[name])


def _why_held(pair: SecondaryPair | None, unheard: dict[str, str]) -> str:
    if pair is None:
        return "the group has no pair"
    if pair.domain.fault is not None:
        return f"applying stopped: {pair.domain.fault}"
    if pair.stall is not None:
        return f"what arrives finds no room: {pair.stall}"
    if unheard[pair.group.name]:
        return unheard[pair.group.name]
    if pair.group.durable_seq < pair.group.last_seq:
        return "waiting for the journal to be durable"
    return "no later write or tick of this group has arrived"
