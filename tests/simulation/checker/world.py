"""What is known of a run at one moment of its history: writes, who follows whom, and what must have survived.

Owns: the order of writes as hosts can know it, the *lives* of each group's data, and
which writes an image in a life must hold.
Never: judges (the invariants do); knows controllers' code or their sequence numbers.

A write comes before another if it had ended before the other was submitted; all else is
concurrent. A *life* of a group is what one site accepted from a start to the next moment
when acknowledged writes may go away: power loss of the site, or takeover by another. It
begins with a prefix of its parent's writes; ``floor`` and ``seen`` say what is surely in it.

Source: invariants.md (acked, flushed, info; P(g,n)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.history import (
    Acknowledged,
    Answered,
    Crashed,
    Event,
    Failed,
    FlushAnswered,
    FlushSubmitted,
    Held,
    History,
    Journaled,
    Ordered,
    ReadSubmitted,
    Restarted,
    Status,
    Submitted,
    sectors,
)

NEVER: Final = 1 << 62
"""Index of what has not happened yet."""
Place = tuple[str, int]
"""Volume and number of a sector in it."""


@dataclass(slots=True, eq=False)
class Life:
    """One group's data at its primary ``site``. ``begun``: index of the event that began it.

    ``floor``: serials of earlier lives that must have survived, and the invariant that says so.
    ``seen``: earlier life -> index; what was acknowledged there before it has survived, as later writes have.
    """

    group: str
    site: str
    parent: Life | None
    begun: int
    floor: dict[int, str] = field(default_factory=dict)
    seen: dict[Life, int] = field(default_factory=dict)

    def chain(self) -> Iterator[Life]:
        """Yield this life and those before it."""
        life: Life | None = self
        while life is not None:
            yield life
            life = life.parent


@dataclass(slots=True, eq=False)
class Write:
    """A host write. Indexes count events; `NEVER`: not yet. ``era``: how often its site had begun anew."""

    event: Submitted
    index: int
    life: Life
    era: int
    acked: int = NEVER
    ended: int = NEVER
    flushed_at: int = NEVER
    refused: bool = False
    losable: bool = False
    """The site came back from a power loss before this was flushed, and nobody has seen it since."""

    @property
    def serial(self) -> int:
        return self.event.serial

    @property
    def zeros(self) -> bool:
        return self.event.what != "write"

    @property
    def flushed(self) -> bool:
        return self.flushed_at < NEVER

    def before(self, other: Write) -> bool:
        """Whether this came before ``other`` for everyone who looked."""
        return self.ended < other.index


@dataclass(slots=True)
class Pair:
    """``secondary`` follows ``primary``. ``paired``: index of the last time the primary said PAIR; ``left``: else."""

    group: str
    primary: str
    secondary: str
    mode: str
    fence: str
    made: int
    paired: int = -1
    left: int = NEVER
    taken_over: bool = False


@dataclass(slots=True)
class _Site:
    era: int = 0
    down: bool = False
    power_lost: bool = False
    ever_lost_power: bool = False
    back: int = -1
    """Index of its last start after a power loss."""


class World:
    """Feed it every event; then ask."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.index = -1
        self.now = 0.0
        self.writes: dict[int, Write] = {}
        self.places: dict[Place, list[Write]] = {}
        self.pairs: list[Pair] = []
        self.orders: dict[int, Ordered] = {}
        self.reads: dict[int, ReadSubmitted] = {}
        self.tapped: set[str] = set()
        """Sites whose journals are recorded."""
        self.host_times_follow = True
        """Hosts' write times rise with what they had seen acknowledged, over all sites."""
        self._held: set[tuple[str, str]] = set()
        self._sites: dict[str, _Site] = {}
        self._lives: dict[tuple[str, str], Life] = {}
        self._runs: dict[tuple[str, str, int], dict[int, int]] = {}
        """Site, group and generation -> number -> incarnation of its record there."""
        self._shortened: dict[tuple[str, str], int] = {}
        """Site and group -> index of the event that showed that its journal had lost its end."""
        self._flushes: dict[int, tuple[FlushSubmitted, int]] = {}
        self._unfinished: dict[int, Write] = {}
        self._unflushed: dict[int, Write] = {}
        self._latest_host_time = 0
        self._take: dict[type[Event], Callable[[Event], None]] = {
            Submitted: self._submitted,
            Acknowledged: self._acknowledged,
            Failed: self._failed,
            FlushSubmitted: self._flush_submitted,
            FlushAnswered: self._flush_answered,
            Crashed: self._crashed,
            Restarted: self._restarted,
            Held: self._hold,
            Ordered: self._ordered,
            Answered: self._answered,
            Status: self._status,
            Journaled: self._journaled,
            ReadSubmitted: self._read,
        }

    def feed(self, event: Event) -> None:
        """Take in the next event."""
        self.index += 1
        self.now = event.at
        self._take.get(type(event), self._nothing)(event)

    # ---- questions -----------------------------------------------------------

    def pair_to(self, group: str, secondary: str) -> Pair | None:
        """Return the pair through which a site follows another, None if it does not."""
        for pair in reversed(self.pairs):
            if pair.group == group and pair.secondary == secondary:
                return None if pair.taken_over else pair
        return None

    def ever_followed(self, group: str, site: str) -> bool:
        """Whether a site follows another with a group, or did until it took over."""
        return any(pair.group == group and pair.secondary == site for pair in self.pairs)

    def life(self, group: str, site: str) -> Life:
        """Return the life whose writes a site's copy shows."""
        pair = self.pair_to(group, site)
        if pair is not None:
            return self.life(group, pair.primary)
        return self._lives.setdefault((group, site), Life(group, site, None, -1))

    def down(self, site: str) -> bool:
        """Whether a site has crashed and not come back."""
        return self._site(site).down

    def silent(self, pair: Pair) -> bool:
        """Whether an end of a pair is down, or says that it cannot use its group."""
        ends = (pair.primary, pair.secondary)
        return any(self.down(site) or (site, pair.group) in self._held for site in ends)

    def lost_power(self, site: str) -> bool:
        """Whether a site ever lost what was not synced."""
        return self._site(site).ever_lost_power

    def belongs(self, write: Write, life: Life) -> bool:
        """Whether a write can be in an image of a life: it was accepted there, or earlier in its line."""
        younger: Life | None = None
        for ancestor in life.chain():
            if write.life is ancestor:
                return younger is None or write.index < younger.begun
            younger = ancestor
        return False

    def taken_over(self, write: Write, life: Life) -> int:
        """Return the index of the first takeover after a write's life in the line of ``life``; `NEVER`: none.

        0 if the line of ``life`` does not come from the write's life.
        """
        first = NEVER
        for ancestor in life.chain():
            if write.life is ancestor:
                return first
            if ancestor.parent is not None and ancestor.parent.site != ancestor.site:
                first = ancestor.begun
        return 0

    def survived(self, write: Write, life: Life) -> bool:
        """Whether an acknowledged write must be in every image that its primary shows in a life."""
        if write.life is life:
            return True
        return write.serial in life.floor or write.acked < life.seen.get(write.life, -1)

    def shows(self, life: Life, write: Write) -> None:
        """A primary was seen to hold a write: so it has held it since its life began."""
        write.losable = False
        if write.life is not life:
            life.seen[write.life] = max(life.seen.get(write.life, -1), write.index)
            life.floor.setdefault(write.serial, "I9")

    # ---- events --------------------------------------------------------------

    def _nothing(self, event: Event) -> None:
        """Most events say nothing about what must be where."""

    def _site(self, name: str) -> _Site:
        return self._sites.setdefault(name, _Site())

    def _submitted(self, event: Event) -> None:
        assert isinstance(event, Submitted)
        write = Write(event, self.index, self.life(event.group, event.site), self._site(event.site).era)
        self.writes[event.serial] = self._unfinished[event.serial] = write
        for sector in sectors(event.offset, event.length):
            self.places.setdefault((event.volume, sector), []).append(write)
        if event.host_time is not None and event.host_time < self._latest_host_time:
            self.host_times_follow = False

    def _acknowledged(self, event: Event) -> None:
        assert isinstance(event, Acknowledged)
        write = self.writes[event.serial]
        self._unfinished.pop(event.serial, None)
        write.acked = write.ended = self.index
        if write.event.fua or self.history.stable:
            write.flushed_at = self.index
        else:
            self._unflushed[event.serial] = write
        if write.event.host_time is not None:
            self._latest_host_time = max(self._latest_host_time, write.event.host_time)

    def _failed(self, event: Event) -> None:
        assert isinstance(event, Failed)
        write = self.writes[event.serial]
        self._unfinished.pop(event.serial, None)
        write.ended = self.index
        write.refused = event.error == "EPERM"

    def _flush_submitted(self, event: Event) -> None:
        assert isinstance(event, FlushSubmitted)
        self._flushes[event.flush] = event, self.index

    def _flush_answered(self, event: Event) -> None:
        assert isinstance(event, FlushAnswered)
        flush, index = self._flushes.pop(event.flush)
        if event.error:
            return
        for serial, write in list(self._unflushed.items()):
            if write.acked < index and write.event.volume == flush.volume and write.event.site == flush.site:
                write.flushed_at = self.index
                del self._unflushed[serial]

    def _read(self, event: Event) -> None:
        assert isinstance(event, ReadSubmitted)
        self.reads[event.read] = event

    def _crashed(self, event: Event) -> None:
        assert isinstance(event, Crashed)
        site = self._site(event.site)
        site.down = True
        if event.how in ("power", "disk"):
            site.power_lost = site.ever_lost_power = True
        for serial, write in list(self._unfinished.items()):
            if write.event.site == event.site:
                write.ended = self.index  # journaled by now, or never
                del self._unfinished[serial]

    def _restarted(self, event: Event) -> None:
        assert isinstance(event, Restarted)
        site = self._site(event.site)
        site.down = False
        if not site.power_lost:
            return
        site.power_lost = False
        site.back = self.index
        site.era += 1
        for serial, write in list(self._unflushed.items()):
            if write.event.site == event.site:
                write.losable = True
                del self._unflushed[serial]
        for (group, owner), life in list(self._lives.items()):
            if owner == event.site and self.pair_to(group, owner) is None:
                floor = dict(life.floor)
                floor.update({write.serial: "I4" for write in self._of(life) if write.flushed})
                self._lives[group, owner] = Life(group, owner, life, self.index, floor, dict(life.seen))

    def _hold(self, event: Event) -> None:
        assert isinstance(event, Held)
        self._held.add((event.site, event.group))

    def _of(self, life: Life) -> Iterator[Write]:
        return (write for write in self.writes.values() if write.life is life and write.acked < NEVER)

    def _ordered(self, event: Event) -> None:
        assert isinstance(event, Ordered)
        self.orders[event.order] = event

    def _answered(self, event: Event) -> None:
        assert isinstance(event, Answered)
        order = self.orders[event.order]
        if event.error:
            return
        if order.name == "pair-create":
            facts = order.facts
            mode, fence = facts.get("mode", "async"), facts.get("fence", "suspend")
            self.pairs.append(Pair(order.group, order.site, facts["secondary"], mode, fence, self.index))
        elif order.name == "pair-delete":
            self.pairs = [
                pair
                for pair in self.pairs
                if pair.group != order.group or order.site not in (pair.primary, pair.secondary)
            ]
        elif order.name == "takeover":
            self._take_over(order)

    def _take_over(self, order: Ordered) -> None:
        site = self._site(order.site)
        site.era += 1
        pairs = [
            pair
            for pair in self.pairs
            if pair.secondary == order.site and not pair.taken_over and order.group in ("", pair.group)
        ]
        for pair in pairs:
            parent = self.life(pair.group, pair.primary)
            life = Life(pair.group, order.site, parent, self.index)
            if pair.mode == "sync" and not self._in_doubt(pair, pairs):
                life.floor = {write.serial: "I3" for write in self._of(parent) if self._mirrored(pair, write)}
                life.floor.update(self._inherited(pair, parent))
            pair.taken_over = True
            self._lives[pair.group, order.site] = life

    def _in_doubt(self, pair: Pair, pairs: list[Pair]) -> bool:
        """Whether a mirror lost its power and has confirmed nothing since, and may lack something of another group.

        That may end the cut before what was flushed (ARCHITECTURE, known limits). ``pairs``: taken over together.
        """
        back = self._site(pair.secondary).back
        if self.history.stable or any(self._confirmed(each, back) for each in pairs):
            return False
        others = [other for other in pairs if other is not pair]
        groups = {other.group for other in others}
        return any(
            write.event.group in groups and write.index < back < write.flushed_at for write in self.writes.values()
        ) or any(self._cut_short(other) for other in others)

    def _cut_short(self, pair: Pair) -> bool:
        """Whether the end of a mirror's journal was lost, though it were ticks only, and nothing was confirmed since.

        What it does not have any more the mirror cannot know.
        """
        index = self._shortened.get((pair.secondary, pair.group))
        return index is not None and not self._confirmed(pair, index)

    def _confirmed(self, pair: Pair, since: int) -> bool:
        """Whether a mirror has confirmed a write that was submitted to its primary after ``since``."""
        life = self.life(pair.group, pair.primary)
        return any(since < write.index and write.acked <= pair.left for write in self._of(life))

    def _inherited(self, pair: Pair, parent: Life) -> dict[int, str]:
        """What of the floor of ``parent`` its mirror has too: what was there when the pair began, or was mirrored."""
        return {
            serial: invariant
            for serial, invariant in parent.floor.items()
            if self.writes[serial].index < pair.made or self._mirrored(pair, self.writes[serial])
        }

    def _mirrored(self, pair: Pair, write: Write) -> bool:
        """Whether a write was acknowledged while its pair was surely PAIR, and the secondary cannot have lost it."""
        if not pair.made < write.index or write.acked > pair.left or write.acked >= NEVER:
            return False
        if not self.history.prompt and write.acked > pair.paired:
            return False
        # What was flushed after the pair had left PAIR was flushed at the primary alone.
        return (write.flushed and write.flushed_at <= pair.left) or not self.lost_power(pair.secondary)

    def _status(self, event: Event) -> None:
        assert isinstance(event, Status)
        self._held.discard((event.site, event.group))
        if event.role != "primary":
            return
        for pair in self.pairs:
            if (pair.group, pair.primary, pair.secondary) == (event.group, event.site, event.peer):
                if event.state == "PAIR":
                    pair.paired = self.index
                elif event.state != "COPY":
                    pair.left = min(pair.left, self.index)

    def _journaled(self, event: Event) -> None:
        assert isinstance(event, Journaled)
        self.tapped.add(event.site)
        runs = self._runs.setdefault((event.site, event.group, event.generation), {})
        if runs.setdefault(event.sequence, event.incarnation) != event.incarnation:
            self._shortened[event.site, event.group] = self.index
            runs[event.sequence] = event.incarnation
