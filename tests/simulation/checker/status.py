"""What sites say of themselves: never back (I11), never better than it is (I14, I15), one writer (I13, I16).

And how it ends: pairs come to rest (I19), a second recovery finds the same (I20).

Owns: judging status reports, orders and the end of a run.
Never: takes a report for the truth; what hosts saw is (`images`).
"""

from __future__ import annotations

from typing import ClassVar

from tests.simulation.checker.base import Invariant
from tests.simulation.checker.images import Sight
from tests.simulation.checker.world import Pair, World, Write
from tests.simulation.history import (
    Acknowledged,
    Answered,
    Crashed,
    Durable,
    Event,
    Image,
    Journaled,
    Quiet,
    Restarted,
    Status,
    Submitted,
)

_Key = tuple[str, str, str]


class Forward(Invariant):
    """I11: published positions and consistency times never go back, but by a crash that may lose them, or an order."""

    name: ClassVar[str] = "I11"
    sees: ClassVar[tuple[type[Event], ...]] = (Status, Crashed, Answered)
    _OWN: ClassVar = {"primary": ("written",), "secondary": ("durable", "applied", "applied_time", "cut_time")}
    _SURVIVES_KILL: ClassVar = ("written", "durable")
    _SURVIVES_POWER: ClassVar = ("durable",)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._high: dict[tuple[str, str, str, str, int | None], int] = {}

    def see(self, event: Event) -> None:
        match event:
            case Status():
                self._judge(event)
            case Crashed(site=site, how=how):
                kept = self._SURVIVES_POWER if how in ("power", "disk") else self._SURVIVES_KILL
                self._forget(lambda key: key[0] == site and (key[3] not in kept or how == "disk"))
            case Answered(error=""):
                group = self.world.orders[event.order].group
                self._forget(lambda key: group in ("", key[1]))
            case _:
                pass

    def _forget(self, which: object) -> None:
        assert callable(which)
        self._high = {key: value for key, value in self._high.items() if not which(key)}

    def _judge(self, event: Status) -> None:
        for field in self._OWN.get(event.role, ()):
            value = getattr(event, field)
            if value is None or event.state in ("SSWS", "SMPL"):
                continue
            key = event.site, event.group, event.role, field, event.generation
            high = self._high.get(key, value)
            if value < high:
                self.wrong(f"{event.site}: {field} of {event.group} went back from {high} to {value}")
            self._high[key] = max(value, high)


class HonestLag(Invariant):
    """I14: the lag that a secondary reports is never less than the age of what its image misses."""

    name: ClassVar[str] = "I14"
    sees: ClassVar[tuple[type[Event], ...]] = (Acknowledged, Status, Image, Journaled, Durable, Crashed)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._reports: dict[tuple[str, str], Status] = {}
        self._acked_at: dict[int, float] = {}
        self._has: set[tuple[str, int]] = set()
        self._durable: set[tuple[str, int]] = set()

    def see(self, event: Event) -> None:
        if isinstance(event, Acknowledged):
            self._acked_at[event.serial] = event.at
        elif isinstance(event, Durable):
            self._durable.update((event.site, serial) for serial in event.serials)
        elif isinstance(event, Crashed):
            if event.how in ("power", "disk"):  # what recovery finds beyond that is journaled again
                self._has = {place for place in self._has if place[0] != event.site or place in self._durable}
        elif isinstance(event, Journaled):
            if event.serial is not None:
                self._has.add((event.site, event.serial))
        elif isinstance(event, Status):
            if event.role == "secondary":
                self._reports[event.site, event.group] = event
        elif isinstance(event, Image):
            for (site, group), report in self._reports.items():
                if site == event.site and report.at == event.at and report.lag_s is not None:
                    self._judge(report, event, group)

    def _judge(self, report: Status, image: Image, group: str) -> None:
        pair = self.world.pair_to(group, report.site)
        if pair is None or report.lag_s is None or self.world.down(pair.primary):
            return
        volumes = {name for name, facts in self.world.history.volumes.items() if facts.group == group}
        shown = {name: content for name, content in image.shown.items() if name in volumes}
        sight = Sight(self.world, Image(image.at, image.site, shown))
        missing = [write for _, _, write in sight.hidden(lambda write: self._sent(write, pair.primary))]
        if not missing:
            return
        oldest = min(missing, key=lambda write: write.acked)
        lag_s = image.at - self._acked_at[oldest.serial]
        if lag_s > report.lag_s + self.world.history.lag_slack_s:
            text = f"{report.site} reports {report.lag_s:.3f} s of lag for {group}"
            self.wrong(f"{text}; it misses write {oldest.serial} of {lag_s:.3f} s ago")

    def _sent(self, write: Write, primary: str) -> bool:
        """Whether a write was acknowledged, and is at the primary that the lag is measured against."""
        if write.serial not in self._acked_at or write.losable:
            return False
        if primary in self.world.tapped:
            return (primary, write.serial) in self._has
        upstream = self.world.pair_to(write.event.group, primary)
        while upstream is not None:
            if write.acked > upstream.left:
                return False
            upstream = self.world.pair_to(write.event.group, upstream.primary)
        return True


class ExplicitSuspension(Invariant):
    """I14: a suspended pair has a reason, and in the end both sides know of it."""

    name: ClassVar[str] = "I14"
    sees: ClassVar[tuple[type[Event], ...]] = (Quiet, Status)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._latest: dict[_Key, Status] = {}
        self._quiet = False

    def see(self, event: Event) -> None:
        if isinstance(event, Quiet):
            self._quiet = True
        elif isinstance(event, Status) and event.peer:
            self._latest[event.site, event.group, event.peer] = event
            if event.state == "PSUE" and not event.reason:
                self.wrong(f"{event.site}: {event.group} to {event.peer} is PSUE for no reason")

    def end(self) -> None:
        for pair in self.world.pairs if self._quiet else ():
            ours = self._latest.get((pair.primary, pair.group, pair.secondary))
            theirs = self._latest.get((pair.secondary, pair.group, pair.primary))
            if ours is None or theirs is None or self.world.silent(pair):
                continue
            if (ours.state == "PAIR") != (theirs.state == "PAIR"):
                where = f"{pair.group} from {pair.primary} to {pair.secondary}"
                self.wrong(f"{where} is {ours.state} at one end and {theirs.state} at the other")


class Label(Invariant):
    """I15: what is not consistent is not taken over."""

    name: ClassVar[str] = "I15"
    sees: ClassVar[tuple[type[Event], ...]] = (Image, Status, Answered)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._inconsistent: set[str] = set()
        self._copying: set[tuple[str, str]] = set()

    def see(self, event: Event) -> None:
        if isinstance(event, Image):
            (self._inconsistent.discard if event.consistent else self._inconsistent.add)(event.site)
        elif isinstance(event, Status) and event.role == "secondary":
            pair = event.site, event.group
            (self._copying.add if event.state == "COPY" else self._copying.discard)(pair)
        elif isinstance(event, Answered) and not event.error:
            order = self.world.orders[event.order]
            copying = any(site == order.site and order.group in ("", group) for site, group in self._copying)
            if order.name == "takeover" and (order.site in self._inconsistent or copying):
                self.wrong(f"{order.site} was taken over with an inconsistent image")


class NoReunion(Invariant):
    """I13: a pair whose secondary was taken over is a pair no more, until an order makes it one."""

    name: ClassVar[str] = "I13"
    sees: ClassVar[tuple[type[Event], ...]] = (Quiet, Status)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._last: dict[_Key, Status] = {}
        self._quiet = False

    def see(self, event: Event) -> None:
        if isinstance(event, Quiet):
            self._quiet = True
        if not isinstance(event, Status):
            return
        for pair in self.world.pairs:
            if not pair.taken_over or pair.group != event.group:
                continue
            if (event.site, event.peer, event.role) == (pair.secondary, pair.primary, "secondary"):
                if event.state in ("COPY", "PAIR"):
                    self.wrong(f"{event.site} was taken over and says {event.state} of {event.group}")
            elif (event.site, event.peer) == (pair.primary, pair.secondary):
                self._last[event.site, event.group, event.peer] = event

    def end(self) -> None:
        for pair in self.world.pairs if self._quiet else ():
            last = self._last.get((pair.primary, pair.group, pair.secondary))
            if pair.taken_over and last is not None and last.state in ("COPY", "PAIR") and not self.world.silent(pair):
                self.wrong(f"{pair.primary} says {last.state} of {pair.group}, which {pair.secondary} has taken over")


class OneWriter(Invariant):
    """I16: a primary that knows it was taken over acknowledges nothing; a takeover begins another generation."""

    name: ClassVar[str] = "I16"
    sees: ClassVar[tuple[type[Event], ...]] = (Acknowledged, Status)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._fenced: dict[tuple[str, str], int] = {}
        self._generations: dict[tuple[str, int], set[str]] = {}

    def see(self, event: Event) -> None:
        if isinstance(event, Acknowledged):
            write = self.world.writes[event.serial]
            site = write.event.site
            if write.index > self._fenced.get((site, write.event.group), write.index):
                self.wrong(f"{site} acknowledged write {event.serial} after it knew that it was taken over")
            pair = self.world.pair_to(write.event.group, site)
            if pair is not None and pair.made < write.index:
                self.wrong(f"{site} acknowledged write {event.serial}, and it follows {pair.primary}")
        elif isinstance(event, Status):
            self._judge(event)

    def _judge(self, event: Status) -> None:
        for pair in self.world.pairs:
            if not pair.taken_over or pair.group != event.group:
                continue
            if (event.site, event.peer, event.state) == (pair.primary, pair.secondary, "SSWS"):
                self._fenced.setdefault((event.site, event.group), self.world.index)
            numbered = pair.mode == "async"  # a synchronous secondary always numbered by itself
            if numbered and event.generation is not None and event.site in (pair.primary, pair.secondary):
                sites = self._generations.setdefault((event.group, event.generation), set())
                sites.add(event.site)
                if len(sites) > 1:
                    self.wrong(f"{' and '.join(sorted(sites))} both write {event.group} in one generation")


class Converges(Invariant):
    """I19: in the end pairs are PAIR with equal images, or say what they wait for."""

    name: ClassVar[str] = "I19"
    sees: ClassVar[tuple[type[Event], ...]] = (Quiet, Image, Status, Submitted)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._quiet: Quiet | None = None
        self._states: dict[_Key, Status] = {}
        self._images: dict[str, Image] = {}

    def see(self, event: Event) -> None:
        if isinstance(event, Quiet):
            self._quiet = event
            self._images.clear()
            self._states.clear()
        elif isinstance(event, Image):
            self._images[event.site] = event
        elif isinstance(event, Status) and event.role == "primary":
            self._states[event.site, event.group, event.peer] = event
        elif isinstance(event, Submitted):
            self._quiet = None

    def end(self) -> None:
        if self._quiet is None or self.world.now < self._quiet.at + self._quiet.bound_s:
            return
        for pair in self.world.pairs:
            if not pair.taken_over and not self.world.silent(pair):
                self._judge(pair)

    def _judge(self, pair: Pair) -> None:
        state = self._states.get((pair.primary, pair.group, pair.secondary))
        where = f"{pair.group} from {pair.primary} to {pair.secondary}"
        if state is None:
            return
        if state.state != "PAIR":
            if state.state == "COPY" or not state.reason:
                self.wrong(f"{where} came to rest as {state.state}, waiting for nothing")
            return
        ours, theirs = self._images.get(pair.primary), self._images.get(pair.secondary)
        if ours is None or theirs is None or self._held_back(pair.secondary):
            return
        for volume, facts in self.world.history.volumes.items():
            if facts.group == pair.group and ours.shown.get(volume) != theirs.shown.get(volume):
                self.wrong(f"{where} is PAIR at rest, and the images of {volume} differ")
                return

    def _held_back(self, secondary: str) -> bool:
        """Whether a pair that is not PAIR, into the secondary or a site before it, holds back what it shows of all."""
        pairs = [pair for pair in self.world.pairs if pair.secondary == secondary and not pair.taken_over]
        states = [self._states.get((pair.primary, pair.group, secondary)) for pair in pairs]
        held = any(state is None or state.state != "PAIR" for state in states)
        return held or any(self._held_back(pair.primary) for pair in pairs)


class SameAgain(Invariant):
    """I20: another crash and recovery without writes in between finds the same."""

    name: ClassVar[str] = "I20"
    sees: ClassVar[tuple[type[Event], ...]] = (Restarted, Submitted, Answered, Image)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._recovered: dict[str, Image | None] = {}
        """Site -> its image since its last recovery with no write since; None: not known yet."""

    def see(self, event: Event) -> None:
        match event:
            case Restarted(site=site):
                self._recovered.setdefault(site, None)
            case Submitted(site=site):
                self._recovered.pop(site, None)
            case Answered():
                self._recovered.clear()
            case Image(site=site) if site in self._recovered:
                known = self._recovered[site]
                if known is None:
                    self._recovered[site] = event
                else:
                    self._compare(known, event)
            case _:
                pass

    def _compare(self, known: Image, event: Image) -> None:
        for volume, shown in event.shown.items():
            group = self.world.history.volumes[volume].group
            if self.world.life(group, event.site).site == event.site and known.shown.get(volume, shown) != shown:
                self.wrong(f"{event.site}: {volume} is not what the recovery before found, and nothing was written")
                return
