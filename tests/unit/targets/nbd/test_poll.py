"""Looks for the next request: worth it for a busy client, rare for one that thinks, none for an idle one."""

from __future__ import annotations

from collections.abc import Callable

from controllerd.targets.nbd.poll import Poll
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.desk import Desk

WINDOW_S = 50e-6
TURN_S = 5e-6


class Loop:
    """A loop whose turns take a fixed time."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.now = 0.0
        self.due: list[Callable[[], None]] = []
        self.poll = Poll(window_s, self.due.append, lambda: self.now)

    def turns(self, limit: int = 1000) -> int:
        """Run until it would sleep, ``limit`` turns at most; returns how many there were."""
        count = 0
        while self.due and count < limit:
            due = self.due[:]
            self.due.clear()
            self.now += TURN_S
            for callback in due:
                callback()
            count += 1
        return count


def test_a_look_ends_when_nothing_comes() -> None:
    loop = Loop()
    loop.poll.served(1)
    assert 10 <= loop.turns() <= 11
    assert loop.turns() == 0


def test_a_busy_client_is_looked_for_all_the_time() -> None:
    loop = Loop()
    loop.poll.served(1)
    for _ in range(200):
        assert loop.turns(4) == 4, "it sleeps although the next request came soon every time"
        loop.poll.served(1)


def test_a_client_that_thinks_is_looked_for_once_in_64_passes() -> None:
    loop = Loop()
    for _ in range(200):
        loop.poll.served(1)
        loop.turns()
    looks = 0
    for _ in range(6400):
        loop.poll.served(1)
        looks += loop.turns() > 0
    assert looks == 100


def test_a_client_that_becomes_busy_again_is_looked_for_again() -> None:
    loop = Loop()
    for _ in range(200):
        loop.poll.served(1)
        loop.turns()
    for _ in range(64):
        loop.poll.served(1)
    assert loop.due
    loop.poll.served(1)
    loop.turns()
    loop.poll.served(1)
    loop.poll.served(1)
    assert loop.due, "one hit is enough: only the look after it failed"


def test_no_looks_while_several_clients_are_at_work() -> None:
    loop = Loop()
    loop.poll.served(1)
    loop.poll.served(2)
    assert loop.turns() == 1, "the look for the first one goes on"
    for _ in range(100):
        for number in range(1, 17):
            loop.poll.served(number)
            assert not loop.due
    for _ in range(10):
        loop.poll.served(16)
    assert loop.due, "it is alone again"


def test_no_looks_without_a_window() -> None:
    loop = Loop(0.0)
    loop.poll.served(1)
    assert not loop.due


async def test_a_session_is_looked_for_once_everything_is_answered() -> None:
    looks: list[Callable[[], None]] = []
    desk = Desk(poll=Poll(1.0, looks.append, lambda: 0.0))
    desk.group.hold_complete = True
    desk.receive(request(client.WRITE, 1, 0, data=b"w"))
    assert desk.got() == {}
    assert not looks, "the next thing comes from elsewhere"
    desk.group.complete(1)
    assert set(desk.got()) == {1}
    assert len(looks) == 1
