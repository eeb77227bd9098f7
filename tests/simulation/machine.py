"""One simulated site: a machine with disk, clock and catalogue, and the real controller on it, life after life.

Owns: starting the controller as its daemon does, and ending it as a kill or a power cut does.
Never: stands in for anything of the controller, decides when something fails, or records history.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.pairs import PairManager
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.simulation.clocks import SiteClock
from tests.simulation.disk import Loss, SimulatedDisk
from tests.simulation.life import OUTSIDE, Died, Life
from tests.simulation.network import WorldLoop
from tests.simulation.storage_machine import SimulatedCatalogue

PORT = 7
KEY = b"a shared key for simulations, 32"
RESTART_S = 0.5
"""After a failed start the supervisor tries again."""

Report = Callable[[str, str, dict[str, object]], None]


class Site:
    """Site ``name``. ``report`` is told (site, event, facts) of what the controller reports.

    Attributes:
        life: the present run of the daemon; None while it is down.
        serving: whether storage and pairs have started.
        boots: how often the machine was switched on.
    """

    def __init__(
        self,
        name: str,
        loop: WorldLoop,
        rng: random.Random,
        clock: SiteClock,
        storage: StorageSettings,
        replication: dict[str, Any],
        report: Report,
        peers: list[str],
    ) -> None:
        self.name = name
        self.loop = loop
        self.rng = rng
        self.clock = clock
        self.storage_settings = storage
        self.replication_changes = replication
        self.peers = peers
        self.disk = SimulatedDisk(rng)
        self.disk.make_directory(storage.data_directory)
        self.disk.on_cut = self._cut
        self.catalogue: SimulatedCatalogue | None = None
        self.life: Life | None = None
        self.serving = False
        self.boots = 1
        self.storage: StorageSystem
        self.pairs: PairManager
        self.on_serving: Callable[[], None] = lambda: None
        self.on_ended: Callable[[str], None] = lambda how: None
        self.cut_loss = Loss.KILL
        """What a crash leaves that the disk's ``cut_in`` brings."""
        self._report = report

    # ---- life ---------------------------------------------------------------------

    def boot(self) -> None:
        """Start the daemon; `on_serving` is called when it serves."""
        if self.life is not None:
            return
        files = self.disk.boot()
        life = self.life = Life(self.name)
        self.loop.network.booted(self.name)
        life.spawn(self._start(life, files))

    async def _start(self, life: Life, files: Any) -> None:
        try:
            self.catalogue = SimulatedCatalogue(self.disk, self.catalogue)
            self.storage = StorageSystem(
                dataclasses.replace(self.storage_settings, boot=self._boot_id),
                files,
                clock=self.clock,
                report=self._reporter(life),
                rng=random.Random(self.rng.getrandbits(64)),
                catalogue=self.catalogue,
            )
            await self.storage.start()
            self.pairs = PairManager(
                self.storage,
                self._replication_settings(),
                clock=self.clock,
                rng=random.Random(self.rng.getrandbits(64)),
                report=self._reporter(life),
            )
            self.pairs.load()
            await self.pairs.start()
        except (RemoteCopyError, OSError) as error:
            self._report(self.name, "start-failed", {"error": str(error), "kind": type(error).__name__})
            self.loop.call_soon(self.end, Loss.KILL, context=OUTSIDE)
            self.loop.call_later(RESTART_S, self.boot, context=OUTSIDE)
            return
        self.serving = True
        self.loop.call_soon(self.on_serving, context=OUTSIDE)

    @property
    def _boot_id(self) -> str:
        """Names the machine's present run, as the kernel does: a killed daemon finds the same one again."""
        return f"{self.name} {self.boots}"

    def _reporter(self, life: Life) -> Callable[[str, dict[str, object]], None]:
        def report(event: str, facts: dict[str, object]) -> None:
            if life.alive:
                self._report(self.name, event, facts)

        return report

    def _replication_settings(self) -> ReplicationSettings:
        settings = ReplicationSettings(
            controller=self.name,
            serial=sum(self.name.encode()),
            listen=Endpoint(self.name, PORT),
            peers={name: PeerSettings(name, Endpoint(name, PORT)) for name in self.peers},
            shared_key=KEY,
            nonce=lambda: self.rng.randbytes(32),
            boot=self._boot_id,
        )
        return dataclasses.replace(settings, **self.replication_changes)

    def _cut(self) -> None:
        """The disk's ``cut_in`` is over: called from the middle of what the controller does."""
        assert self.life is not None
        self.life.alive = False
        self.loop.call_soon(self.end, self.cut_loss, context=OUTSIDE)

    def end(self, loss: Loss) -> None:
        """The daemon is killed, or the machine loses its power and of what was not synced what ``loss`` says."""
        life, self.life = self.life, None
        if life is None:
            return
        self.serving = False
        self.disk.down = True
        life.end()
        self.disk.crash(loss)
        if loss is not Loss.KILL:
            self.boots += 1
        self.loop.network.died(self.name, power=loss is not Loss.KILL)
        self.on_ended("kill" if loss is Loss.KILL else "power")

    async def stop(self) -> None:
        """Stop in order, as the daemon does."""
        life = self.life
        if life is None or not self.serving:
            return

        async def work() -> None:
            await self.pairs.stop()
            await self.storage.stop()

        self.serving = False
        try:
            await life.perform(work())
        except Died:
            return
        if self.life is life:
            self.life = None
            life.end()
            self.disk.crash(Loss.KILL)
            self.loop.network.died(self.name, power=False)
            self.on_ended("stop")

    def destroy(self) -> None:
        """Free what the machine holds."""
        if self.life is not None:
            self.life.end()
        if self.catalogue is not None:
            self.catalogue.destroy()
