"""What one client sees of the export table.

Owns: who a connection's client is, and the volumes as its grants show them.
Never: decides a grant (model/access.py), or closes anything.

A volume that a client may not open does not exist for it: it is not listed, and INFO and GO answer
NBD_REP_ERR_UNKNOWN with the text for a name that nobody gave. NBD_REP_ERR_POLICY would tell that it is there.

Source: proto.md, "Option reply types".
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, cast

from controllerd.model.access import Client, Grant, address_of
from controllerd.model.errors import ReadOnly
from controllerd.targets.nbd.ports import ExportTable, Group, Volume
from controllerd.targets.nbd.tls import names_of


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whose session it is. ``opened_ns``: wall time, for people; ``tls``: version in use, None in clear."""

    number: int
    peer: str
    client: Client
    tls: str | None
    opened_ns: int


def identify(transport: asyncio.BaseTransport) -> Client:
    """Return the client at the other end.

    Raises:
        ValueError: the connection is gone already, so that nobody can tell.
    """
    names = names_of(transport.get_extra_info("peercert"))
    sock, address = transport.get_extra_info("socket"), transport.get_extra_info("peername")
    if sock is not None and sock.family == socket.AF_UNIX:
        return Client(None, names)
    if not isinstance(address, tuple):
        raise ValueError("connection has no peer")
    return Client(address_of(address[0]), names)


class ClientExports:
    """An `ExportTable` as ``client`` may see it; TLS gives the client names while the handshake goes on."""

    def __init__(self, exports: ExportTable, client: Client) -> None:
        self.client = client
        self._exports = exports

    def lookup(self, name: str) -> Volume | None:
        """Return the volume of that name, read-only if the client may not write; None: there is none for it."""
        volume = self._exports.lookup(name)
        return None if volume is None else self._shown(volume)

    def names(self) -> list[Any]:
        """Return what a listing for this client has."""
        return [shown for volume in self._exports.names() if (shown := self._shown(volume)) is not None]

    def _shown(self, volume: Volume) -> Volume | None:
        granted = volume.grant(self.client)
        if granted is Grant.NONE:
            return None
        # The view passes everything on but what makes it read-only, also what Volume does not name.
        return volume if granted is Grant.READ_WRITE else cast(Volume, ReadOnlyVolume(volume))


class ReadOnlyVolume:
    """A volume for a client that may read it only."""

    writable = False

    def __init__(self, volume: Volume) -> None:
        self.group = cast(Group, _ReadOnlyGroup(volume))
        self._volume = volume

    def __getattr__(self, name: str) -> Any:
        return getattr(self._volume, name)


class _ReadOnlyGroup:
    accepting = True
    """A write that is refused need not wait."""

    def __init__(self, volume: Volume) -> None:
        self._group = volume.group
        self._name = volume.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def stage_write(self, *_arguments: Any, **_options: Any) -> int:
        raise ReadOnly(f"volume {self._name} is read-only for this client")

    stage_zeroes = stage_write
