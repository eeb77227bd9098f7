"""Routes for disks, pools, volumes and groups.

Owns: what an order means in terms of the storage system. Never: keeps state, or maps errors (errors.py does).
"""

from __future__ import annotations

import asyncio
import os.path
from typing import Annotated

from fastapi import APIRouter, Path

from controllerd.management import schemas, views
from controllerd.management.orders import Orders
from controllerd.management.ports import ControllerPort
from controllerd.model.access import Rules, rules
from controllerd.model.errors import Conflict, NotFound
from controllerd.storage.volume import Access

NameInPath = Annotated[str, Path(pattern=schemas.NAME_PATTERN)]


def storage_routes(controller: ControllerPort, orders: Orders) -> APIRouter:
    """The routes, bound to one controller."""
    router = APIRouter(prefix="/v1", tags=["storage"])
    _disk_and_pool_routes(router, controller, orders)
    _volume_routes(router, controller, orders)
    _group_routes(router, controller, orders)
    return router


def _disk_and_pool_routes(router: APIRouter, controller: ControllerPort, orders: Orders) -> None:
    storage = controller.storage

    @router.get("/disks")
    async def list_disks() -> list[schemas.DiskAnswer]:
        """Every disk, by name."""
        return [views.disk(storage, item) for _, item in sorted(storage.disks.items())]

    @router.post("/disks", status_code=201)
    async def create_disk(order: schemas.DiskCreate) -> schemas.DiskAnswer:
        """Use a file or block device for data; a missing file is made."""
        path = os.path.join(storage.settings.data_directory, order.path or f"disks/{order.name}")

        async def run() -> schemas.DiskAnswer:
            # In a thread: making or erasing a large file can take long. Orders come one at a time.
            item = await asyncio.to_thread(storage.create_disk, order.name, path, order.size, erase=order.erase)
            return views.disk(storage, item)

        return await orders.queued(run)

    @router.get("/pools")
    async def list_pools() -> list[schemas.PoolAnswer]:
        """Every pool, by name."""
        return [views.pool(storage, item) for _, item in sorted(storage.pools.items())]

    @router.post("/pools", status_code=201)
    async def create_pool(order: schemas.PoolCreate) -> schemas.PoolAnswer:
        """Make a pool of disks that are in none."""

        async def run() -> schemas.PoolAnswer:
            return views.pool(storage, storage.create_pool(order.name, order.disks, order.region_size))

        return await orders.queued(run)

    @router.post("/pools/{name}/disks")
    async def grow_pool(name: NameInPath, order: schemas.PoolGrow) -> schemas.PoolAnswer:
        """Add a disk that is in no pool; who waits for space goes on by itself."""

        async def run() -> schemas.PoolAnswer:
            return views.pool(storage, storage.grow_pool(name, order.disk))

        return await orders.queued(run)


def _volume_routes(router: APIRouter, controller: ControllerPort, orders: Orders) -> None:
    storage = controller.storage

    @router.get("/volumes")
    async def list_volumes() -> list[schemas.VolumeAnswer]:
        """Every volume with its open sessions, by name."""
        return [views.volume(item) for _, item in sorted(storage.volumes.items())]

    @router.post("/volumes", status_code=201)
    async def create_volume(order: schemas.VolumeCreate) -> schemas.VolumeAnswer:
        """Make a volume that reads as zeros; ``warnings`` says so when the pool promises more than it has."""

        async def run() -> schemas.VolumeAnswer:
            item, warning = storage.create_volume(
                order.name,
                order.size,
                pool=order.pool,
                group=order.group,
                block_size=order.block_size,
                description=order.description,
                access=Access(order.access),
                allow=_rules(order.allow),
            )
            return views.volume(item, warning)

        return await orders.queued(run)

    @router.get("/volumes/{name}")
    async def show_volume(name: NameInPath) -> schemas.VolumeAnswer:
        """One volume."""
        return views.volume(storage.volume(name))

    @router.patch("/volumes/{name}")
    async def resize_volume(name: NameInPath, order: schemas.VolumeResize) -> schemas.VolumeAnswer:
        """Make a volume larger; the new part reads as zeros."""

        async def run() -> schemas.VolumeAnswer:
            return views.volume(*storage.resize_volume(name, order.size))

        return await orders.queued(run)

    @router.put("/volumes/{name}/allow")
    async def allow_volume(name: NameInPath, order: schemas.VolumeAllow) -> schemas.VolumeAnswer:
        """Say which hosts may open a volume, from now on; sessions that this takes rights from are closed."""

        async def run() -> schemas.VolumeAnswer:
            return views.volume(storage.allow_volume(name, _rules(order.allow)))

        return await orders.queued(run)

    @router.delete("/volumes/{name}/sessions/{number}")
    async def disconnect(name: NameInPath, number: int) -> schemas.Done:
        """Close one host's connection to a volume; the host may connect again."""
        for session in list(storage.volume(name).sessions):
            if session.describe()["id"] == number:
                session.abort("disconnected by order")
                return schemas.Done(message=f"connection {number} to volume {name} closed")
        raise NotFound(f"volume {name} has no connection {number}")

    @router.delete("/volumes/{name}")
    async def delete_volume(name: NameInPath) -> schemas.Done:
        """Forget a volume that no host has open, and give its space back."""

        async def run() -> schemas.Done:
            await storage.delete_volume(name)
            return schemas.Done(message=f"volume {name} deleted")

        return await orders.queued(run)


def _rules(allow: list[schemas.AllowRule] | None) -> Rules:
    return rules(None if allow is None else [rule.model_dump() for rule in allow])


def _group_routes(router: APIRouter, controller: ControllerPort, orders: Orders) -> None:
    storage = controller.storage

    @router.get("/groups")
    async def list_groups() -> list[schemas.GroupAnswer]:
        """Every group, by name."""
        return [views.group(item) for _, item in sorted(storage.groups.items())]

    @router.post("/groups", status_code=201)
    async def create_group(order: schemas.GroupCreate) -> schemas.GroupAnswer:
        """Make a group with an empty journal."""

        async def run() -> schemas.GroupAnswer:
            item = storage.create_group(
                order.name,
                durability=order.durability,
                overflow=order.overflow,
                journal_bytes=order.journal_bytes,
            )
            return views.group(item)

        return await orders.queued(run)

    @router.get("/groups/{name}")
    async def show_group(name: NameInPath) -> schemas.GroupAnswer:
        """One group."""
        return views.group(storage.group(name))

    @router.delete("/groups/{name}")
    async def delete_group(name: NameInPath) -> schemas.Done:
        """Forget a group without volumes and pairs."""

        async def run() -> schemas.Done:
            _refuse_paired(controller, name)
            await storage.delete_group(name)
            return schemas.Done(message=f"group {name} deleted")

        return await orders.queued(run)

    @router.post("/groups/{name}/forget")
    async def forget_group(name: NameInPath) -> schemas.GroupForgotten:
        """Forget a group whose journal or disk failed, with its volumes, their data and its sides of pairs.

        Nothing of it can be had back. Other groups go on; the peers are told. A group that works is refused.
        """
        return await orders.queued(lambda: controller.pairs.forget_group(name))

    @router.post("/groups/{name}/recover")
    async def recover_group(name: NameInPath) -> schemas.GroupAnswer:
        """Try the recovery of a group that is held since the start again; its disks are opened anew."""

        async def run() -> schemas.GroupAnswer:
            await controller.pairs.recover_group(name)
            return views.group(storage.group(name))

        return await orders.queued(run)


def _refuse_paired(controller: ControllerPort, name: str) -> None:
    """Storage knows nothing of pairs, so a pair's group is protected here."""
    peers = [f"{pair.peer}:{pair.peer_group}" for pair in controller.pairs.pairs() if pair.group == name]
    if peers:
        raise Conflict(f"group {name} is in a pair with {', '.join(peers)}; delete the pair first", group=name)
