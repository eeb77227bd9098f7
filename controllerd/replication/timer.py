"""Timer: the one that ticks, heartbeats and time limits of all pairs share.

Owns: the order of what is done at each turn, and which groups may get a tick from here.
Never: decides when a quiet group needs one (ticker.py does), or what a time limit means.

Source: spec §4.3; invariants I5, I19.
"""

from __future__ import annotations

import asyncio
import contextlib

from controllerd.model.errors import RemoteCopyError
from controllerd.model.pair_state import PairState, Role
from controllerd.replication.context import Context
from controllerd.replication.intake import SyncIntake
from controllerd.replication.kept_pairs import KeptPairs
from controllerd.replication.overview import Overview
from controllerd.replication.ports import GroupPort
from controllerd.replication.register import PairRegister
from controllerd.replication.ticker import Ticker


class PairTimer:
    """Does for ``pairs`` what comes with time."""

    def __init__(self, context: Context, pairs: PairRegister, overview: Overview, kept: KeptPairs) -> None:
        self._context = context
        self._pairs = pairs
        self._overview = overview
        self._kept = kept
        self._ticker = Ticker(context.storage.write_time, context.clock, self._journal_tick)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="replication timer")

    async def stop(self) -> None:
        """End; nothing more is done on return."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        settings = self._context.settings
        loop = asyncio.get_running_loop()
        next_beat_s = 0.0
        while True:
            await asyncio.sleep(settings.tick_interval_s)
            now_s = loop.time()
            beat = now_s >= next_beat_s
            if beat:
                next_beat_s = now_s + settings.heartbeat_interval_s
            try:
                self._turn(now_s, beat)
            except Exception as error:
                # The timer holds up every pair; what went wrong with one is tried again at the next turn.
                self._context.report("replication-timer-error", {"error": repr(error)})

    def _turn(self, now_s: float, beat: bool) -> None:
        self._tick()
        for primary in list(self._pairs.primaries.values()):
            primary.check(now_s)
            if beat:
                primary.sender.heartbeat()
        if beat:
            for secondary in list(self._pairs.secondaries.values()):
                secondary.receiver.heartbeat(now_s, self._overview.held(secondary))
                secondary.ask_again(now_s)
            self._kept.keep(now_s)

    def _tick(self) -> None:
        # Groups that get ticks from upstream, or must get nothing because a takeover has decided their cut.
        fed = {
            pair.group.name
            for pair in self._pairs.secondaries.values()
            if pair.receiver.connected or (pair.domain.frozen and pair.record.state is not PairState.SSWS)
        }
        # The primary of a suspended pair takes writes that never come here: what other groups get may depend on them.
        # So may it on what this site has lost with its power.
        held = {
            pair.group.name
            for pair in self._pairs.secondaries.values()
            if (not pair.active or pair.record.in_doubt) and pair.record.state is not PairState.SSWS
        }
        groups: dict[str, GroupPort] = {}
        wanted: set[str] = set()
        for primary in self._pairs.primaries.values():
            group = primary.group
            if primary.active and primary.sender.connected:
                if group.name not in fed | held:
                    groups[group.name] = group
                if primary.sender.tick_wanted:
                    wanted.add(group.name)
        for secondary in self._pairs.secondaries.values():
            secondary.downstream_waits = secondary.group.name in wanted
            # Upstream is down: this side promises that nothing older follows, so that what is here can be shown.
            record, group = secondary.record, secondary.group
            upstream = record.spec.mode == "sync" and record.state is not PairState.SSWS and record.generation
            # A group that is not recovered has old numbers: they must not say what is known here, and it takes no tick.
            if upstream and group.recovered and group.name not in fed | held:
                groups[group.name] = group
        self._ticker.tick(self._ticker.look(groups.values(), lambda group: group.name in wanted))
        for secondary in self._pairs.secondaries.values():
            # Its journal is full of what can be shown once a later time of it is here: the primary's finds no room.
            sure = secondary.active and not secondary.record.in_doubt
            if sure and secondary.stall and secondary.domain.doubt_waits_for(secondary.group.name):
                time = self._context.storage.write_time.pass_on_tick(0, self._context.clock())
                with contextlib.suppress(RemoteCopyError):
                    self._journal_tick(secondary.group, time)

    def _journal_tick(self, group: GroupPort, time: int) -> None:
        for secondary in self._pairs.secondaries.values():
            intake = secondary.intake
            if secondary.group is group and group.role is Role.SECONDARY and isinstance(intake, SyncIntake):
                if secondary.drift():
                    self._say_how_old(group)  # before the tick is sent to anybody
                intake.local_tick(time)
                return
        group.stage_tick(time)
        group.commit()

    def _say_how_old(self, group: GroupPort) -> None:
        for pair in self._pairs.primaries.values():
            if pair.group is group:
                pair.sender.heartbeat()
