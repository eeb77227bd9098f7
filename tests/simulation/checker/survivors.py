"""What crashes must have left at a primary: the mirrored (I3) and the flushed (I4).

Owns: judging images and reads of a site after it took over or came back from a power loss.
Never: judges what was only acknowledged (I9 does).
"""

from __future__ import annotations

from typing import ClassVar

from tests.simulation.checker.base import Invariant
from tests.simulation.checker.images import Sight, say
from tests.simulation.checker.world import Life, Write
from tests.simulation.history import SECTOR, ZEROS, Event, Image, ReadAnswered


class Survivors(Invariant):
    """Each missing write breaks the promise ``name``."""

    sees: ClassVar[tuple[type[Event], ...]] = (Image, ReadAnswered)

    def see(self, event: Event) -> None:
        if isinstance(event, Image) and event.consistent:
            self._judge(Sight(self.world, event), event.site)
        elif isinstance(event, ReadAnswered) and not event.error:
            read = self.world.reads[event.read]
            before = (ZEROS,) * (read.offset // SECTOR)
            sight = Sight(self.world, Image(event.at, read.site, {read.volume: before + event.shown}))
            first = read.offset // SECTOR
            sight.sectors = {place: shown for place, shown in sight.sectors.items() if place[1] >= first}
            self._judge(sight, read.site)

    def _judge(self, sight: Sight, site: str) -> None:
        for life in set(sight.lives.values()):
            if life.site != site:
                continue

            def required(write: Write, life: Life = life) -> bool:
                return life.floor.get(write.serial) == self.name

            for place, shown, missing in sight.hidden(required):
                if missing.event.group == life.group:
                    self.wrong(f"{site}: {say(place, shown)}; write {missing.serial} of {missing.event.site} is lost")
                    break


class SynchronousSurvives(Survivors):
    """I3: what was acknowledged while a synchronous pair was PAIR is there after takeover. See `MirroredFirst` too."""

    name: ClassVar[str] = "I3"


class FlushedSurvives(Survivors):
    """I4: what was flushed is there after power loss."""

    name: ClassVar[str] = "I4"
