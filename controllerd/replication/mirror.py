"""Mirror: the primary's rules for a synchronous pair.

Owns: telling the group what the secondary has, and noticing that it does not answer
within ``sync_timeout``.
Never: changes the pair's state; `on_loss` does, for the whole domain at once.

Time runs for a write from when it is first seen waiting, and for a flush from its order;
an idle pair with a cut link loses nothing and waits for ever.

Source: RC ¶57-59; spec §4.4; invariants I3, I4, I7.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from controllerd.model.errors import MirrorLost
from controllerd.replication.messages import Ack
from controllerd.replication.ports import GroupPort


class Deadlines:
    """Numbers that were waited for, each since when; the oldest decides."""

    def __init__(self) -> None:
        self._since: deque[tuple[int, float]] = deque()

    def add(self, sequence: int, now_s: float) -> None:
        """``sequence`` is waited for from now on."""
        if not self._since or self._since[-1][0] < sequence:
            self._since.append((sequence, now_s))

    def reached(self, sequence: int) -> None:
        """Everything up to ``sequence`` is done."""
        while self._since and self._since[0][0] <= sequence:
            self._since.popleft()

    def age_s(self, now_s: float) -> float:
        """How long the oldest has been waited for."""
        return now_s - self._since[0][1] if self._since else 0.0

    def clear(self) -> None:
        """Nothing is waited for any more."""
        self._since.clear()


class Mirror:
    """The synchronous leg of ``group``. ``send_sync`` asks the secondary to sync through a number."""

    def __init__(
        self,
        group: GroupPort,
        *,
        timeout_s: float,
        block: bool,
        send_sync: Callable[[int], None],
        on_loss: Callable[[str], None],
        now_s: Callable[[], float],
    ) -> None:
        self._error: MirrorLost | None = None
        """Policy ``block``: what hosts get until the secondary has caught up."""
        self._group = group
        self._timeout_s = timeout_s
        self._block = block
        self._send_sync = send_sync
        self._on_loss = on_loss
        self._now_s = now_s
        self._acked = 0
        self._writes = Deadlines()
        self._flushes = Deadlines()

    @property
    def blocked(self) -> bool:
        """Whether hosts get errors until the secondary has caught up."""
        return self._error is not None

    def start(self, acked: int) -> None:
        """Acknowledgements wait for the secondary from now on; it has everything through ``acked`` durably."""
        self._acked = acked
        self._group.mirror_flush_wanted = self._flush_wanted
        self._group.set_mirror(True, acked, acked)

    def stop(self) -> None:
        """Acknowledgements wait for nobody any more; who waits is released."""
        self._group.mirror_flush_wanted = None
        self._writes.clear()
        self._flushes.clear()
        self._unblock()
        self._group.set_mirror(False)

    def progress(self, ack: Ack) -> None:
        """The secondary says what it has."""
        self._acked = ack.received
        self._writes.reached(ack.received)
        self._flushes.reached(ack.durable)
        if self.blocked and ack.received >= self._group.last_seq:
            self._unblock()
        self._group.mirror_progress(ack.received, ack.durable)

    def connected(self) -> None:
        """A session began: flushes that wait are asked for again."""
        self._send_sync(self._group.last_seq)

    def check(self, now_s: float) -> None:
        """Look whether something has waited too long."""
        group = self._group
        if self._error is not None:
            if group.waiting:  # flushes and FUA writes that came since: nothing unconfirmed may be called flushed
                group.fail_waiting(self._error)
            return
        if group.last_seq > self._acked and group.waiting:  # a tick under way when the link is cut is no loss
            self._writes.add(group.last_seq, now_s)
        waited_s = max(self._writes.age_s(now_s), self._flushes.age_s(now_s))
        if waited_s <= self._timeout_s:
            return
        if self._block:
            error = MirrorLost(
                f"group {group.name}: the synchronous peer has not confirmed a write for {waited_s:.1f} s"
                " (on_sync_loss = block)"
            )
            self._error = error
            self._writes.clear()
            self._flushes.clear()
            group.refuse_writes(error)
            group.fail_waiting(error)
        self._on_loss(f"the synchronous peer did not confirm a write for {waited_s:.1f} s")

    def _flush_wanted(self, sequence: int) -> None:
        if not self.blocked:
            self._flushes.add(sequence, self._now_s())
        self._send_sync(sequence)

    def _unblock(self) -> None:
        if self.blocked:
            self._error = None
            # A fence or a fault that came meanwhile stays.
            if isinstance(self._group.write_error, MirrorLost):
                self._group.refuse_writes(None)
