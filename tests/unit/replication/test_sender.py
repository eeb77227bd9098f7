"""What a sender takes a new session's position to mean."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from controllerd.replication.links import Link
from controllerd.replication.messages import Ack, Pull
from controllerd.replication.sender import Sender, Source


def _pull(epoch: int, next_seq: int, durable_seq: int) -> Pull:
    return Pull("p", "g", 1, 1, next_seq, durable_seq, epoch, 0, 1, 1 << 20, "PAIR", "")


def _group() -> SimpleNamespace:
    return SimpleNamespace(
        name="g",
        generation=1,
        last_seq=9,
        last_time=9,
        writes_total=9,
        recovered=True,
        data_total=9,
        on_commit=[],
        set_retention=lambda *_: None,
        read_journal=lambda *_: None,
    )


def _sender(group: SimpleNamespace) -> tuple[Sender, Link]:
    nothing: Any = SimpleNamespace(session_changed=lambda: None)
    sender = Sender("p", cast(Any, group), nothing, lambda: 0, 1.0, Source, 1)
    return sender, cast(Link, SimpleNamespace(writable=True, closed=False, close=lambda _: None, heard_s=0.0))


async def test_group_that_began_anew_ends_the_session() -> None:
    """Else the secondary waited for records of the old journal for ever, and called itself PAIR (seed 11000017)."""
    group = _group()
    sender, link = _sender(group)
    sender.attach(link, _pull(1, next_seq=8, durable_seq=5), 0)
    sender.check_silence(0.0, 1.0)
    before = sender.connected
    group.generation = 2
    sender.check_silence(0.0, 1.0)
    assert (before, sender.connected) == (True, False)
    await asyncio.sleep(0)


async def test_position_of_a_new_session_confirms_nothing_that_is_not_durable() -> None:
    """A stable mirror journals before it confirms: a reconnect must not confirm it first (seed 1000046, I4)."""
    sender, link = _sender(_group())
    sender.attach(link, _pull(1, next_seq=8, durable_seq=5), 0)
    assert sender.ack.received == 5
    sender.ack = Ack(6, 5, 5, 5, 0)
    sender.attach(link, _pull(2, next_seq=8, durable_seq=5), 0)
    assert sender.ack.received == 6, "what was confirmed before stays confirmed"
    sender.attach(link, _pull(3, next_seq=6, durable_seq=5), 0)
    assert sender.ack.received == 5, "but what the secondary has lost since does not"
    await asyncio.sleep(0)
