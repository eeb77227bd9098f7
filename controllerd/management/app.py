"""The management API of one controller as an ASGI application.

Owns: putting routes, errors and the guard together. Never: listens (server.py), or knows the daemon (ports.py).

Source: spec §12 (REST and OpenAPI on every controller), §13.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp

from controllerd.management import errors
from controllerd.management.guard import Guard, GuardSettings
from controllerd.management.orders import Orders
from controllerd.management.ports import ControllerPort
from controllerd.management.routes_storage import storage_routes
from controllerd.management.routes_system import pair_routes, system_routes
from controllerd.management.schemas import VERSION, ErrorAnswer


def create_app(controller: ControllerPort, settings: GuardSettings, orders: Orders | None = None) -> ASGIApp:
    """The application; the daemon that wants to wait for orders under way gives its own ``orders``."""
    application = FastAPI(
        title="remotecopy controller",
        version=VERSION,
        description="Everything mgmtctl does. All paths but /healthz and this description need a bearer token.",
        responses={
            "4XX": {"model": ErrorAnswer, "description": "The order is at fault."},
            "5XX": {"model": ErrorAnswer, "description": "The controller or a peer is at fault."},
        },
    )
    errors.install(application)
    running = orders if orders is not None else Orders()
    application.include_router(system_routes(controller, running))
    application.include_router(storage_routes(controller, running))
    application.include_router(pair_routes(controller, running))
    return Guard(application, settings)
