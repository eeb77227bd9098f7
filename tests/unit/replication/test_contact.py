"""What a secondary keeps of its primary's present over a crash."""

from __future__ import annotations

from controllerd.replication.contact import Contact, KeptContacts
from controllerd.replication.messages import Heartbeat
from controllerd.storage.catalogue import Catalogue

SECOND = 10**9


class Run:
    """One run of a secondary with pairs "p" and "q"; a crash is the next run."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.now_s = 0.0
        self.kept = KeptContacts(catalogue)
        self.contacts = {name: Contact(1, lambda: SECOND, lambda: self.now_s, 1.0) for name in "pq"}
        for contact in self.contacts.values():
            contact.on_limit = lambda: self.kept.keep_limits(self.contacts, self.now_s)
        self.kept.restore(self.contacts)

    def heard(self, name: str, limit_time: int) -> None:
        self.contacts[name].heartbeat(Heartbeat(7, 70, SECOND, 1, 0, 0, limit_time=limit_time), self.now_s)


def test_crash_right_after_a_limit_was_heard_does_not_lift_it() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("q", 0)
    run.kept.keep(run.contacts, run.now_s)
    run.heard("p", 69)
    again = Run(catalogue)
    assert (again.contacts["p"].limit_time, again.contacts["q"].limit_time) == (69, 0)
    assert again.contacts["q"].beat is not None


def test_limit_that_stands_again_outlives_a_crash_and_its_end_before() -> None:
    catalogue = Catalogue(":memory:")
    run = Run(catalogue)
    run.heard("p", 69)
    run.heard("p", 0)
    run.kept.keep_now(run.contacts, run.now_s)
    run.heard("p", 69)
    again = Run(catalogue)
    again.contacts["p"].applied(7)
    assert again.contacts["p"].limit_time == 69
