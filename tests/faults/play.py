"""One run in which a controller is killed at a step, and once more when it comes back, while others go on.

Owns: starting the victim again whenever it is gone, giving an order again after its controller died of it, hosts that
work meanwhile, and what must hold in the end: every copy equal.
Never: chooses the step, or what happens in the run (`tests.faults.scenarios` does).
"""

from __future__ import annotations

import contextlib
import itertools
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import httpx
import uvloop

from deploy.demo.processes import ProgramFailed
from hostsim.errors import CommandFailed, ConnectFailed, ConnectionLost
from hostsim.nbdclient import NbdConnection
from tests.faults.recorder import Recorder
from tests.faults.stepped import Board, Step
from tests.faults.topology import GROUPS
from tests.integration.harness import Controller, HarnessFailed, Site, wait_for, wait_until_applied

BULK: Final = "bulk"
"""A volume of group g2 that no host of the recorder uses: what it takes to fill journal segments."""
BULK_BYTES: Final = 4 << 20
PIECE_BYTES: Final = 1 << 20


class Kill(NamedTuple):
    """The end of a controller at its ``k``-th pass of ``step``."""

    step: Step
    k: int = 1

    def __str__(self) -> str:
        return f"{self.step} ({self.k})"


class Play:
    """One run of a scenario.

    Args:
        kills: what the victim dies of, one after the other; each is armed by the scenario.
        first: what it dies of before each of these, which then come while it is started again.
    """

    def __init__(self, site: Site, victim: str, kills: Sequence[Kill], first: Kill | None = None) -> None:
        self.site = site
        self.recorder = Recorder(GROUPS, seed=zlib.crc32(repr(kills).encode()))
        self.first = next(iter(site.controllers.values()))
        """Where hosts are, as long as it is not lost."""
        self.victim = site[victim]
        self.board = Board(site.directory / "board")
        self.victim.program = ("tests.faults.stepped", str(self.board.path))
        self._lost = False
        """Whether the scenario has ended the victim."""
        self._aimed = False
        """Whether a kill was armed since the victim's last death."""
        self._to_come = deque(kills)
        self._before = first
        self._kill: Kill | None = None
        self._passes: int | None = None
        """Of the kill's step before it was armed; None: it is not armed yet."""

    # ---- the kill --------------------------------------------------------------

    def arm(self) -> bool:
        """From now on the next kill's step counts; returns whether there is one. The kill before must have happened."""
        self._end_kill()
        if not self._to_come:
            return False
        self._kill = self._to_come.popleft()
        if self._before is None:
            self._arm_kill()
        else:
            self._aim(self._before)
        return True

    def _arm_kill(self) -> None:
        assert self._kill is not None
        self._passes = self.board.passes(self._kill.step)
        self._aim(self._kill)

    def _aim(self, kill: Kill) -> None:
        self._aimed = True
        self.board.arm(*kill)

    def _end_kill(self) -> None:
        """Raise AssertionError if the step was not reached at all; late passes may not come."""
        self.revive()
        self.board.disarm()
        self._aimed = False
        self.revive()
        if self._kill is not None:
            made = 0 if self._passes is None else self.board.passes(self._kill.step) - self._passes
            assert made, f"{self._kill} was not reached"
            print(f"{self._kill}: {'killed' if made >= self._kill.k else 'not reached'}")
        self._kill = self._passes = None

    @property
    def over(self) -> bool:
        """Whether no kill is to come before the next `arm`."""
        return not self.board.armed and (self._kill is None or self._passes is not None)

    def revive(self) -> bool:
        """Start the victim again if it is gone, and once more if it dies of that; returns whether it was."""
        fallen = False
        while self._fallen():
            assert not self.board.armed, f"{self.victim.name} ended, and not at its step"
            fallen = True
            self.recorder.crashed(self.victim)
            self.start()
        return fallen

    def _fallen(self) -> bool:
        if self._lost:
            return False
        if self._aimed and not self.board.armed:  # it dies in a moment, if it is not gone yet
            self._aimed = False
            wait_for(f"{self.victim.name} to be gone", self.victim.gone)
            return True
        return self.victim.gone()

    def start(self) -> None:
        """Start the victim, which may die of that."""
        if self._kill is not None and self._passes is None:
            self._arm_kill()
        self._lost = False
        self.victim.start()
        try:
            self.victim.wait_ready()
        except ProgramFailed:
            assert not self.board.armed, f"{self.victim.name} did not start"
        else:
            self.recorder.restarted(self.victim)

    def lose(self, controller: Controller) -> None:
        """End a controller, which may be the victim; `start` and `bring_back` start it again."""
        controller.kill()
        self.recorder.crashed(controller)
        self._lost = self._lost or controller is self.victim

    def bring_back(self, controller: Controller) -> None:
        """Start a controller that was lost; if it is the victim it may die of that."""
        if controller is self.victim:
            self.start()
            return
        controller.start()
        controller.wait_ready()
        self.recorder.restarted(controller)

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Return when ``ready()`` holds; the victim may die meanwhile."""

        def reached() -> bool:
            self.revive()
            with contextlib.suppress(httpx.TransportError):
                return ready()
            return False

        wait_for(what, reached)

    def order(self, give: Callable[[], object], done: Callable[[], bool] | None = None) -> None:
        """Give an order, again after the victim died of it; ``done``: whether it needs not be given again."""

        def given() -> bool:
            try:
                give()
            except httpx.TransportError:
                wait_for(f"{self.victim.name} to be gone", self.revive)
            except HarnessFailed as error:
                failures.append(error)
            else:
                self.revive()
                return True
            self.revive()
            return done is not None and done()

        failures: list[HarnessFailed] = []
        try:
            self.wait("an order to be carried out", given)
        except HarnessFailed as error:
            raise HarnessFailed(f"{error}; refused: {failures[-1:]}") from error

    def linger(self) -> None:
        """Give the victim time for a step that it takes by itself."""
        deadline = time.monotonic() + 6.0
        while not self.over and time.monotonic() < deadline:
            self.revive()
            time.sleep(0.05)
        self.revive()

    def take_over(self, controller: Controller, domain: str) -> None:
        """Order a takeover until it is done."""
        with self.recorder.ordered(controller, "takeover"):
            self.order(lambda: controller.takeover(domain))

    # ---- hosts -----------------------------------------------------------------

    def work(self, controller: Controller, *, steps: int = 12, bulk: bool = False) -> None:
        """Let hosts work, and start the victim again meanwhile."""

        def load() -> None:
            self.recorder.work(controller, steps=steps, limit_s=20)
            if bulk:
                uvloop.run(_on_bulk(controller, _fill))

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(load)
            while not future.done():
                self.revive()
                time.sleep(0.02)
            future.result()
        self.revive()

    def trim(self, controller: Controller) -> None:
        """Trim the bulk volume, which gives its space back."""
        uvloop.run(_on_bulk(controller, _trim))

    # ---- the end ---------------------------------------------------------------

    def settle(self, *names: str, groups: Collection[str] = tuple(GROUPS)) -> None:
        """No more kills; hosts work at the first of ``names`` and the other copies of ``groups`` become equal to it."""
        self._end_kill()
        sites = [self.site[name] for name in names]
        self.work(sites[0])
        for primary, secondary in itertools.pairwise(sites):
            wait_until_applied(primary, secondary, groups)
        self.recorder.image(sites[0])
        for controller in sites:
            self.recorder.status(controller)
        copies = [self.recorder.shown(controller) for controller in sites]
        for volume, facts in self.recorder.history.volumes.items():
            shown = [copy[volume] for copy in copies if facts.group in groups]
            assert all(copy == shown[0] for copy in shown), f"{volume} is not the same at {', '.join(names)}"

    def crash_again(self) -> None:
        """Kill the victim once more and look at what it has."""
        self.lose(self.victim)
        self.start()
        self.recorder.image(self.victim)


async def _on_bulk(controller: Controller, act: Callable[[NbdConnection], Awaitable[None]]) -> None:
    """Do something with the bulk volume; that the connection is lost is no error."""
    try:
        connection = await NbdConnection.connect(controller.uri(BULK))
    except ConnectFailed:
        return  # that is what a crash looks like to a host
    with contextlib.suppress(CommandFailed, ConnectionLost):
        await act(connection)
    await connection.close()


async def _fill(connection: NbdConnection) -> None:
    for offset in [*range(0, BULK_BYTES, PIECE_BYTES)] * 2:
        await connection.write(offset, b"bulk" * (PIECE_BYTES // 4))


async def _trim(connection: NbdConnection) -> None:
    await connection.trim(0, BULK_BYTES)
