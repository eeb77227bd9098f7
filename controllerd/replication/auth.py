"""Mutual authentication of two controllers with a shared key.

Owns: the order of the handshake messages and the proofs.
Never: reads sockets or keys from files, or lets anything but its own messages through.

Each side sends a fresh nonce in HELLO, then PROOF = HMAC-SHA256(key, label || SHA-256 of
the dialler's HELLO || SHA-256 of the acceptor's HELLO). The labels differ by side, so a
proof that is sent back proves nothing (no reflection), and both nonces, names and serial
numbers are in it, so it cannot be used again or for another controller. The dialler
proves first: who only listens learns nothing from the acceptor to try keys against but
what the acceptor's nonce is.

Without a key (mutual TLS alone) the proofs are empty and `Peer.proved` is false: the
adapter then checks the peer's name against its certificate.

Source: spec §4.5; invariant I17; F25, F40.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from controllerd.model.errors import NotAuthorised
from controllerd.replication.frames import HEADER_SIZE, Frame, FrameError, FrameType, encode_frame
from controllerd.replication.messages import PROTOCOL, Hello

NONCE_BYTES: Final = 32
KEY_BYTES_MIN: Final = 16
_LABELS: Final = {True: b"remotecopy transfer 1 dialler\0", False: b"remotecopy transfer 1 acceptor\0"}


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end. ``proved``: by the shared key."""

    controller: str
    serial: int
    proved: bool


class Handshake:
    """One side of the handshake: bytes to send come out, `peer` is set when it is complete.

    ``key`` None: no proof is given or asked for. After an error it stays in error.
    """

    def __init__(self, *, dialler: bool, controller: str, serial: int, key: bytes | None, nonce: bytes) -> None:
        if key is not None and len(key) < KEY_BYTES_MIN:
            raise ValueError(f"the shared key has fewer than {KEY_BYTES_MIN} bytes")
        assert len(nonce) == NONCE_BYTES
        self.peer: Peer | None = None
        self.proof_given = False
        """Whether our proof was sent: a peer that closes then does not like it."""
        self._dialler = dialler
        self._key = key
        self._hello = Hello(PROTOCOL, controller, serial, nonce.hex()).encode()
        self._theirs: Hello | None = None
        self._their_hello = b""
        self._failed = False

    def begin(self) -> bytes:
        """Return what is sent when the connection stands."""
        return self._hello if self._dialler else b""

    def receive(self, frame: Frame) -> bytes:
        """Take the peer's next frame; return what is to be sent.

        Raises:
            NotAuthorised: the peer does not have the key, or shows our own message again.
            FrameError: not the message that has to come now.
        """
        if self._failed or self.peer is not None:
            raise FrameError("the handshake is over")
        try:
            if self._theirs is None:
                return self._receive_hello(frame)
            return self._receive_proof(frame, self._theirs)
        except (FrameError, NotAuthorised):
            self._failed = True
            raise

    def _receive_hello(self, frame: Frame) -> bytes:
        if frame.type != FrameType.HELLO:
            raise FrameError(f"frame type {frame.type} where HELLO has to come")
        hello = Hello.decode_untrusted(frame.payload)
        if hello.protocol != PROTOCOL:
            raise FrameError(f"the peer speaks transfer protocol {hello.protocol}, this side {PROTOCOL}")
        if len(hello.nonce) != 2 * NONCE_BYTES:
            raise FrameError("HELLO with a nonce of a wrong length")
        self._theirs = hello
        self._their_hello = bytes(frame.payload)
        if self._their_hello == self._hello[HEADER_SIZE:]:
            raise NotAuthorised("the peer sent our own HELLO back")
        if self._dialler:
            return self._proof(dialler=True)
        return self._hello

    def _receive_proof(self, frame: Frame, theirs: Hello) -> bytes:
        if frame.type != FrameType.PROOF:
            raise FrameError(f"frame type {frame.type} where PROOF has to come")
        expected = self._digest(dialler=not self._dialler)
        if not hmac.compare_digest(bytes(frame.payload), expected):
            raise NotAuthorised(f"controller {theirs.controller!r} did not prove that it has the shared key")
        self.peer = Peer(theirs.controller, theirs.serial, self._key is not None)
        return b"" if self._dialler else self._proof(dialler=False)

    @property
    def claimed(self) -> str:
        """Which controller the other end says it is, proved or not; "" if it has not said."""
        return self._theirs.controller if self._theirs is not None else ""

    def _proof(self, *, dialler: bool) -> bytes:
        self.proof_given = True
        return encode_frame(FrameType.PROOF, self._digest(dialler=dialler))

    def _digest(self, *, dialler: bool) -> bytes:
        if self._key is None:
            return b""
        ours = hashlib.sha256(self._hello[HEADER_SIZE:]).digest()
        theirs = hashlib.sha256(self._their_hello).digest()
        transcript = ours + theirs if self._dialler else theirs + ours
        return hmac.digest(self._key, _LABELS[dialler] + transcript, "sha256")
