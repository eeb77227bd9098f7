"""kill -9 and errors at the k-th system call of a real controller (F1, F12, F13), judged by the checker."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from tests.faults.matrix import WHOLE_LIMIT_S, every_step
from tests.faults.recorder import Recorder
from tests.faults.strace import Injection
from tests.faults.topology import GROUPS, SETTINGS, again, cascade, single, take_over_in_turn
from tests.integration.harness import Controller, Site, reported, wait_for

WRITES = "pwrite64,pwritev,pwritev2"
"""Python makes the last of its `os.pwritev` where the C library has it."""
FILES = "fallocate,openat,unlink"
CALLS = (WRITES, "fdatasync", FILES, "write,writev")
STEPS = 60


def orders(controller: Controller) -> None:
    """Make disk, group and volume, and delete what can be deleted: that makes and removes files. Or until it dies."""
    with contextlib.suppress(httpx.TransportError):
        controller.post("/v1/disks", {"name": "more", "size": 4 << 20})
        controller.post("/v1/pools", {"name": "more", "disks": ["more"]})
        controller.create_group("more", {})
        controller.post("/v1/volumes", {"name": "more", "size": 1 << 20, "pool": "more", "group": "more"})
        controller.delete("/v1/volumes/more")
        controller.delete("/v1/groups/more")


@pytest.mark.timeout(WHOLE_LIMIT_S)
@pytest.mark.parametrize("calls", CALLS)
def test_killed_at_a_call(calls: str) -> None:
    def attempt(k: int) -> int:
        recorder = Recorder(GROUPS, seed=k)
        with single() as (site, controller), reported(site, calls=calls, k=k):
            recorder.work(controller, steps=20)
            with Injection(controller.pid, calls, f"signal=KILL:when={k}", site.directory / "strace") as injection:
                if calls == FILES:  # what hosts do makes no such call
                    orders(controller)
                else:
                    recorder.work(controller, steps=STEPS)
            made = injection.made
            assert controller.gone() == (made >= k)
            if made >= k:
                again(recorder, controller)
                recorder.work(controller, steps=20)
            recorder.image(controller)
            controller.kill()
            again(recorder, controller)
        recorder.judge()
        return made

    every_step(attempt, (1, 7))


@pytest.mark.timeout(WHOLE_LIMIT_S)
@pytest.mark.parametrize("when", ["once", "from then on"])
@pytest.mark.parametrize("calls", [WRITES, "fdatasync"])
def test_call_fails_with_eio(calls: str, when: str) -> None:
    """What was promised holds, and the daemon stays up."""

    def attempt(k: int) -> int:
        recorder = Recorder(GROUPS, seed=k)
        with single() as (site, controller), reported(site, calls=calls, when=when, k=k):
            recorder.work(controller, steps=20)
            error = f"error=EIO:when={k}" + ("+" if when == "from then on" else "")
            with Injection(controller.pid, calls, error, site.directory / "strace") as injection:
                recorder.work(controller, steps=STEPS)
                assert not controller.gone(), "an error of the disk ended the daemon"
            made = injection.made
            assert bool(injection.hits) == (made >= k)
            recorder.work(controller, steps=20)
            controller.kill()
            again(recorder, controller)
            recorder.work(controller, steps=20)
            recorder.image(controller)
        recorder.judge()
        return made

    every_step(attempt, (1, 4))


@pytest.mark.parametrize("group", ["g1", "g2"])
def test_no_flush_succeeds_after_a_failed_journal_sync(group: str) -> None:
    recorder = Recorder({group: dict(GROUPS[group])}, seed=1)
    with single() as (site, controller), reported(site, group=group):
        recorder.work(controller, steps=10)
        journals = tuple(sorted((controller.directory / "data" / "journals").glob("*/*.seg")))
        log = site.directory / "strace"
        with Injection(controller.pid, "fdatasync", "error=EIO:when=1", log, journals) as injection:
            begun = len(recorder.history.events)
            recorder.work(controller, hosts=1, steps=40)
            wait_for("a sync to fail", lambda: injection.hits > 0)
        assert controller.group(group)["fault"], "the group says nothing of its failed journal"
        recorder.work(controller, hosts=1, steps=20)
        events = [type(event).__name__ for event in recorder.history.events[begun:]]
        assert "Failed" in events, "hosts were not told"
        controller.kill()
        again(recorder, controller)
    recorder.judge()


@pytest.mark.timeout(WHOLE_LIMIT_S)
@pytest.mark.parametrize("victim", ["C", "A", "B"])
@pytest.mark.parametrize("calls", CALLS[:2])
def test_cascade_with_one_killed_at_a_call(calls: str, victim: str) -> None:
    """C -(synchronous)- A -(asynchronous)- B; the victim dies at its k-th call and comes back, then both take over."""

    def attempt(k: int) -> int:
        recorder = Recorder(GROUPS, seed=k)
        with Site(["C", "A", "B"], SETTINGS) as site, reported(site, calls=calls, victim=victim, k=k):
            site.start()
            cascade(site, recorder)
            recorder.work(site["C"], steps=10)
            with Injection(site[victim].pid, calls, f"signal=KILL:when={k}", site.directory / "strace") as injection:
                recorder.work(site["C"], steps=30, limit_s=5)
            made = injection.made
            assert site[victim].gone() == (made >= k)
            if made >= k:
                again(recorder, site[victim])
            recorder.work(site["C"], steps=10)
            take_over_in_turn(site, recorder)
        recorder.judge()
        return made

    every_step(attempt, (2,))
