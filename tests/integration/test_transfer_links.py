"""The transfer port against strangers: nothing they send has any effect, and nobody else notices (I17, F35-F40)."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controllerd.model.errors import NotAuthorised, Unreachable
from controllerd.model.pair_state import Role
from controllerd.replication.frames import FrameType, encode_data_header, encode_frame
from controllerd.replication.links import dial
from controllerd.replication.messages import Farewell, Fence, Hello, Pull
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from controllerd.sockets import bind_unix
from tests.certificates import Authority
from tests.integration.transfer_site import KEY, Site, caught_up, connect, pair, spec, until

OTHER_KEY = b"not the key that the site is given"


@pytest.fixture
async def pair_of_sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """A and B with a running pair of group g; A is the one that is attacked."""
    a = Site("A", tmp_path / "A", handshake_timeout_s=0.3, connections_max=8)
    b = Site("B", tmp_path / "B")
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    await pair(a, "g", b)
    yield a, b
    for site in (a, b):
        await site.stop()


async def still_works(a: Site, b: Site) -> None:
    """The pair was not disturbed."""
    sessions = b.pairs.secondaries["A:g-B:g"].receiver.sessions
    last = await a.write("v", 1, b"after")
    await until(lambda: b.group("g").applied_seq >= last, a, b)
    assert sessions == 1
    assert a.pairs.primaries["A:g-B:g"].record.state == "PAIR"
    assert a.group("g").write_error is None


async def converse(port: int, *messages: bytes) -> bytes:
    """Send the messages and return everything that comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        for message in messages:
            writer.write(message)
            await writer.drain()
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while data := await reader.read(65536):
                received += data
    except ConnectionError:
        pass  # a reset is an answer too
    finally:
        writer.close()
    return received


def settings_of(site: Site, name: str = "B", key: bytes = KEY, **changes: object) -> ReplicationSettings:
    """Settings of somebody who dials ``site``."""
    peers = {site.name: PeerSettings(site.name, Endpoint("127.0.0.1", site.port))}
    facts: dict[str, object] = {"controller": name, "serial": 1, "peers": peers, "shared_key": key, **changes}
    return ReplicationSettings(**facts)  # type: ignore[arg-type]


async def test_orders_without_the_handshake_have_no_effect(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    fence = Fence("A:g-B:g", 5, 1, 1, "not allowed").encode()
    farewell = Farewell("A:g-B:g", "not allowed").encode()
    pull = Pull("A:g-B:g", "g", a.group("g").generation, 1, 1, 0, 2**63, 0, 1, 1 << 20, "PAIR", "").encode()
    hello = Hello(1, "B", 1, "ab" * 32).encode()
    proof = encode_frame(FrameType.PROOF, bytes(32))
    for attack in (
        (fence,),
        (farewell,),
        (pull,),
        (hello, fence),
        (hello, proof, fence),
        (hello, proof, farewell),
        (hello, pull),
        (hello, proof, pull),
    ):
        answer = await converse(a.port, *attack)
        assert len(answer) < 300  # a HELLO at most
    await still_works(a, b)


async def test_garbage_is_answered_with_a_closed_connection(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    rng = random.Random(1)
    attacks = [rng.randbytes(size) for size in (1, 31, 32, 33, 100, 5000, 100_000)]
    attacks += [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200), encode_data_header(1, 1, 1, 1 << 20)]
    attacks += [
        bytes(64),
        b"\xff" * 64,
        encode_frame(FrameType.HELLO, b"{" * 4000),
        encode_frame(FrameType.HELLO, b"[]"),
    ]
    for attack in attacks:
        await converse(a.port, attack)
    await still_works(a, b)


async def test_silent_and_slow_strangers_are_closed_in_time(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    hello = Hello(1, "B", 1, "ab" * 32).encode()
    await asyncio.gather(converse(a.port), converse(a.port, *[hello[i : i + 1] for i in range(60)]))
    await still_works(a, b)


async def test_too_many_connections_are_refused_and_the_pair_goes_on(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    await asyncio.gather(*(converse(a.port) for _ in range(40)))
    await still_works(a, b)
    assert a.pairs._acceptor.refused >= 30


async def test_wrong_key_is_refused_on_both_sides(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    with pytest.raises((Unreachable, NotAuthorised)):
        await dial(settings_of(a, key=OTHER_KEY), "A")
    await still_works(a, b)


async def test_wrong_key_is_named_once_on_both_sides(tmp_path: Path) -> None:
    a = Site("A", tmp_path / "A")
    b = Site("B", tmp_path / "B", shared_key=OTHER_KEY)
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    order = spec(a, "g", b)
    await b.pairs.create(Role.SECONDARY, order)
    await a.pairs.create(Role.PRIMARY, order)
    await until(lambda: a.pairs._acceptor.refused >= 4, a, b)
    await until(lambda: "refused at" in a.pairs.status()[0].link_reason, a, b)
    assert [facts for event, facts in a.events if event == "peer-refused"] == [
        {"address": "127.0.0.1", "claims": "B", "reason": "controller 'B' did not prove that it has the shared key"}
    ]
    (told,) = [facts for event, facts in b.events if event == "pair-not-connected"]
    assert f"A at 127.0.0.1:{a.port}: it closed the connection at our proof" in str(told["reason"])
    assert "its shared key is another one" in b.pairs.status()[0].link_reason
    await b.crash()
    b.changes["shared_key"] = KEY
    await b.start()
    await until(lambda: a.pairs.primaries[order.identity].sender.connected, a, b)
    for site in (a, b):
        await site.stop()


async def test_another_controller_than_the_one_meant_is_not_spoken_to(pair_of_sites: tuple[Site, Site]) -> None:
    a, _ = pair_of_sites
    settings = settings_of(a)
    wrong_name = {"Z": PeerSettings("Z", Endpoint("127.0.0.1", a.port))}
    with pytest.raises(NotAuthorised, match="is controller 'A'"):
        await dial(settings_of(a, peers=wrong_name), "Z")
    wrong_serial = {"A": PeerSettings("A", settings.peers["A"].endpoint, serial=12345)}
    with pytest.raises(NotAuthorised, match="serial"):
        await dial(settings_of(a, peers=wrong_serial), "A")


async def test_authenticated_stranger_to_the_pair_gets_nothing(pair_of_sites: tuple[Site, Site]) -> None:
    a, b = pair_of_sites
    for request in (
        Pull("A:g-B:g", "g", a.group("g").generation, 1, 1, 0, 2**63, 0, 1, 1 << 20, "PAIR", ""),
        Pull("A:g-B:g", "g", a.group("g").generation, 1, 1, 0, 2**63, 0, 1, 1 << 20, "PSUE", "made up"),
        Farewell("A:g-B:g", "made up"),
        Fence("A:g-B:g", 5, 1, 1, "not allowed"),
    ):
        link = await dial(settings_of(a, name="Eve"), "A")
        closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link.on_frames = lambda link, frames: None
        link.on_lost = lambda link, reason, closed=closed: closed.set_result(reason)  # type: ignore[misc]
        link.send(request.encode())
        await closed
    await still_works(a, b)


@pytest.mark.parametrize("kind", [FrameType.ACCEPT, FrameType.HELLO, FrameType.DATA, FrameType.ACK, FrameType.SYNC])
async def test_peer_that_sends_what_does_not_belong_is_closed(
    pair_of_sites: tuple[Site, Site], kind: FrameType
) -> None:
    a, b = pair_of_sites
    link = await dial(settings_of(a), "A")
    closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    link.on_lost = lambda link, reason: closed.set_result(reason)
    link.on_frames = lambda link, frames: None
    link.send(encode_data_header(1, 1, 1, 0) if kind is FrameType.DATA else encode_frame(kind, b"{}"))
    await closed
    await still_works(a, b)


# ---- mutual TLS ----------------------------------------------------------------------------


def contexts(authority: Authority, name: str) -> dict[str, Any]:
    """Server and client context of the controller ``name``."""
    certificate, key = authority.issue(name)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority.certificate)
    server.verify_mode = ssl.CERT_REQUIRED
    client.check_hostname = False  # the name is checked by the transfer path itself
    for context in (server, client):
        context.load_cert_chain(certificate, key)
    return {"server_tls": server, "client_tls": client}


@pytest.mark.parametrize("key", [KEY, None])
async def test_pair_over_mutual_tls(tmp_path: Path, key: bytes | None) -> None:
    authority = Authority(tmp_path)
    a, b = (Site(name, tmp_path / name, shared_key=key, **contexts(authority, name)) for name in "AB")
    for site in (a, b):
        await site.start()
        site.make({"g": ["v"]})
    connect(a, b)
    await pair(a, "g", b)
    for index in range(300):
        await a.write("v", index % 500, b"%d" % index)
    await caught_up(a, b, "g")
    assert await b.image("v") == await a.image("v")
    # A plain connection, and a certificate of another name, come to nothing.
    await converse(a.port, Hello(1, "B", 1, "ab" * 32).encode())
    if key is None:
        wrong = settings_of(a, key=KEY, **contexts(authority, "Eve"))
        wrong = ReplicationSettings("B", 1, peers=wrong.peers, client_tls=wrong.client_tls, server_tls=wrong.server_tls)
        link = await dial(wrong, "A")
        closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        link.on_lost = lambda link, reason: closed.set_result(reason)
        link.send(Fence("A:g-B:g", 5, 1, 1, "not allowed").encode())
        await closed
    await still_works(a, b)
    for site in (a, b):
        await site.stop()


# ---- UNIX sockets ------------------------------------------------------------------


async def test_unix_socket_is_its_users_alone_and_gone_after_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "transfer.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    a = await Site("A", tmp_path / "A", listen=Endpoint(path=str(path))).start()
    assert path.stat().st_mode & 0o777 == 0o600
    await a.stop()
    assert not path.exists()


async def test_served_unix_socket_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "transfer.sock"
    a = await Site("A", tmp_path / "A", listen=Endpoint(path=str(path))).start()
    b = Site("B", tmp_path / "B", listen=Endpoint(path=str(path)))
    with pytest.raises(OSError, match=r"replication\.listen: .*another process listens there"):
        await b.start()
    assert path.exists()
    b.storage.close()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="is not a socket"):
        bind_unix(str(tmp_path / "file"), 0o600)
    await a.stop()
