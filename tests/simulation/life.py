"""Lives: which run of which simulated site a callback, task or timer belongs to.

Owns: `Life`, the context that everything a site starts inherits, and the loop that runs nothing
of a life that has ended.
Never: knows what a site does.

A real crash stops a process between two instructions. Here all sites share one loop, so the loop
is what stops them: handles carry the context in which they were made, and that names the life.

What a reader would get wrong: host code outside a site must enter it by `Life.call`, else the
tasks that the site makes for it would survive the crash.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from tests.simulation.disk import PowerCut
from tests.simulation.virtual_loop import Deadlock

_CURRENT: Final[contextvars.ContextVar[Life | None]] = contextvars.ContextVar("life", default=None)
OUTSIDE: Final = contextvars.Context()
"""The context of what belongs to no site: network, hosts, operators."""


class Died(Exception):
    """The site's daemon ended before it had answered."""


class Runaway(Exception):
    """The run does not come to an end: something happens again and again."""


TURNS_MAX: Final = 100_000
"""Callbacks after which a run is a runaway; usual ones have some thousands."""


class Life:
    """One run of the daemon of site ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.context = OUTSIDE.copy()
        self.context.run(_CURRENT.set, self)
        self.tasks: dict[asyncio.Task[Any], None] = {}
        """Those that are not done; a dictionary for its order."""
        self._waiting: dict[asyncio.Future[Any], None] = {}
        self.backlog: list[asyncio.Handle] | None = None
        """While the process is stopped (SIGSTOP): what it would have run, in order."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into the site from outside; returns None when it is dead, or dies meanwhile."""
        if not self.alive:
            return None
        if self.backlog is not None:
            asyncio.get_running_loop().call_soon(function, *arguments, context=self.context.copy())
            return None
        try:
            return self.context.copy().run(function, *arguments)
        except PowerCut:
            return None

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        if self.backlog is None:
            self.backlog = []

    def resume(self, loop: LifeLoop) -> None:
        """Let it go on, with all that has come meanwhile."""
        backlog, self.backlog = self.backlog or [], None
        loop.enqueue(backlog)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in the site."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    async def perform(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the site and return what it returns; for callers outside.

        Raises:
            Died: the site's daemon ended meanwhile.
            Exception: whatever the coroutine raised.
        """
        if not self.alive:
            work.close()
            raise Died(self.name)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def finished(task: asyncio.Task[Any]) -> None:
            if answer.done():
                return
            error = Died(self.name) if task.cancelled() else task.exception()
            if error is None:
                answer.set_result(task.result())
            else:
                answer.set_exception(Died(self.name) if isinstance(error, PowerCut) else error)

        self.spawn(work).add_done_callback(finished, context=OUTSIDE)
        self._waiting[answer] = None
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    def end(self) -> None:
        """Nothing of this life runs on. To be called from outside."""
        self.alive = False
        for answer in list(self._waiting):
            if not answer.done():
                answer.set_exception(Died(self.name))
        while self.tasks:
            # What is in `finally` runs now, not when the garbage collector comes by; it has no effects, but new tasks.
            task, _ = self.tasks.popitem()
            try:
                self.context.copy().run(task.get_coro().close)
            except (PowerCut, RuntimeError):
                pass


def current_life() -> Life | None:
    """Return the life that is running now; None outside."""
    return _CURRENT.get()


class LifeLoop(asyncio.BaseEventLoop):
    """Virtual time, and nothing of the dead runs.

    Attributes:
        on_error: told of every exception that nobody caught, with the name of the site.
        turns: callbacks that have run.
    """

    _ready: deque[Any]
    _stopping: bool

    def __init__(self, on_error: Callable[[str, BaseException], None]) -> None:
        super().__init__()
        self.now_s = 0.0
        self.turns = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self.on_error = on_error
        self.set_task_factory(_make_task)  # type: ignore[arg-type]  # typeshed knows no factories with a context
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now_s

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, PowerCut) or error is None:
            return
        owner = context.get("task") or context.get("future") or context.get("handle")
        handle_context = getattr(owner, "_context", None)
        life = current_life() if handle_context is None else handle_context.get(_CURRENT)
        self.on_error(life.name if life is not None else "outside", error)

    def call_at(  # type: ignore[override]  # typeshed ties the arguments to the callback
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio; a heap of tuples, since comparing handles takes long."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def enqueue(self, handles: list[asyncio.Handle]) -> None:
        """Run handles in the next turns."""
        self._ready.extend(handles)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to count: a cancelled timer is dropped when its time has come."""

    def _run_once(self) -> None:
        """Run what is ready, in order; when nothing is, let time pass to the next timer."""
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if timers:
                self.now_s = max(self.now_s, timers[0][0])
            elif not self._stopping:
                raise Deadlock("no callback is ready and no timer is set")
        now_s = self.now_s
        while timers and timers[0][0] <= now_s:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        handle: Any = None
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            life = handle._context.get(_CURRENT)
            if life is not None:
                if not life.alive:
                    continue
                if life.backlog is not None:
                    life.backlog.append(handle)
                    continue
            self.turns += 1
            handle._run()
        if self.turns > TURNS_MAX:
            raise Runaway(f"{self.turns} callbacks have run, the last one is {handle!r}")

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There are no other threads to be woken by."""


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    # The context argument is passed by `create_task` only when it is given.
    task = asyncio.Task(work, loop=loop) if context is None else asyncio.Task(work, loop=loop, context=context)
    life = _CURRENT.get() if context is None else context.get(_CURRENT)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # the dead are pending for ever
    if life is not None:
        tasks = life.tasks
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
    return task
