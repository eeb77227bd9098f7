"""Management ports served by real uvicorn in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.management.server import ApiServer, ApiSettings
from tests.unit.management.fake_controller import TOKEN, FakeController, fake_controller


@dataclass
class Served:
    """Controllers by name, the addresses of their ports, and a way to do something in their loop."""

    controllers: dict[str, FakeController]
    urls: dict[str, str]
    loop: asyncio.AbstractEventLoop

    def do(self, action: Callable[[], Any]) -> Any:
        """Run ``action`` in the loop that serves, and return what it returns."""

        async def run() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)


@contextmanager
def served(directory: Path, *facts: dict[str, Any], **settings: Any) -> Iterator[Served]:
    """One controller per entry of ``facts``, each on a free loopback port; ``settings`` as in ApiSettings."""
    ready: list[Served] = []
    failed: list[BaseException] = []
    up = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            controllers: dict[str, FakeController] = {}
            urls: dict[str, str] = {}
            for one in facts:
                controller = await stack.enter_async_context(fake_controller(directory / one["name"], **one))
                server = ApiServer(create_app(controller, GuardSettings(TOKEN)), ApiSettings(**settings))
                await server.start()
                stack.push_async_callback(server.stop)
                controllers[controller.name], urls[controller.name] = controller, server.address
            event = asyncio.Event()
            stop.append((asyncio.get_running_loop(), event))
            ready.append(Served(controllers, urls, asyncio.get_running_loop()))
            up.set()
            await event.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            up.set()

    thread = threading.Thread(target=run, name="api")
    thread.start()
    up.wait(30)
    if failed:
        raise failed[0]
    try:
        yield ready[0]
    finally:
        loop, event = stop[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(30)
    if failed:
        raise failed[0]
