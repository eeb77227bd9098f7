"""The handshake: who has the key comes in, nobody else, and nothing can be shown again (F40)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.model.errors import NotAuthorised
from controllerd.replication.auth import NONCE_BYTES, Handshake, Peer
from controllerd.replication.frames import Frame, FrameError, FrameReader, FrameType, encode_frame
from controllerd.replication.messages import Hello
from controllerd.storage.buffers import BufferPool

KEY = b"0123456789abcdef0123456789abcdef"


def side(dialler: bool, key: bytes | None = KEY, seed: int = 0, name: str = "") -> Handshake:
    nonce = bytes([seed + dialler]) * NONCE_BYTES
    return Handshake(dialler=dialler, controller=name or ("B" if dialler else "A"), serial=1, key=key, nonce=nonce)


def frame(data: bytes) -> Frame:
    """The one frame in ``data``."""
    reader = FrameReader(BufferPool(1 << 20))
    reader.trust()
    reader.buffer[: len(data)] = data
    (found,) = reader.received(len(data))
    return found


def shake(dialler: Handshake, acceptor: Handshake) -> list[bytes]:
    """Run the handshake; returns the frames in order."""
    hello_b = dialler.begin()
    hello_a = acceptor.receive(frame(hello_b))
    proof_b = dialler.receive(frame(hello_a))
    proof_a = acceptor.receive(frame(proof_b))
    assert dialler.receive(frame(proof_a)) == b""
    return [hello_b, hello_a, proof_b, proof_a]


def test_both_sides_know_each_other_afterwards() -> None:
    dialler, acceptor = side(True), side(False)
    shake(dialler, acceptor)
    assert dialler.peer == Peer("A", 1, True)
    assert acceptor.peer == Peer("B", 1, True)


def test_dialler_with_a_wrong_key_is_refused_and_never_gets_a_proof() -> None:
    dialler, acceptor = side(True, b"x" * 32), side(False)
    hello = acceptor.receive(frame(dialler.begin()))
    with pytest.raises(NotAuthorised, match="shared key"):
        acceptor.receive(frame(dialler.receive(frame(hello))))
    assert acceptor.peer is None
    with pytest.raises(FrameError):
        acceptor.receive(frame(dialler.begin()))


def test_acceptor_with_a_wrong_key_is_refused_by_the_dialler() -> None:
    dialler, impostor = side(True), side(False, b"x" * 32)
    hello = impostor.receive(frame(dialler.begin()))
    dialler.receive(frame(hello))
    with pytest.raises(NotAuthorised):
        dialler.receive(frame(encode_frame(FrameType.PROOF, bytes(32))))


def test_reflected_messages_prove_nothing() -> None:
    dialler = side(True)
    with pytest.raises(NotAuthorised, match="own HELLO"):
        dialler.receive(frame(dialler.begin()))
    dialler = side(True)
    hello = Hello(1, "A", 1, "ab" * NONCE_BYTES).encode()
    proof = dialler.receive(frame(hello))
    with pytest.raises(NotAuthorised):
        dialler.receive(frame(proof))


def test_proof_relayed_from_a_second_connection_is_refused() -> None:
    """An attacker between two connections to the same acceptor cannot use one side's proof on the other."""
    victim, acceptor = side(True), side(False, seed=5)
    other = side(False, seed=9)
    hello_one = acceptor.receive(frame(victim.begin()))
    hello_two = other.receive(frame(victim.begin()))
    assert hello_one != hello_two
    proof = victim.receive(frame(hello_one))
    with pytest.raises(NotAuthorised):
        other.receive(frame(proof))


def test_recorded_session_cannot_be_played_again() -> None:
    hello_b, _, proof_b, _ = shake(side(True), side(False))
    fresh = side(False, seed=50)
    fresh.receive(frame(hello_b))
    with pytest.raises(NotAuthorised):
        fresh.receive(frame(proof_b))


def test_changed_name_breaks_the_proof() -> None:
    dialler, acceptor = side(True), side(False)
    hello = Hello.decode_untrusted(frame(dialler.begin()).payload)
    forged = Hello(hello.protocol, "C", hello.serial, hello.nonce).encode()
    answer = acceptor.receive(frame(forged))
    with pytest.raises(NotAuthorised):
        acceptor.receive(frame(dialler.receive(frame(answer))))


def test_empty_proof_is_refused_when_a_key_is_needed() -> None:
    keyless, acceptor = side(True, None), side(False)
    hello = acceptor.receive(frame(keyless.begin()))
    with pytest.raises(NotAuthorised):
        acceptor.receive(frame(keyless.receive(frame(hello))))


def test_without_keys_nobody_is_proved() -> None:
    dialler, acceptor = side(True, None), side(False, None)
    shake(dialler, acceptor)
    assert acceptor.peer == Peer("B", 1, False)


def test_short_key_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="fewer than 16"):
        side(True, b"short")


@pytest.mark.parametrize("bad", [Hello(2, "B", 1, "00" * 32), Hello(1, "B", 1, "00"), Hello(1, "B", 1, "")])
def test_hello_of_another_protocol_or_with_a_short_nonce_is_refused(bad: Hello) -> None:
    with pytest.raises(FrameError):
        side(False).receive(frame(bad.encode()))


@given(st.sampled_from([FrameType.HELLO, FrameType.PROOF, FrameType.REFUSE]), st.binary(max_size=200))
def test_any_other_message_is_refused_and_ends_the_handshake(kind: FrameType, payload: bytes) -> None:
    acceptor = side(False)
    with pytest.raises((FrameError, NotAuthorised)):
        acceptor.receive(frame(encode_frame(kind, payload)))
    with pytest.raises(FrameError):
        acceptor.receive(frame(side(True).begin()))
    assert acceptor.peer is None
