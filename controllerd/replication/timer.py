"""Timer of all pairs of a controller: the one that ticks, heartbeats and time limits share.

Owns: when they are due, and which groups may get a tick of this controller.
Never: decides whether a tick is needed (ticker.py), or what a time-out means (the pairs do).

Source: RC ¶40-44; spec §4.3-4.4; invariants I5, I7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from controllerd.model.pair_state import PairState, Role
from controllerd.replication.context import Context
from controllerd.replication.intake import SyncIntake
from controllerd.replication.ports import GroupPort
from controllerd.replication.primary import PrimaryPair
from controllerd.replication.secondary import SecondaryPair
from controllerd.replication.ticker import Ticker


class PairTimer:
    """Looks after ``primaries`` and ``secondaries`` every ``tick_interval_s``."""

    def __init__(
        self, context: Context, primaries: Mapping[str, PrimaryPair], secondaries: Mapping[str, SecondaryPair]
    ) -> None:
        self._context = context
        self._primaries = primaries
        self._secondaries = secondaries
        self._ticker = Ticker(context.storage.write_time, context.clock, self._journal_tick)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="replication timer")

    async def stop(self) -> None:
        """Stop."""
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
        for primary in list(self._primaries.values()):
            primary.check(now_s)
            if beat:
                primary.sender.heartbeat()
        if beat:
            for secondary in list(self._secondaries.values()):
                secondary.receiver.heartbeat(now_s)

    def _tick(self) -> None:
        # Groups that get ticks from upstream, or must get nothing because a takeover has decided their cut.
        fed = {
            pair.group.name
            for pair in self._secondaries.values()
            if pair.receiver.connected or (pair.domain.frozen and pair.record.state is not PairState.SSWS)
        }
        # The primary of a suspended pair takes writes that never come here: what other groups get may depend on them.
        held = {
            pair.group.name
            for pair in self._secondaries.values()
            if not pair.active and pair.record.state is not PairState.SSWS
        }
        groups: dict[str, GroupPort] = {}
        wanted: set[str] = set()
        for primary in self._primaries.values():
            group = primary.group
            if primary.active and primary.sender.connected and group.name not in fed | held:
                groups[group.name] = group
                if primary.sender.tick_wanted:
                    wanted.add(group.name)
        for secondary in self._secondaries.values():
            # Upstream is down: this side promises that nothing older follows, so that what is here can be shown.
            record, group = secondary.record, secondary.group
            upstream = record.spec.mode == "sync" and record.state is not PairState.SSWS and record.generation
            if upstream and group.name not in fed | held:
                groups[group.name] = group
        self._ticker.tick(self._ticker.look(groups.values(), lambda group: group.name in wanted))

    def _journal_tick(self, group: GroupPort, time: int) -> None:
        for secondary in self._secondaries.values():
            intake = secondary.intake
            if secondary.group is group and group.role is Role.SECONDARY and isinstance(intake, SyncIntake):
                intake.local_tick(time)
                return
        group.stage_tick(time)
        group.commit()
