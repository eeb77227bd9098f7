"""Pairs as the API speaks of them: orders by group, answers as schemas.

Owns: finding the pair that a group, role and peer mean, and the translation to and from the replication layer.
Never: decides whether an order is possible; the pair manager does.
"""

from __future__ import annotations

from collections.abc import Sequence

from controllerd.management.schemas import (
    ForgottenPair,
    GroupForgotten,
    PairAnswer,
    PairCreate,
    PairStatus,
    RoleName,
    TakeoverAnswer,
)
from controllerd.model.errors import Conflict, NotFound
from controllerd.model.pair_state import Role
from controllerd.replication import status as replication_status
from controllerd.replication.pair_record import PairSpec, PairVolume
from controllerd.replication.pairs import PairManager


class PairOrders:
    """`PairsPort` on the pair manager of the controller named ``controller``."""

    def __init__(self, manager: PairManager, controller: str) -> None:
        self._manager = manager
        self._controller = controller
        self._settings = manager.context.settings

    # ---- what is asked for -----------------------------------------------------

    def pairs(self) -> Sequence[PairAnswer]:
        """Every pair of this controller, with the order that made it."""
        specs = {(spec.identity, role.value): spec for role, spec in self._manager.specs()}
        return [self._answer(status, specs[status.pair_id, status.role]) for status in self._manager.status()]

    def status(self) -> Sequence[PairStatus]:
        """One entry per pair."""
        return [PairStatus.model_validate(status) for status in self._manager.status()]

    def peer_connected(self, name: str) -> bool | None:
        """Whether records can travel to or from a peer; None if there is no pair with it."""
        return self._manager.peer_connected(name)

    async def preview(self, domain: str) -> TakeoverAnswer:
        """What a takeover would give now."""
        return TakeoverAnswer.model_validate(self._manager.preview(domain))

    # ---- orders ------------------------------------------------------------------

    async def create(self, order: PairCreate) -> tuple[PairAnswer, bool]:
        """Create this side; also whether it is new."""
        spec = self._spec(order)
        new = not any(known.identity == spec.identity for _, known in self._manager.specs())
        status = await self._manager.create(Role(order.role), spec)
        return self._answer(status, spec), new

    async def delete(self, group: str, role: RoleName | None, peer: str | None, *, force: bool = False) -> None:
        """Delete this side of the pair that is meant."""
        await self._manager.delete(self._find(group, role, peer)[0], force=force)

    async def suspend(self, group: str, role: RoleName | None, peer: str | None) -> PairAnswer:
        """Split by order."""
        pair_id, spec = self._find(group, role, peer)
        return self._answer(await self._manager.suspend(pair_id), spec)

    async def forget_group(self, name: str) -> GroupForgotten:
        """Forget a group that cannot work, with its data and its sides of pairs."""
        gone = await self._manager.forget_group(name)
        pairs = [
            ForgottenPair(
                pair_id=record.spec.identity,
                role=record.role.value,
                peer=record.peer,
                peer_group=record.peer_group,
                told=told,
            )
            for record, told in gone.pairs
        ]
        return GroupForgotten(group=name, volumes=gone.volumes, pairs=pairs)

    async def recover_group(self, name: str) -> None:
        """Try the recovery of a held group again."""
        await self._manager.recover_group(name)

    async def takeover(self, domain: str) -> TakeoverAnswer:
        """Take over; the answer says what is in the image and how long it took."""
        return TakeoverAnswer.model_validate(await self._manager.takeover(domain))

    # ---- translation ---------------------------------------------------------------

    def _find(self, group: str, role: RoleName | None, peer: str | None) -> tuple[str, PairSpec]:
        found = [
            (known, spec)
            for known, spec in self._manager.specs()
            if group == _own_group(known, spec) and role in (None, known.value) and peer in (None, _peer(known, spec))
        ]
        if not found:
            raise NotFound(f"group {group} is in no such pair", group=group)
        if len(found) > 1:
            pairs = ", ".join(f"{known.value} with {_peer(known, spec)}" for known, spec in found)
            raise Conflict(f"group {group} is in several pairs ({pairs}); say which by role or peer", group=group)
        spec = found[0][1]
        return spec.identity, spec

    def _spec(self, order: PairCreate) -> PairSpec:
        here = (self._controller, order.group)
        there = (order.peer, order.peer_group)
        primary, secondary = (here, there) if order.role == "primary" else (there, here)
        return PairSpec(
            primary_controller=primary[0],
            primary_group=primary[1],
            secondary_controller=secondary[0],
            secondary_group=secondary[1],
            volumes=tuple(
                PairVolume(volume.primary, volume.secondary, volume.key, volume.size) for volume in order.volumes
            ),
            mode=order.mode,
            domain=order.domain,
            order=order.order,
            on_sync_loss=order.on_sync_loss,
            sync_timeout_s=order.sync_timeout_s,
            overflow=order.overflow,
            connections=order.connections,
            keep_journal=order.keep_journal,
        )

    def _answer(self, status: replication_status.PairStatus, spec: PairSpec) -> PairAnswer:
        return PairAnswer.model_validate(
            {
                "pair_id": status.pair_id,
                "group": status.group,
                "role": status.role,
                "state": status.state,
                "peer": status.peer,
                "peer_group": status.peer_group,
                "mode": spec.mode,
                "domain": spec.domain,
                "order": spec.order or self._settings.order,
                "on_sync_loss": spec.on_sync_loss,
                "sync_timeout_s": spec.sync_timeout_s or self._settings.sync_timeout_s,
                "connected": status.connected,
                "reason": status.reason or status.link_reason or None,
                "since": status.since,
                "volumes": [
                    {"primary": v.primary, "secondary": v.secondary, "key": v.key, "size": v.size} for v in spec.volumes
                ],
            }
        )


def _own_group(role: Role, spec: PairSpec) -> str:
    return spec.primary_group if role is Role.PRIMARY else spec.secondary_group


def _peer(role: Role, spec: PairSpec) -> str:
    return spec.secondary_controller if role is Role.PRIMARY else spec.primary_controller
