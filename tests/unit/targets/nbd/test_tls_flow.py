"""A session over TLS gives its transport no more than the client takes."""

from __future__ import annotations

import asyncio

from controllerd.targets.nbd.settings import KIB, MIB, Limits
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.desk import Desk
from tests.unit.targets.nbd.fake_storage import FakeVolume

LENGTH = 4 * MIB
ONE_GO = 256 * KIB


async def turn() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def stuck_desk() -> Desk:
    """A client over TLS that takes nothing, and a long reply to it under way in one piece."""
    volume = FakeVolume(size=8 * MIB)
    volume.image[:LENGTH] = bytes(range(256)) * (LENGTH // 256)
    desk = Desk(volume, Limits(), tls="TLSv1.3")
    desk.transport.taken = False
    desk.receive(request(client.READ, 1, 0, LENGTH, client.DF), request(client.WRITE, 2, 0, data=b"x"))
    return desk


async def test_long_reply_is_encrypted_as_it_is_taken() -> None:
    desk = stuck_desk()
    await turn()
    turns = 0
    given = desk.transport.buffered
    while given < LENGTH:
        assert 0 < desk.transport.buffered <= desk.transport.high + ONE_GO
        assert desk.session.memory >= LENGTH - given + desk.transport.buffered
        desk.transport.take()
        desk.transport.taken = False
        await turn()
        given += desk.transport.buffered
        turns += 1
    assert turns >= 3
    desk.transport.take()
    await turn()
    assert desk.transport.reading
    replies = desk.got()
    assert replies[1].data == {0: bytes(desk.volume.image[:LENGTH])}
    assert replies[2].error == 0


async def test_end_waits_until_tls_has_everything() -> None:
    desk = stuck_desk()
    await turn()
    desk.session.shut_down()
    assert not desk.transport.is_closing()
    for _ in range(20):
        if not desk.transport.is_closing():
            desk.transport.take()
            desk.transport.taken = False
            await turn()
    assert desk.transport.is_closing()
    assert not desk.transport.aborted
    assert sum(map(len, desk.transport.written)) > LENGTH


async def test_connection_lost_with_replies_left() -> None:
    desk = stuck_desk()
    await turn()
    desk.session.connection_lost(None)
    await turn()
    assert desk.reasons == [""]
