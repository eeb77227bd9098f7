"""How orders run: one at a time, to their end, whatever becomes of the caller.

Owns: the queue in front of orders that change what the controller has, and the tasks they run in.
Never: holds a takeover behind another order.

What a reader would get wrong: a caller that goes away does not cancel its order. Half an order would be worse than an
unasked answer (spec §13: nothing is half done).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Result = TypeVar("_Result")


class Orders:
    """The orders under way on one controller."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()

    async def queued(self, order: Callable[[], Awaitable[_Result]]) -> _Result:
        """Run ``order`` once those before it are done; its errors are the caller's."""

        async def run() -> _Result:
            async with self._one_at_a_time:
                return await order()

        return await self.at_once(run)

    async def at_once(self, order: Callable[[], Awaitable[_Result]]) -> _Result:
        """Run ``order`` now, beside whatever else is under way."""

        async def run() -> _Result:
            return await order()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # heard even when the caller has gone

    async def finish(self, limit_s: float) -> bool:
        """Wait until no order is under way, for at most ``limit_s``; returns whether that is so."""
        try:
            async with asyncio.timeout(limit_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        except TimeoutError:
            return False
        return True
