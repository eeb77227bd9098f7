"""Spare journal segments: made before they are needed, off the loop, and written once.

Owns: when the next segment file of a group's journal is made.
Never: recycles or removes segments; takes part in appending. A journal that gets no spare in time makes one itself.

Space that was only preallocated costs twice: a sync behind the first write to it has to change the file's extents
(fdatasync after 4 KiB: 311 us instead of 133), and the write has to find memory for the page. So a spare is filled with
zeros and synced first; segments that are used again need none of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from controllerd.storage.background import Background
from controllerd.storage.group import Group
from controllerd.storage.io import File

INTERVAL_S: Final = 1.0


class SpareMaker:
    """Makes spares for one group's journal; ``one_at_a_time`` is shared, so that threads are left for others."""

    def __init__(self, group: Group, one_at_a_time: asyncio.Lock, run_blocking: Callable[..., Awaitable[Any]]) -> None:
        self._group = group
        self._one_at_a_time = one_at_a_time
        self._run_blocking = run_blocking
        self._background = Background(INTERVAL_S, self._turn)
        self.start = self._background.start
        self.stop = self._background.stop
        group.on_segment_begun = self._background.poke

    async def _turn(self) -> None:
        if self._group.read_error is None and self._group.journal.wants_spare:
            async with self._one_at_a_time:
                await self._make()

    async def _make(self) -> None:
        files = self._group.journal.segment_files
        name = files.reserve()
        made: list[File] = []
        try:
            await self._run_blocking(lambda: made.append(files.make(name, filled=True)))
        except OSError:
            return  # no room, or a failing disk: who appends will say so
        finally:
            # Stopped meanwhile, the file is there all the same.
            files.take(made[0] if made else None, filled=True)
        self._group.update_accepting()
