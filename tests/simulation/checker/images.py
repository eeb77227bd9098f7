"""What the image of a site must be: a prefix of each group (I1, I8), a cut over all groups (I5), nothing lost.

Owns: finding, sector by sector, what an image shows and what it hides.
Never: knows what the site believes about itself; its sequence numbers are not needed.

A set of writes explains an image if it is closed under "came before" and every sector shows
one of the last of the set there. The smallest set that could do so is what is shown, with all
that came before it; so what an image misses is found without search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import ClassVar

from tests.simulation.checker.base import Invariant
from tests.simulation.checker.world import Life, Place, World, Write
from tests.simulation.history import DAMAGED, SECTOR, ZEROS, Event, Image

Required = Callable[[Write], bool]


class Sight:
    """An image with the writes that it shows. Damaged sectors and serials of no write there are left out (I9, I10)."""

    def __init__(self, world: World, image: Image) -> None:
        self.world = world
        self.image = image
        self.visible: set[Write] = set()
        self.lives: dict[str, Life] = {}
        self.sectors: dict[Place, Write | None] = {}
        """What each sector that was ever written shows; None: zeros."""
        for volume, shown in image.shown.items():
            group = world.history.volumes[volume].group
            if group not in self.lives:
                self.lives[group] = world.life(group, image.site)
            for sector, serial in enumerate(shown):
                if (volume, sector) in world.places and serial != DAMAGED:
                    self._show((volume, sector), serial)

    def _show(self, place: Place, serial: int) -> None:
        if serial == ZEROS:
            self.sectors[place] = None
            return
        write = self.world.writes.get(serial)
        if write is not None and write in self.world.places[place]:
            self.sectors[place] = write
            self.visible.add(write)

    def horizons(self, group: str) -> dict[Life, int]:
        """Return for each life of a group the index of the last visible write: what was acked before came before."""
        horizons: dict[Life, int] = {}
        for write in self.visible:
            if write.event.group == group:
                horizons[write.life] = max(horizons.get(write.life, -1), write.index)
        return horizons

    def hidden(self, required: Required) -> Iterator[tuple[Place, Write | None, Write]]:
        """Yield (place, shown, missing) where a required write surely came after what is shown."""
        for place, shown in self.sectors.items():
            missing = self.hidden_at(place, shown, required)
            if missing is not None:
                yield place, shown, missing

    def hidden_at(self, place: Place, shown: Write | None, required: Required) -> Write | None:
        """Return a required write of a sector that cannot have been before what is shown there, None if all can."""
        group = self.world.history.volumes[place[0]].group
        life = self.lives[group]
        later: list[Write] = []
        for write in reversed(self.world.places[place]):
            if write is shown:
                break
            if shown is None and write.zeros and self.world.belongs(write, life):
                later = [other for other in later if write.before(other)]
                if not later:
                    return None
            if required(write) and (shown is None or shown.before(write)) and not (shown is None and write.zeros):
                later.append(write)
        return later[0] if later else None


def say(place: Place, shown: Write | None) -> str:
    """Return "v0 sector 3 shows write 7" for people."""
    what = "zeros" if shown is None else f"write {shown.serial}"
    return f"{place[0]} sector {place[1]} shows {what}"


class OfImages(Invariant):
    """Judges every image that the site calls consistent."""

    sees: ClassVar[tuple[type[Event], ...]] = (Image,)

    def see(self, event: Event) -> None:
        if isinstance(event, Image) and event.consistent:
            self.judge(Sight(self.world, event), event.site)

    def judge(self, sight: Sight, site: str) -> None:
        """Judge one image."""
        raise NotImplementedError


class Prefix(OfImages):
    """I1: a group shows all that came before what it shows."""

    name: ClassVar[str] = "I1"

    def judge(self, sight: Sight, site: str) -> None:
        for group in sight.lives:
            horizons = sight.horizons(group)
            floors: set[int] = set()
            for life in horizons:
                floors.update(life.floor)

            def required(write: Write, horizons: dict[Life, int] = horizons, floors: set[int] = floors) -> bool:
                return write.acked < horizons.get(write.life, -1) or write.serial in floors

            for place, shown, missing in sight.hidden(required):
                if missing.event.group == group:
                    self.wrong(
                        f"{site}: {say(place, shown)}, without write {missing.serial} of {group}, shown after it"
                    )
                    break


class WholeRecords(OfImages):
    """I8: a write is there wholly or not at all."""

    name: ClassVar[str] = "I8"

    def judge(self, sight: Sight, site: str) -> None:
        for place, shown, missing in sight.hidden(lambda write: write in sight.visible):
            self.wrong(f"{site}: {say(place, shown)}, and write {missing.serial} over it is shown elsewhere in part")
            return
        over: set[tuple[Write, Write]] = set()
        for place, shown in sight.sectors.items():
            if shown is None:
                continue
            for write in self.world.places[place]:
                if write is not shown and write in sight.visible:
                    if (shown, write) in over:
                        self.wrong(f"{site}: writes {shown.serial} and {write.serial} both show over each other")
                        return
                    over.add((write, shown))


class Cut(OfImages):
    """I5: a secondary shows all that came before what it shows, whatever the group."""

    name: ClassVar[str] = "I5"

    def judge(self, sight: Sight, site: str) -> None:
        for domain in self.world.history.domains:
            groups = {group for group in domain.groups if group in sight.lives}
            groups = {group for group in groups if self.world.ever_followed(group, site)}
            if len(groups) > 1:
                self._judge(sight, site, groups, hosts=domain.time_source == "host")

    def _judge(self, sight: Sight, site: str, groups: set[str], *, hosts: bool) -> None:
        eras: dict[tuple[str, int], int] = {}
        timed: list[int] = []
        hosts = hosts and self.world.host_times_follow
        for write in sight.visible:
            if write.event.group in groups:
                era = write.event.site, write.era
                eras[era] = max(eras.get(era, -1), write.index)
                if write.event.host_time is not None:
                    timed.append(write.index)
        timed.sort()

        def required(write: Write) -> bool:
            if write.losable or write.event.group not in groups:
                return False
            if write.acked < eras.get((write.event.site, write.era), -1):
                return True
            if not hosts or write.event.host_time is None:
                return False
            # What a takeover dropped is not missed beside what hosts wrote after it.
            earlier = bisect_left(timed, self.world.taken_over(write, sight.lives[write.event.group]))
            return earlier > 0 and write.acked < timed[earlier - 1]

        for place, shown, missing in sight.hidden(required):
            text = f"{site}: {say(place, shown)}, without write {missing.serial} of {missing.event.group}"
            self.wrong(f"{text}, which was acknowledged before a later write that is shown was issued")
            return


class Lineage(OfImages):
    """I13: a copy shows nothing of a branch that it did not come from."""

    name: ClassVar[str] = "I13"

    def judge(self, sight: Sight, site: str) -> None:
        for write in sight.visible:
            life = sight.lives[write.event.group]
            if not self.world.belongs(write, life):
                text = f"{site} shows write {write.serial}, which {write.event.site} accepted in a branch of its own"
                self.wrong(f"{text} while the line of {write.event.group} went on at {life.site}")
                return


class NoDamage(OfImages):
    """I10: no sector of an image is anything but zeros or a write made for that place."""

    name: ClassVar[str] = "I10"

    def judge(self, sight: Sight, site: str) -> None:
        for volume, shown in sight.image.shown.items():
            if DAMAGED in shown:
                self.wrong(
                    f"{site}: {volume} sector {shown.index(DAMAGED)} at {shown.index(DAMAGED) * SECTOR} is damaged"
                )
                return
