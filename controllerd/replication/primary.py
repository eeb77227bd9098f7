"""Primary side of one pair: what its secondary may pull, and what becomes of the pair.

Owns: the answer to PULL and FENCE, retention of the journal, overflow, and the pair's
state on this side.
Never: frames or connections (sender.py), or the rules of the synchronous leg (mirror.py).

Order of things that must not be lost: a state change is in the catalogue before it has
any effect that a host can see (I3, I14).

Source: RC ¶30-31, ¶39; BK ¶17; spec §3.7, §4, §7; invariants I13, I14, I16, F24, F27.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from controllerd.model.errors import ReadOnly, RemoteCopyError
from controllerd.model.pair_state import PairEvent, PairState, Role
from controllerd.model.records import DATA_KINDS
from controllerd.replication.batch import parse_batch_untrusted
from controllerd.replication.context import Context, is_active
from controllerd.replication.links import Link
from controllerd.replication.messages import Accept, Ack, Farewell, Fence, Fenced, Notice, Pull, Refuse, RefuseCode
from controllerd.replication.mirror import Mirror
from controllerd.replication.pair_record import PairRecord
from controllerd.replication.ports import GroupPort
from controllerd.replication.sender import Sender, Source
from controllerd.storage.differences import Differences
from controllerd.storage.group import Group

CONNECTIONS_MAX: Final = 64
COUNT_BYTES: Final = 1 << 20
_WHY: Final = {PairEvent.SPLIT: "suspend", PairEvent.SPLIT_FORCED: "suspend", PairEvent.FAIL: "fail"}


class PrimaryPair:
    """One pair whose P-VOLs are here. ``on_sync_loss`` suspends all synchronous pairs of the domain together.

    ``source`` says how old the group's content is, if it is the secondary of another pair.
    """

    def __init__(
        self,
        record: PairRecord,
        group: Group,
        context: Context,
        *,
        source: Callable[[], Source],
        on_sync_loss: Callable[[PrimaryPair, str], None],
        on_fenced: Callable[[PrimaryPair, str], None],
    ) -> None:
        self.record = record
        self.group = group
        self._context = context
        self._on_fenced = on_fenced
        settings = context.settings
        self.sender = Sender(
            record.spec.identity, group, self, context.clock, max(1.0, 3 * settings.heartbeat_interval_s), source,
            record.created,
        )  # fmt: skip
        self.mirror: Mirror | None = None
        if record.spec.mode == "sync":
            self.mirror = Mirror(
                group,
                timeout_s=record.spec.sync_timeout_s or settings.sync_timeout_s,
                block=record.spec.on_sync_loss == "block",
                send_sync=self.sender.send_sync,
                on_loss=lambda reason: on_sync_loss(self, reason),
                now_s=asyncio.get_running_loop().time,
            )
        self.differences = Differences(group, record.spec.identity, self._surely_has)
        self._created_now = False
        self._overflow_since_s: float | None = None
        self._counting: asyncio.Task[None] | None = None
        self._fence_links: list[Link] = []

    # ---- life ------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether records travel, or would if there was a connection."""
        return is_active(self.record.state)

    @property
    def now(self) -> int:
        """Wall clock, ns."""
        return self._context.clock()

    def start(self, *, created: bool) -> None:
        """Begin, or go on after a restart; the journal is kept for the secondary from here on."""
        record, group = self.record, self.group
        self.sender.note()
        self._created_now = created
        if not self.active:
            # What was written since the suspension is not known any more, nor what it was suspended for.
            self.differences.give_up()
        if created:
            begin = record.start_seq
            self.sender.said = Ack(begin, begin, begin, 0, 0)  # there is nothing before that it could lack
        if record.state is PairState.SSWS:
            group.refuse_writes(self._fence_error())
        elif self.active:
            # After a restart the first PULL says what the secondary has; until then all that is there is kept.
            group.set_retention(self.sender.consumer, record.start_seq)
            if self.mirror is not None:
                self.mirror.start(record.start_seq if created else 0)
        elif record.spec.keep_journal:
            group.set_retention(self.sender.consumer, record.start_seq)

    def _surely_has(self) -> int | None:
        """Number up to which the secondary has everything durably, and nothing else; None: it was not heard yet.

        After a restart it may have records that a power cut took from this side, until it says where it is.
        """
        if not (self._created_now or self.sender.epoch):
            return None
        return max(self.record.start_seq, self.sender.ack.durable)

    def stop(self) -> None:
        """The controller stops: nothing changes but that the connections close."""
        self.differences.close()
        self._stop_counting()
        self.sender.stop("the primary stops")

    def delete(self) -> None:
        """The pair ceases to be: the group is an ordinary one again."""
        self.differences.close()
        self._stop_counting()
        self._release()
        self.group.set_retention(self.sender.consumer, None)
        if self.record.state is PairState.SSWS:
            self.group.refuse_writes(None)
        self.sender.stop("the pair was deleted")

    def _stop_counting(self) -> None:
        if self._counting is not None:
            self._counting.cancel()

    # ---- requests of the secondary ------------------------------------------------

    def pull(self, link: Link, pull: Pull) -> None:
        """Answer a PULL: the link becomes part of a session, or gets a refusal."""
        refusal = self._examine(link, pull)
        if refusal is not None:
            if refusal.code in (RefuseCode.SUSPENDED, RefuseCode.TRIMMED) and pull.generation == self.group.generation:
                link.send(self.sender.last_word())
            link.send(refusal.encode())
            link.close(f"refused: {refusal.text}")
            return
        record = self.record
        next_seq = max(pull.next_seq, record.start_seq + 1)
        at = self.sender.tally_at(next_seq - 1)
        accept = Accept(
            self.group.generation, record.start_seq, record.base_time, self.group.write_time.source,
            self.group.last_seq, self.group.incarnation,
            at is not None, 0 if at is None else at.writes, 0 if at is None else at.bytes,
        )  # fmt: skip
        link.send(accept.encode())
        if not pull.generation:
            link.close("told a new secondary where to begin")
            return
        first = not self.sender.connected or pull.epoch != self.sender.epoch
        self.sender.attach(link, pull, record.start_seq)
        self.sender.heartbeat()
        if first:
            facts: dict[str, object] = {"pair": record.spec.identity, "role": Role.PRIMARY.value, "next": next_seq}
            self._context.report("pair-connected", facts)
            if self.mirror is not None:
                self.mirror.connected()

    def _examine(self, link: Link, pull: Pull) -> Refuse | None:
        record, group = self.record, self.group
        if link.peer is None or link.peer.controller != record.peer:
            return self._refuse(RefuseCode.WRONG_PEER, f"the pair's secondary is {record.peer}")
        if record.state is PairState.SSWS:
            return self._refuse(RefuseCode.TAKEN_OVER, record.reason)
        if not group.recovered:  # its last number is not known: nobody may conclude anything from it
            return self._refuse(RefuseCode.BUSY, group.describe_fault() or f"group {group.name} is not recovered")
        if pull.state not in (PairState.PAIR, PairState.COPY) and self.active:
            event = PairEvent.SPLIT if pull.state == PairState.PSUS else PairEvent.FAIL
            self.suspend(event, f"at the secondary: {pull.reason}")
        if not self.active:
            return self._refuse(RefuseCode.SUSPENDED, record.reason)
        if not pull.index < pull.count <= CONNECTIONS_MAX:
            return self._refuse(RefuseCode.BAD_REQUEST, f"connection {pull.index} of {pull.count}")
        if group.read_error is not None:
            # Not recovered: where its journal ends is not known, so nothing can be said of what the secondary has.
            return self._refuse(RefuseCode.BUSY, group.say("is held", group.read_error))
        if not pull.generation:
            return None
        if pull.generation != group.generation:
            return self._refuse(
                RefuseCode.WRONG_GENERATION,
                f"group {group.name} has generation {group.generation:#x}, the secondary expects {pull.generation:#x}",
            )
        return self.sender.check_epoch(pull) or self._examine_position(pull)

    def _examine_position(self, pull: Pull) -> Refuse | None:
        """Does the secondary have a beginning of what this side has, and is the rest still kept?"""
        record, group = self.record, self.group
        last = pull.next_seq - 1
        if last > group.last_seq:
            text = (
                f"the secondary has record {last}, this side ends at {group.last_seq}:"
                " writes that were not yet durable were lost here"
            )
        elif last > record.start_seq and _incarnation_of(group, last) != pull.incarnation:
            text = (
                f"record {last} is of run {pull.incarnation} at the secondary and of"
                f" run {_incarnation_of(group, last)} here: writes that were not yet durable were lost here"
            )
        elif last < record.start_seq or pull.durable_seq > last:
            return self._refuse(RefuseCode.BAD_REQUEST, f"the pair begins behind record {record.start_seq}")
        elif last < group.last_seq and last + 1 < group.journal.first:
            text = f"the secondary needs record {last + 1}, kept are those from {group.journal.first} on"
            self.differences.give_up()
            self.suspend(PairEvent.FAIL, text)
            return self._refuse(RefuseCode.TRIMMED, text)
        else:
            return None
        self.differences.give_up()
        self.suspend(PairEvent.FAIL, text)
        return self._refuse(RefuseCode.DIVERGED, text)

    def _refuse(self, code: RefuseCode, text: str) -> Refuse:
        return Refuse(code, text, self.record.state.value, self.sender.epoch)

    def fence(self, link: Link, fence: Fence) -> None:
        """The secondary was taken over: hosts may not write here any more, durably, before the answer (I16)."""
        record = self.record
        if link.peer is None or link.peer.controller != record.peer:
            link.send(self._refuse(RefuseCode.WRONG_PEER, f"the pair's secondary is {record.peer}").encode())
            link.close("fence from another controller")
            return
        if record.state is not PairState.SSWS:
            reason = f"taken over by {record.peer} at record {fence.cut_seq}"
            if fence.reason:
                reason += f" ({fence.reason})"
            self.group.refuse_writes(ReadOnly(f"group {self.group.name}: {reason}"))
            record.diverged = {"cut_seq": self._last_shared(fence), "last_seq": self.group.complete_seq}
            self._context.move(record, PairEvent.TAKEOVER, reason)
            self.differences.give_up()
            self.group.fail_waiting(self._fence_error())
            if self.mirror is not None:
                self.mirror.stop()
            self.sender.drop("the pair was taken over")
            self._on_fenced(self, reason)
        assert record.diverged is not None
        self._fence_links.append(link)
        if self._counting is None:
            self._counting = asyncio.get_running_loop().create_task(self._answer_fence(record.diverged))

    def _last_shared(self, fence: Fence) -> int:
        """The last record that is the same here and in the image that was taken over.

        A power loss here may have taken later ones, and hosts may have got their numbers for others since.
        """
        later = [first for first, incarnation in self.group.incarnations if incarnation > fence.incarnation > 0]
        return min([fence.cut_seq, *(first - 1 for first in later)])

    async def _answer_fence(self, diverged: dict[str, int]) -> None:
        """Say what is here behind the cut, when that is counted and kept (I13)."""
        record = self.record
        try:
            if "writes" not in diverged:
                writes, size = await self._count_behind(diverged["cut_seq"], diverged["last_seq"])
                found = record.note_divergence(writes, size)
                self._context.save(record)
                if found:
                    facts: dict[str, object] = {"pair": record.spec.identity, "role": record.role.value}
                    self._context.report("pair-diverged", {**facts, "writes": writes, "bytes": size, "reason": found})
                self._release()
            counted = "bytes" in diverged
            answer = Fenced(record.spec.identity, diverged["writes"], diverged.get("bytes", 0), counted).encode()
            for link in self._fence_links:
                link.send(answer)
        finally:  # without an answer the secondary asks again
            links, self._fence_links, self._counting = self._fence_links, [], None
            for link in links:
                link.close("fenced")

    async def _count_behind(self, cut: int, last: int) -> tuple[int, int | None]:
        """`count_writes` behind record ``cut``; what the journal has no more, heartbeats may have counted."""
        writes, size = await count_writes(self.group, cut + 1, last)
        low, high = self.sender.tally_at(cut), self.sender.tally_at(last)
        if size is None and low is not None and high is not None:
            return high.writes - low.writes, high.bytes - low.bytes
        return writes, size

    def farewell(self, link: Link, farewell: Farewell) -> None:
        """The secondary's side is gone: that is kept durably before the answer."""
        record = self.record
        if link.peer is None or link.peer.controller != record.peer:
            link.send(self._refuse(RefuseCode.WRONG_PEER, f"the pair's secondary is {record.peer}").encode())
        else:
            self.noticed(Notice("delete", farewell.reason))
            link.send(farewell.encode())
        link.close("farewell heard")

    def _fence_error(self) -> RemoteCopyError:
        return ReadOnly(f"group {self.group.name}: {self.record.reason}; hosts write at {self.record.peer} now")

    # ---- states ---------------------------------------------------------------------

    def suspend(self, event: PairEvent, reason: str) -> None:
        """Split the pair by order (SPLIT) or failure (FAIL): durable first, then hosts go on alone.

        Raises:
            BadOrder: not possible in the present state.
        """
        if self._context.move(self.record, event, reason):
            self.sender.drop(reason, self.sender.last_word() + Notice(_WHY[event], reason).encode())
            self._release()

    def mark_suspended(self, event: PairEvent, reason: str) -> bool:
        """First half of `suspend`, for several pairs at once: only the durable state."""
        return self._context.move(self.record, event, reason)

    def finish_suspend(self, event: PairEvent, reason: str) -> None:
        """Second half of `suspend`."""
        self.sender.drop(reason, self.sender.last_word() + Notice(_WHY[event], reason).encode())
        self._release()

    def _release(self) -> None:
        """Nothing waits for the secondary any more."""
        self.differences.freeze()
        if self.mirror is not None:
            self.mirror.stop()
        if not self.record.spec.keep_journal:
            self.group.set_retention(self.sender.consumer, None)
        self._overflow_since_s = None

    # ---- events of the sender ----------------------------------------------------------

    def acknowledged(self, ack: Ack) -> None:
        if self.mirror is not None and self.active:
            self.mirror.progress(ack)

    def session_changed(self) -> None:
        if not self.sender.connected:
            facts: dict[str, object] = {"pair": self.record.spec.identity, "role": Role.PRIMARY.value}
            self._context.report("pair-disconnected", {**facts, "reason": self.sender.reason})

    def damaged(self, what: str) -> None:
        self._context.report_damage(self.record, what)

    def failed(self, error: RemoteCopyError) -> None:
        self.suspend(PairEvent.FAIL, str(error))

    def noticed(self, notice: Notice) -> None:
        if notice.event == "delete":
            self.record.peer_deleted = True
            self._context.save(self.record)
            self.differences.give_up()
        if self.active:
            event = PairEvent.SPLIT if notice.event == "suspend" else PairEvent.FAIL
            self.suspend(event, f"at the secondary: {notice.reason}")

    # ---- housekeeping ---------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Look at what can time out."""
        self.sender.check_silence(now_s, self._context.settings.peer_timeout_s)
        if self.mirror is not None and self.active:
            self.mirror.check(now_s)
        if self._overflow_since_s is not None:
            if not self.group.overflowing:
                self._overflow_since_s = None
            elif now_s - self._overflow_since_s > self._context.settings.throttle_timeout_s:
                self._overflowed()

    def overflow(self, now_s: float) -> None:
        """The journal is full of what the secondary has not got (spec §3.7, F9)."""
        # Without an active pair nothing would make room, however long hosts waited.
        if not self.active or (self.record.spec.overflow or self.group.facts.overflow) == "suspend":
            self._overflowed()
        elif self._overflow_since_s is None:
            self._overflow_since_s = now_s
            self._context.report("pair-throttles-hosts", {"pair": self.record.spec.identity})

    def _overflowed(self) -> None:
        if self.active:
            self.suspend(PairEvent.FAIL, f"journal of group {self.group.name} is full: the secondary is behind")
        # Also when the journal was kept for later: hosts come first.
        self.group.set_retention(self.sender.consumer, None)
        self._overflow_since_s = None


async def count_writes(group: GroupPort, first: int, last: int) -> tuple[int, int | None]:
    """Return (writes, bytes) that hosts made in records ``first`` to ``last``.

    Records that the journal does not have any more, or that are damaged, count as writes: too many rather than too
    few. The bytes are not known then (None).
    """
    writes = size = 0
    while first <= last:
        try:
            found = await group.read_journal_slow(first, COUNT_BYTES)
            if found is None:
                break
            raw = memoryview(b"".join(found.buffers))
            batch = parse_batch_untrusted(raw, first, found.last - first + 1, group.generation)
        except RemoteCopyError:
            return writes + last - first + 1, None
        for entry in batch.entries:
            if entry.kind in DATA_KINDS and entry.sequence <= last:
                writes += 1
                size += entry.length
        first = found.last + 1
    return writes, size


def _incarnation_of(group: Group, sequence: int) -> int:
    found = 0
    for first, incarnation in group.incarnations:
        if first <= sequence:
            found = incarnation
    return found
