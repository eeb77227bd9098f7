"""Operators' orders during chaos: one small class each. A new one is a class in `ORDERS`.

Owns: giving the order through the function that the management API calls, repeating it after a
crash as an operator would, and noting order and answer.
Never: decides when; the plan does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final

from controllerd.model.errors import RemoteCopyError
from controllerd.model.pair_state import Role
from tests.simulation import history as h
from tests.simulation.disk import POWER_LOSSES, Loss
from tests.simulation.history import SECTOR
from tests.simulation.life import Died

if TYPE_CHECKING:
    from controllerd.storage.group import Group
    from tests.simulation.machine import Site
    from tests.simulation.world import World

DOMAIN: Final = "default"
RETRY_S: Final = 0.5
TRIES: Final = 40


class Order:
    """One kind of order; `run` gives it once and returns when it is answered for good."""

    weight: ClassVar[float] = 1.0

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng

    async def run(self) -> None:
        """Give the order."""
        raise NotImplementedError

    async def give(
        self, site: Site, name: str, group: str, work: Callable[[], Coroutine[Any, Any, Any]], **facts: Any
    ) -> tuple[int, Any, str]:
        """Order until there is an answer; returns (number of the order, what it returned, error code or "")."""
        world = self.world
        number = world.next_request()
        world.note(h.Ordered(world.now_s, number, site.name, name, group, facts))
        for _ in range(TRIES):
            if site.serving and site.life is not None:
                try:
                    return number, await site.life.perform(work()), ""
                except Died:
                    world.reached(f"crash during {name}")
                except RemoteCopyError as error:
                    asked = any("order it again" in status.link_reason for status in site.pairs.status())
                    if not asked and error.code not in ("busy", "no-space", "journal-failed", "disk-failed"):
                        return number, None, error.code
                    world.reached(f"{name} answered {error.code}")
            await asyncio.sleep(RETRY_S)
        return number, None, "no-answer"

    def answer(self, number: int, error: str, **facts: Any) -> None:
        """Note the answer."""
        self.world.note(h.Answered(self.world.now_s, number, error, facts))


class TakeOver(Order):
    """A site takes over from those before it: with warning (hosts stop first) or after they are lost."""

    weight = 3.0
    warned: ClassVar[bool] = False

    async def run(self) -> None:
        world = self.world
        targets = self._targets()
        if not targets:
            return
        target = world.sites[self.rng.choice(targets)]
        groups = sorted({leg.group for leg in world.plan.legs if leg.secondary == target.name})
        upstream = {site for group in groups for site in world.upstream(group, target.name)}
        async with world.taking_over:
            if world.healing.is_set():
                return  # as `play`: one before was not answered until then
            if all(world.writer_of[group] in upstream for group in groups):
                await self._take_over(target, groups, sorted(upstream))

    def _targets(self) -> list[str]:
        """Who may take over."""
        return sorted({leg.secondary for leg in self.world.plan.legs})

    async def _take_over(self, target: Site, groups: list[str], upstream: list[str]) -> None:
        world = self.world
        world.hosts_held = True
        await self._prepare(target, groups, upstream)
        world.cut_off_hosts()
        number, report, error = await self.give(
            target, "takeover", "", lambda: target.pairs.takeover(DOMAIN), groups=groups
        )
        if error:
            self.answer(number, error)
        else:
            cuts = {group.group: group.cut_seq for group in report.groups}
            self.answer(number, "", cut_time=report.cut_time, cut_seqs=cuts)
            for group in groups:
                world.writer_of[group] = target.name
            world.reached("takeover")
            await world.look(target)
        world.hosts_held = False

    async def _prepare(self, target: Site, groups: list[str], upstream: list[str]) -> None:
        """What comes before."""
        if self.warned:
            await asyncio.sleep(self.rng.random())
        else:
            self._lose(upstream)

    def _lose(self, names: list[str]) -> None:
        how = self.rng.choice(("kill", "power", "alive"))
        for name in names:
            if how == "kill":
                self.world.sites[name].end(Loss.KILL)
            elif how == "power":
                self.world.sites[name].end(self.rng.choice(POWER_LOSSES))


class WarnedTakeOver(TakeOver):
    """Planned: hosts stop, what they wrote arrives or not, and the site takes over."""

    warned = True
    weight = 1.0


class TakeOverInDoubt(TakeOver):
    """A synchronous secondary loses its power, and then its primaries are lost: it takes over with what it has.

    Not one that another site follows, which would know what it has lost (ARCHITECTURE, known limits).
    """

    def _targets(self) -> list[str]:
        legs = self.world.plan.legs
        return sorted({leg.secondary for leg in legs if leg.mode == "sync"} - {leg.primary for leg in legs})

    async def _prepare(self, target: Site, groups: list[str], upstream: list[str]) -> None:
        target.end(self.rng.choice(POWER_LOSSES))
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.random() * 0.5)  # hosts go on, or wait
        self._lose(upstream)
        target.boot()
        self.world.reached("takeover in doubt")


class SplitBrain(TakeOver):
    """F29: a site takes over while those before it live, and some hosts do not hear of it: they go on there.

    For a while the sites may not hear of each other either.
    """

    async def _prepare(self, target: Site, groups: list[str], upstream: list[str]) -> None:
        world = self.world
        hosts = [host for host in world.hosts if host.plan.group in groups]
        for host in hosts:
            if host is hosts[0] or self.rng.random() < 0.5:
                host.stays_at = world.sites[world.writer_of[host.plan.group]]
        if self.rng.random() < 0.7:
            paths = [pair for name in upstream for pair in ((name, target.name), (target.name, name))]
            self._block(paths, blocked=True)
            world.loop.call_later(self.rng.random() * 4.0, self._block, paths)

    def _block(self, paths: list[tuple[str, str]], *, blocked: bool = False) -> None:
        for source, target in paths:
            self.world.network.path(source, target).blocked = blocked
        self.world.network.kick()


class Suspend(Order):
    """A pair is split by order, at either side."""

    weight = 0.3

    async def run(self) -> None:
        leg = self.rng.choice(self.world.plan.legs)
        site = self.world.sites[self.rng.choice((leg.primary, leg.secondary))]
        identity = self.world.identity(leg)
        number, _, error = await self.give(site, "suspend", leg.group, lambda: site.pairs.suspend(identity))
        self.answer(number, error)


class Look(Order):
    """Somebody asks for a preview of a takeover, which must change nothing."""

    async def run(self) -> None:
        leg = self.rng.choice(self.world.plan.legs)
        site = self.world.sites[leg.secondary]
        for _ in range(self.rng.randint(1, 5)):
            if site.serving and site.life is not None:
                site.life.call(self._preview, site)
            await asyncio.sleep(self.rng.random() * 0.5)

    @staticmethod
    def _preview(site: Site) -> None:
        try:
            site.pairs.preview(DOMAIN)
        except RemoteCopyError:
            return  # the domain was taken over and is gone


class Trespass(Order):
    """A host writes to a secondary all the same: it is refused, and nothing comes of it (I16)."""

    async def run(self) -> None:
        world = self.world
        leg = self.rng.choice(world.plan.legs)
        site = world.sites[leg.secondary]
        for _ in range(self.rng.randint(5, 20)):
            if site.serving and site.life is not None:
                site.life.call(self._write, site, site.storage.groups[leg.group])
            await asyncio.sleep(self.rng.random() * 0.5)

    def _write(self, site: Site, group: Group) -> None:
        if group.role is not Role.SECONDARY:
            return
        volume = next(iter(group.volumes.values()))
        try:
            group.stage_write(volume, 0, memoryview(bytes(SECTOR)))
        except RemoteCopyError:
            if not volume.writable:
                self.world.reached("a write to a secondary was refused")
                return
        self.world.problems.append(f"I16: {site.name} is a secondary of {group.name}, and hosts may write there")


ORDERS: Final[tuple[type[Order], ...]] = (TakeOver, WarnedTakeOver, Suspend, Look)
KINDS: Final = tuple((order.__name__, order.weight) for order in ORDERS)
_RARE: Final[tuple[tuple[type[Order], float], ...]] = ((SplitBrain, 0.1), (TakeOverInDoubt, 0.1), (Trespass, 0.1))
"""Orders with the share of seeds that have them. See `plan.draw`: new ones at the end."""
RARE: Final = tuple((order.__name__, share) for order, share in _RARE)
BY_NAME: Final = {order.__name__: order for order in (*ORDERS, *(order for order, _ in _RARE))}


async def play(world: World, kind: str, number: int, at: float) -> None:
    """Give order ``number`` at its time, unless the world heals before."""
    await asyncio.sleep(at)
    if not world.healing.is_set():
        await BY_NAME[kind](world, world.plan.stream("order", number)).run()
