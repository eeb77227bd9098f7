"""What a secondary keeps of its primary's present over a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from controllerd.replication.contact import Contact, KeptContacts
from controllerd.replication.messages import Heartbeat
from controllerd.storage.catalogue import Catalogue

SECOND = 10**9


class Run:
    """One run of a secondary with pairs "p" and "q"; a crash is the next run."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.now_s = 0.0
        self.events: list[str] = []
        self.thread_may_go = asyncio.Event()
        self.thread_may_go.set()
        self.kept = KeptContacts(catalogue, self.run_blocking, lambda event, _facts: self.events.append(event))
        self.contacts = {name: Contact(1, lambda: SECOND, lambda: self.now_s, 1.0) for name in "pq"}
        for contact in self.contacts.values():
            contact.on_limit = lambda: self.kept.keep_limits(self.contacts, self.now_s)
        self.kept.restore(self.contacts)

    async def run_blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A thread that comes to its work as late as the test wants."""
        await self.thread_may_go.wait()
        return function(*arguments)

    def heard(self, name: str, limit_time: int) -> None:
        self.contacts[name].heartbeat(Heartbeat(7, 70, SECOND, 0, limit_time=limit_time), self.now_s)


async def test_crash_right_after_a_limit_was_heard_does_not_lift_it() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    run.kept.keep(run.contacts, run.now_s)
    await run.kept.settle()
    run.heard("p", 69)
    again = Run(catalogue)
    assert (again.contacts["p"].limit_time, again.contacts["q"].limit_time) == (69, 0)
    assert again.contacts["q"].beat is not None


async def test_limit_that_stands_again_outlives_a_crash_and_its_end_before() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("p", 69)
    run.heard("p", 0)
    run.kept.keep_now(run.contacts, run.now_s)
    run.heard("p", 69)
    again = Run(catalogue)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].limit_time == 69


async def test_thread_that_comes_late_does_not_lift_a_limit_that_was_kept_meanwhile() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    run.thread_may_go.clear()
    run.kept.keep(run.contacts, run.now_s)
    await asyncio.sleep(0)
    run.heard("p", 69)
    run.thread_may_go.set()
    await run.kept.settle()
    assert Run(catalogue).contacts["p"].limit_time == 69


async def test_contacts_that_cannot_be_kept_are_reported_and_tried_again() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    catalogue._database.execute("PRAGMA query_only = 1")
    run.kept.keep(run.contacts, run.now_s)
    await run.kept.settle()
    assert run.events == ["contacts-keep-failed"]
    catalogue._database.execute("PRAGMA query_only = 0")
    run.now_s += 5
    run.kept.keep(run.contacts, run.now_s)
    await run.kept.settle()
    assert Run(catalogue).contacts["q"].beat is not None
