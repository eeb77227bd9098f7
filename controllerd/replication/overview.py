"""Overview: where the pairs of this controller stand, and what holds them up.

Owns: putting together what the figures of one pair (status.py) need of the other pairs.
Never: changes anything.
"""

from __future__ import annotations

from controllerd.model.pair_state import Role
from controllerd.replication.pair_record import PairSpec
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.register import PairRegister
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.status import PairStatus, find_holder, primary_status, secondary_status


class Overview:
    """What can be asked about ``pairs``."""

    def __init__(self, pairs: PairRegister) -> None:
        self._pairs = pairs

    def status(self) -> list[PairStatus]:
        """Where every pair stands, by group."""
        pairs: list[PrimaryPair | SecondaryPair] = [*self._pairs.primaries.values(), *self._pairs.secondaries.values()]
        return [self.status_of(pair) for pair in sorted(pairs, key=lambda pair: (pair.record.group, pair.record.role))]

    def specs(self) -> list[tuple[Role, PairSpec]]:
        """The orders that made the pairs, with this controller's side."""
        return [(record.role, record.spec) for record in self._pairs.records()]

    def status_of(self, pair: PrimaryPair | SecondaryPair) -> PairStatus:
        """Where one pair stands."""
        if isinstance(pair, PrimaryPair):
            return primary_status(pair)
        return secondary_status(pair, self._pairs.by_group(pair.domain))

    def held(self, pair: SecondaryPair) -> str:
        """What holds the line of the pair's domain, as an ACK says it."""
        by_group = self._pairs.by_group(pair.domain)
        held = find_holder(pair.domain, by_group, {name: other.why_unheard() for name, other in by_group.items()})
        return "" if held is None else f"{held.group}\n{held.why}"

    def peer_link(self, name: str) -> tuple[bool | None, str]:
        """Whether records can travel to or from a peer, and why not; None: no connection is wanted."""
        primaries = [pair for pair in self._pairs.primaries.values() if pair.record.peer == name]
        secondaries = [pair for pair in self._pairs.secondaries.values() if pair.record.peer == name]
        if any(pair.sender.connected for pair in primaries) or any(pair.receiver.connected for pair in secondaries):
            return True, ""
        waiting = [f"waiting for {name} to connect ({pair.sender.reason})" for pair in primaries if pair.active]
        waiting += [pair.receiver.reason for pair in secondaries if pair.active]
        if waiting:
            return False, waiting[0]
        pairs: list[PrimaryPair | SecondaryPair] = [*primaries, *secondaries]
        states = [f"pair {pair.record.spec.identity} is {pair.record.state.value}" for pair in pairs]
        return None, f"no connection wanted: {', '.join(states)}" if states else ""
