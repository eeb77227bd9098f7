"""Commit rounds: connections that write together are journaled together, and a lonely one is not held back."""

from __future__ import annotations

from collections.abc import Callable

from controllerd.model.errors import JournalFailed
from controllerd.targets.nbd.rounds import Rounds
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.desk import Desk
from tests.unit.targets.nbd.fake_storage import FakeVolume


class Turn:
    """The end of the loop's turn, when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.rounds = Rounds(self.due.append)
        self.rounds.sessions = 2

    def end(self) -> None:
        due = list(self.due)
        self.due.clear()
        for callback in due:
            callback()


def gather(turn: Turn, volume: FakeVolume) -> tuple[Desk, Desk]:
    """Return two sessions that write until a round brings them together."""
    desks = Desk(volume, rounds=turn.rounds), Desk(volume, rounds=turn.rounds)
    for _ in range(100):
        for desk in desks:
            desk.receive(request(client.WRITE, 0, 0, data=b"w"))
        turn.end()
        for desk in desks:
            assert set(desk.got()) == {0}
    return desks


async def test_connections_that_write_together_are_committed_together() -> None:
    turn, volume = Turn(), FakeVolume()
    first, second = gather(turn, volume)
    commits = volume.group.commits
    first.receive(request(client.WRITE, 1, 0, data=b"a"))
    second.receive(request(client.WRITE, 2, 1, data=b"b"), request(client.READ, 3, 100, 10))
    assert first.got() == {}
    assert set(second.got()) == {3}, "reads wait for nobody"
    turn.end()
    assert volume.group.commits == commits + 1
    assert set(first.got()) == {1}
    assert set(second.got()) == {2}


async def test_lonely_connection_is_not_held_back() -> None:
    turn, volume = Turn(), FakeVolume()
    first, _ = gather(turn, volume)
    waited = 0
    for n in range(200):
        first.receive(request(client.WRITE, n, 0, data=b"a"))
        if not first.got():
            waited += 1
            turn.end()
            assert set(first.got()) == {n}
    assert waited <= 5


async def test_failed_commit_of_a_round_fails_every_member() -> None:
    turn, volume = Turn(), FakeVolume()
    first, second = gather(turn, volume)
    volume.group.commit_error = JournalFailed("disk is gone")
    first.receive(request(client.WRITE, 1, 0, data=b"a"))
    second.receive(request(client.WRITE, 2, 1, data=b"b"))
    turn.end()
    assert first.got()[1].error == client.EIO
    assert second.got()[2].error == client.EIO


async def test_round_survives_the_loss_of_a_member() -> None:
    turn, volume = Turn(), FakeVolume()
    first, second = gather(turn, volume)
    first.receive(request(client.WRITE, 1, 0, data=b"a"))
    second.receive(request(client.WRITE, 2, 1, data=b"b"))
    first.session.connection_lost(None)
    turn.end()
    assert volume.image[:2] == b"ab"
    assert set(second.got()) == {2}
    assert first.transport.written == []


async def test_disconnect_in_a_round_is_answered_first() -> None:
    turn, volume = Turn(), FakeVolume()
    first, second = gather(turn, volume)
    second.receive(request(client.WRITE, 2, 1, data=b"b"))
    first.receive(request(client.WRITE, 1, 0, data=b"a"), request(client.DISC, 9))
    assert not first.transport.is_closing()
    turn.end()
    assert set(first.got()) == {1}
    assert first.transport.is_closing()


async def test_much_data_is_settled_at_once() -> None:
    turn, volume = Turn(), FakeVolume(size=4 << 20)
    first, second = gather(turn, volume)
    second.receive(request(client.WRITE, 2, 1, data=b"b"))
    replies = []
    for n in range(40):
        first.receive(request(client.WRITE, 10 + n, n * 60_000, data=bytes(60_000)))
        replies.append(len(first.got()))
    assert replies[0] == 0
    assert max(replies) * 60_000 <= 1_100_000
    assert sum(replies) == 40
    turn.end()
    assert set(second.got()) == {2}
