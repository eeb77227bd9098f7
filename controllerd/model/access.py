"""Who may open a volume: rules about hosts' networks and certificate names.

Owns: the rules, their document form, and the answer for one client.
Never: learns who a client is (the target that serves it does), or asks for a password.

What a reader would get wrong: rules have no order. A client gets the most that any rule which fits it gives, and
nothing when none fits; a volume without rules (None, not an empty list) is open to everyone.

Source: issue "The best NBD target", access control per export.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from controllerd.model.errors import BadOrder

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX: Final = "unix"
"""Stands for the network of clients that come over a UNIX socket."""
RULES_MAX: Final = 256


class Grant(enum.Enum):
    """What a client may do with a volume."""

    NONE = "none"
    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a volume is shown to. ``address`` is None over a UNIX socket.

    ``names``: subject and alternative names of a certificate that was checked, as `fold` gives them.
    """

    address: Address | None
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """Lets clients in that are in ``network`` and have the name ``certificate``; what is None fits everyone."""

    network: Network | str | None = None
    certificate: str | None = None
    read_only: bool = False

    def fits(self, client: Client) -> bool:
        """Whether the rule is about this client."""
        if self.certificate is not None and self.certificate not in client.names:
            return False
        if self.network is None:
            return True
        if isinstance(self.network, str):
            return client.address is None
        return client.address is not None and client.address in self.network

    def document(self) -> dict[str, Any]:
        """Return the rule as JSON values; `rule` takes it back."""
        return {
            "network": None if self.network is None else str(self.network),
            "certificate": self.certificate,
            "read_only": self.read_only,
        }


Rules = tuple[Rule, ...] | None


def grant(rules: Rules, client: Client) -> Grant:
    """Return the most that any of ``rules`` gives to ``client``."""
    if rules is None:
        return Grant.READ_WRITE
    found = Grant.NONE
    for rule in rules:
        if rule.fits(client):
            if not rule.read_only:
                return Grant.READ_WRITE
            found = Grant.READ_ONLY
    return found


def fold(name: str) -> str:
    """Return a certificate name as it is compared: without regard to case (RFC 5280 section 7.2)."""
    return name.strip().casefold()


def rules(documents: Iterable[dict[str, Any]] | None) -> Rules:
    """Return the rules that `documents_of` or a caller of the API wrote down.

    Raises:
        BadOrder: a network or name is not one, or there are over `RULES_MAX` rules.
    """
    if documents is None:
        return None
    found = tuple(dict.fromkeys(_rule(**document) for document in documents))
    if len(found) > RULES_MAX:
        raise BadOrder(f"{len(found)} rules; a volume can have at most {RULES_MAX}")
    return found


def documents_of(rules: Rules) -> list[dict[str, Any]] | None:
    """Return rules as JSON values."""
    return None if rules is None else [rule.document() for rule in rules]


def _rule(*, network: str | None = None, certificate: str | None = None, read_only: bool = False) -> Rule:
    if certificate is not None and not fold(certificate):
        raise BadOrder("a certificate name is empty; give the subject's common name or an alternative name")
    name = None if certificate is None else fold(certificate)
    if network is None or network == UNIX:
        return Rule(network, name, read_only)
    try:
        return Rule(ipaddress.ip_network(network), name, read_only)
    except ValueError as error:
        right = f'write "10.0.0.0/8", "2001:db8::/32" or "{UNIX}"'
        raise BadOrder(f'"{network[:64]}" is not a network: {error}; {right}') from None


def address_of(text: str) -> Address:
    """Return a client's address as rules mean it: an IPv4 address that came in by IPv6 is one, and zones do not count.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
