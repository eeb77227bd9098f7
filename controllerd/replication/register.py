"""Register: which pairs and apply domains there are at this controller.

Owns: nothing but the three tables; everything that concerns several pairs looks here.
Never: makes, starts or deletes a pair (pairs.py does).
"""

from __future__ import annotations

from controllerd.model.errors import NotFound
from controllerd.replication.applier import DomainApplier
from controllerd.replication.pair_record import PairRecord
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.secondary import SecondaryPair


class PairRegister:
    """Pairs by identity, for each side, and apply domains by name."""

    def __init__(self) -> None:
        self.primaries: dict[str, PrimaryPair] = {}
        self.secondaries: dict[str, SecondaryPair] = {}
        self.domains: dict[str, DomainApplier] = {}

    def records(self) -> list[PairRecord]:
        """The records of all sides that are here."""
        primaries = [pair.record for pair in self.primaries.values()]
        return primaries + [pair.record for pair in self.secondaries.values()]

    def find(self, pair_id: str) -> PrimaryPair | SecondaryPair | None:
        """This controller's side of a pair, or None."""
        return self.primaries.get(pair_id) or self.secondaries.get(pair_id)

    def get(self, pair_id: str) -> PrimaryPair | SecondaryPair:
        """This controller's side of a pair.

        Raises:
            NotFound: there is none.
        """
        pair = self.find(pair_id)
        if pair is None:
            raise NotFound(f"no pair {pair_id} here", pair=pair_id)
        return pair

    def by_group(self, domain: DomainApplier) -> dict[str, SecondaryPair]:
        """The pairs of a domain by the names of their groups here."""
        return {pair.group.name: pair for pair in self.secondaries.values() if pair.domain is domain}
