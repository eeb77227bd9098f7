"""An NBD client on a plain socket, which sends anything it is told, to any server.

Owns: the handshake up to transmission, and one request after the other.
Never: checks more of a reply than the strict reader of the unit tests does.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import Replies, Reply

Style = Literal["simple", "structured", "extended"]


class RawClient:
    """A connection over a UNIX socket, in its transmission phase."""

    def __init__(self, path: Path, export: str, style: Style, *contexts: str) -> None:
        self.style = style
        self.replies = Replies(structured=style != "simple", extended=style == "extended")
        self._cookie = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        try:
            self.socket.connect(str(path))
            self.size, self.flags = self._negotiate(export, contexts)
        except BaseException:
            self.socket.close()
            raise

    def _negotiate(self, export: str, contexts: tuple[str, ...]) -> tuple[int, int]:
        assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.socket.sendall(struct.pack(">I", 3))
        if self.style != "simple":
            self.option(client.option(client.STRUCTURED if self.style == "structured" else client.EXTENDED))
        if contexts:
            self.option(client.meta(client.SET_META, export, *contexts))
        (item,) = [data for data in self.option(client.go(export)) if data[:2] == b"\0\0"]
        _, size, flags = struct.unpack(">HQH", item)
        return size, flags

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def receive(self, length: int) -> bytes:
        """Receive exactly ``length`` bytes."""
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            assert part, "server closed"
            data += part
        return data

    def option(self, data: bytes) -> list[bytes]:
        """Send an option that must succeed; return the data of its replies before the last."""
        self.socket.sendall(data)
        found: list[bytes] = []
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.receive(20))
            found.append(self.receive(length))
            if kind == client.ACK:
                return found[:-1]
            assert kind < client.ERR, f"error {kind:#x}: {found[-1]!r}"

    def encode(self, command: int, cookie: int, offset: int, length: int, flags: int, data: bytes | None) -> bytes:
        """Return a request in the connection's style."""
        if command == client.READ:
            self.replies.reads[cookie] = length
        if self.style == "extended":
            self.replies.offsets[cookie] = offset
            return client.extended_request(command, cookie, offset, length, flags, data)
        return client.request(command, cookie, offset, length, flags, data or b"")

    def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes | None = None) -> Reply:
        """Send one request and return its reply."""
        self._cookie += 1
        self.socket.sendall(self.encode(command, self._cookie, offset, length, flags, data))
        return self.answers(1)[self._cookie]

    def answers(self, count: int) -> dict[int, Reply]:
        """Return the replies to ``count`` requests."""
        found: dict[int, Reply] = {}
        while len(found) < count:
            part = self.socket.recv(1 << 20)
            assert part, "server closed"
            self.replies.feed(part)
            found.update(self.replies.take())
        assert len(found) == count
        return found
