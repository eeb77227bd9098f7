"""The management API of one controller as an ASGI application.

Owns: putting routes, errors and the guard together. Never: listens (server.py), or knows the daemon (ports.py).

Source: spec §12 (REST and OpenAPI on every controller), §13.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from controllerd.management import errors
from controllerd.management.guard import Guard, GuardSettings
from controllerd.management.orders import Orders
from controllerd.management.ports import ControllerPort
from controllerd.management.routes_storage import storage_routes
from controllerd.management.routes_system import pair_routes, system_routes
from controllerd.management.schemas import VERSION, ErrorAnswer

_log = structlog.get_logger("management")


_DESCRIPTION: Final = f"""Everything mgmtctl does. All paths but /healthz and this description need a bearer token.

Every error has the form `ErrorAnswer`, with one of these:

{errors.described()}
"""


def create_app(controller: ControllerPort, settings: GuardSettings, *, orders_grace_s: float = 30.0) -> ASGIApp:
    """The application. When its server stops, orders under way are waited for, for at most ``orders_grace_s``."""
    orders = Orders()

    @asynccontextmanager
    async def lifespan(_application: FastAPI) -> AsyncIterator[None]:
        yield
        if not await orders.finish(orders_grace_s):
            _log.warning("orders-unfinished", waited_s=orders_grace_s)

    application = FastAPI(
        title="remotecopy controller",
        version=VERSION,
        lifespan=lifespan,
        description=_DESCRIPTION,
        responses={
            "4XX": {"model": ErrorAnswer, "description": "The order is at fault."},
            "5XX": {"model": ErrorAnswer, "description": "The controller or a peer is at fault."},
        },
    )
    errors.install(application)
    application.include_router(system_routes(controller, orders))
    application.include_router(storage_routes(controller, orders))
    application.include_router(pair_routes(controller, orders))
    return Guard(application, settings)
