"""Routes for the controller as a whole, its pairs, status, takeover and metrics.

Owns: what an order means in terms of the pair port. Never: keeps state, or maps errors (errors.py does).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from controllerd.management import schemas, views
from controllerd.management.metrics import ControllerCollector
from controllerd.management.orders import Orders
from controllerd.management.ports import ControllerPort

NameInPath = Annotated[str, Path(pattern=schemas.NAME_PATTERN)]
NameInQuery = Annotated[str | None, Query(pattern=schemas.NAME_PATTERN)]


_SAME_PAIR: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": schemas.PairAnswer, "description": "The same pair was there already."}
}
_AS_TEXT: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def system_routes(controller: ControllerPort, orders: Orders) -> APIRouter:
    """The routes, bound to one controller."""
    router = APIRouter()
    storage = controller.storage
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControllerCollector(controller))

    @router.get("/healthz", tags=["system"])
    async def health() -> dict[str, str]:
        """Whether the daemon answers; needs no token and says nothing else."""
        return {"status": "ok"}

    @router.get("/metrics", tags=["system"], response_class=Response, responses=_AS_TEXT)
    async def metrics() -> Response:
        """Counters and positions as Prometheus text."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/system", tags=["system"])
    async def show_system() -> schemas.SystemAnswer:
        """Which controller this is, and how it is."""
        return views.system(controller)

    @router.get("/v1/config", tags=["system"])
    async def show_config() -> dict[str, Any]:
        """The configuration in force, defaults included and secrets hidden."""
        return controller.configuration()

    @router.post("/v1/system/checkpoint", tags=["system"])
    async def checkpoint() -> schemas.Done:
        """Bring the disks up to date and free journal space now."""

        async def run() -> schemas.Done:
            await storage.checkpointer.checkpoint()
            return schemas.Done(message="checkpoint taken")

        return await orders.queued(run)

    @router.get("/v1/status", tags=["system"])
    async def show_status() -> schemas.StatusAnswer:
        """Where every group stands (spec §5.5)."""
        return views.status(controller)

    return router


def pair_routes(controller: ControllerPort, orders: Orders) -> APIRouter:
    """The routes for pairs and takeover, bound to one controller."""
    router = APIRouter(prefix="/v1", tags=["pairs"])
    pairs = controller.pairs

    @router.get("/pairs")
    async def list_pairs() -> list[schemas.PairAnswer]:
        """Every pair; a group of a cascade is in two."""
        return sorted(pairs.pairs(), key=lambda pair: (pair.group, pair.role, pair.peer))

    @router.post("/pairs", status_code=201, responses=_SAME_PAIR)
    async def create_pair(order: schemas.PairCreate, response: Response) -> schemas.PairAnswer:
        """Make this controller's side of a pair: on the secondary first, then on the primary."""
        answer, new = await orders.queued(lambda: pairs.create(order))
        if not new:
            response.status_code = 200
        return answer

    @router.get("/pairs/{group}")
    async def show_pairs(group: NameInPath) -> list[schemas.PairAnswer]:
        """The pairs of one group; none is an empty list."""
        storage_group = controller.storage.group(group)
        return [pair for pair in await list_pairs() if pair.group == storage_group.name]

    @router.delete("/pairs/{group}")
    async def delete_pair(
        group: NameInPath, role: schemas.RoleName | None = None, peer: NameInQuery = None, force: bool = False
    ) -> schemas.Done:
        """Forget this controller's side of a pair; ``role`` and ``peer`` choose when the group is in several.

        Without ``force`` the peer must be connected, or have deleted its side.
        """

        async def run() -> schemas.Done:
            await pairs.delete(group, role, peer, force=force)
            return schemas.Done(message=f"pair of group {group} deleted")

        return await orders.queued(run)

    @router.post("/pairs/{group}/suspend")
    async def suspend_pair(
        group: NameInPath, role: schemas.RoleName | None = None, peer: NameInQuery = None
    ) -> schemas.PairAnswer:
        """Split by order: the state becomes PSUS."""
        return await orders.queued(lambda: pairs.suspend(group, role, peer))

    @router.get("/takeover")
    async def preview_takeover(
        domain: Annotated[str, Query(pattern=schemas.NAME_PATTERN)] = "default",
    ) -> schemas.TakeoverAnswer:
        """What a takeover would do now; changes nothing."""
        return await pairs.preview(domain)

    @router.post("/takeover")
    async def takeover(order: schemas.TakeoverOrder) -> schemas.TakeoverAnswer:
        """Apply what is consistent and open the domain's volumes for writing; waits for no other order."""
        return await orders.at_once(lambda: pairs.takeover(order.domain))

    return router
