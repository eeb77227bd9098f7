"""Admission: how many connections there are, and who has them.

Owns: the limits on connections, and counts of those that were taken and refused.
Never: knows what a connection does.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from controllerd.model.access import Address

REFUSALS: Final = ("limit", "address-limit", "stopping", "gone")
"""Why a connection is not admitted: too many, too many from its address, the server stops, the client is gone."""


class Admission:
    """Counts connections from the moment they are accepted until they are gone."""

    def __init__(self, connections_max: int, connections_per_address_max: int) -> None:
        """``connections_per_address_max`` 0 sets no limit; clients of UNIX sockets have no address."""
        self.connections = 0
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        """By reason, one of `REFUSALS`."""
        self._max = connections_max
        self._per_address_max = connections_per_address_max
        self._by_address: Counter[Address] = Counter()

    def admit(self, address: Address | None) -> str:
        """Count a new connection; the answer is empty, or the reason why it is refused (and not counted)."""
        if self.connections >= self._max:
            return "limit"
        if address is not None:
            if self._per_address_max and self._by_address[address] >= self._per_address_max:
                return "address-limit"
            self._by_address[address] += 1
        self.connections += 1
        return ""

    def leave(self, address: Address | None) -> None:
        """A connection that was admitted is gone."""
        self.connections -= 1
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
