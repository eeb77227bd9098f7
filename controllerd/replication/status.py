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
from typing import Final

from controllerd.model.pair_state import PairState
from controllerd.replication.applier import DomainApplier
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.sender import Sender

_NS: Final = 1_000_000_000


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
    pending_writes: int | None
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
    record, group, sender, said = pair.record, pair.group, pair.sender, pair.sender.said
    # The secondary had everything up to the beginning of the pair.
    received, shown = (
        (None, None) if said is None else (max(x, record.start_seq) for x in (said.received, said.applied))
    )
    at = None if received is None else sender.tally_at(received)
    missing = said is None or group.last_seq > said.applied
    lag_s = sender.lag.lag_seconds(asyncio.get_running_loop().time(), missing=missing)
    held = _primary_held(pair, lag_s)
    # On a synchronous pair, and behind one, the secondary's times are its own.
    applied_time = said.applied_time if said is not None and record.spec.mode == "async" else 0
    applied = _sent(sender, None if said is None else said.applied, 0)
    arrived = _sent(sender, None if said is None else said.received, applied_time)
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
        transferred=_sent(sender, sender.transferred_seq, arrived.time or 0),
        arrived=arrived,
        durable=_sent(sender, None if said is None else said.durable, 0),
        applied=Position(applied.seq, applied_time) if applied_time else applied,
        lag_s=None if math.isinf(lag_s) else lag_s,
        lag_bytes=None if shown is None else sender.bytes_behind(shown),
        missing_writes=None if at is None else group.writes_total - at.writes,
        missing_bytes=None if received is None else sender.bytes_behind(received),
        pending_writes=None if said is None else max(0, said.received - said.applied),
        cut_time=None,
        unknown_since=None,
        unheard_why="",
        diverged_writes=(record.diverged or {}).get("writes"),
        diverged_bytes=(record.diverged or {}).get("bytes"),
        holder=None if held is None else held.group,
        holder_since=None if held is None else held.since,
        holder_why=None if held is None else held.why,
        corrupt_frames=sender.corrupt_frames,
    )


def _sent(sender: Sender, sequence: int | None, time_min: int) -> Position:
    """Record ``sequence``, which is not older than ``time_min``, at the primary."""
    if sequence is None:
        return Position()
    return Position(sequence, max(sender.time_at(sequence) or 0, time_min) or None)


def _primary_held(pair: PrimaryPair, lag_s: float) -> Held | None:
    """What holds back a pair whose primary is here; None: nothing, or not for longer than is reported."""
    record, group, sender, said = pair.record, pair.group, pair.sender, pair.sender.said
    if not pair.active:
        return None
    now = pair.now
    heard = record.created if sender.last_contact is None else sender.last_contact
    since = heard if math.isinf(lag_s) else now - round(lag_s * _NS)
    if not sender.connected:
        return Held(record.group, min(heard, since), f"no connection from {record.peer}: {sender.reason}")
    if now - since <= sender.lag.fresh_s * _NS:
        return None
    if now - heard > sender.lag.fresh_s * _NS:
        why = f"connected, but nothing is heard of {record.peer} for {(now - heard) / _NS:.0f} s"
        return Held(record.group, since, why)
    if said is None:
        return Held(record.group, since, f"{record.peer} has not said yet what it has")
    if said.held:
        name, _, why = said.held.partition("\n")
        return Held(f"{record.peer}:{name}", since, f"{record.peer} says: {why}")
    if said.received < group.last_seq:
        return Held(record.group, since, f"{group.last_seq - said.received} records are on the way to {record.peer}")
    return Held(record.group, since, f"{record.peer} has not applied yet what it has")


def secondary_status(pair: SecondaryPair, by_group: dict[str, SecondaryPair]) -> PairStatus:
    """Status of a pair whose secondary is here; ``by_group``: the pairs of the apply domain."""
    record, group, receiver, intake = pair.record, pair.group, pair.receiver, pair.intake
    beat = pair.contact.beat
    now_s = asyncio.get_running_loop().time()
    lacking = intake.applied_seq < intake.received_seq or pair.contact.missing_records(intake.next_seq - 1) > 0
    lag_s = pair.contact.lag.lag_seconds(now_s, missing=lacking)
    taken_over = record.state is PairState.SSWS
    missing_writes, missing_bytes = (None, None) if taken_over else pair.missing()
    unheard = {name: other.why_unheard() for name, other in by_group.items()}
    held = None if taken_over else find_holder(pair.domain, by_group, unheard)
    arrived = Position(intake.next_seq - 1, pair.known_time(group.last_time) or None)
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
        last_contact=receiver.last_contact or (None if beat is None else pair.contact.heard_at),
        link_reason="" if receiver.connected or taken_over else receiver.reason,
        blocked=pair.stall is not None,
        written=Position(*pair.newest()),
        transferred=arrived,
        arrived=arrived,
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
    """Which group holds the line, or else whose path from the primary is cut or stalled; None: the line is free.

    ``unheard``: for each group why its primary is not heard, "" if it is.
    """
    holder = domain.holder()
    if holder is not None:
        held = by_group.get(holder.group)
        since = holder.since if held is None else min(holder.since, _still_since(held))
        return Held(holder.group, since, _why_held(held, unheard))
    cut = [(_still_since(pair), name) for name, pair in by_group.items() if unheard[name] or pair.stall is not None]
    if not cut:
        return None
    since, name = min(cut)
    return Held(name, since, _why_held(by_group[name], unheard))


def _still_since(pair: SecondaryPair) -> int:
    """Wall ns of the image that the group shows: as long as that the line stands still because of it.

    A reconnect or restart does not move it. While the image is the present: since when nothing is known.
    """
    contact = pair.contact
    lag_s = contact.lag.lag_seconds(asyncio.get_running_loop().time())
    since = contact.unknown_since
    return since if math.isinf(lag_s) else min(since, pair.now - round(lag_s * _NS))


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
