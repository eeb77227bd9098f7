"""What the management API needs of the controller; daemon.py gives it.

Owns: the protocols. Never: implements them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from controllerd.management.schemas import (
    GroupForgotten,
    PairAnswer,
    PairCreate,
    PairStatus,
    RoleName,
    TakeoverAnswer,
)
from controllerd.storage.system import StorageSystem
from controllerd.targets.nbd.server import NbdServer


class PairsPort(Protocol):
    """Orders and questions about pairs. Orders are idempotent, and durable when they return.

    Every method raises RemoteCopyError subclasses only: BadOrder, NotFound, Conflict, Busy, Unreachable.
    """

    def pairs(self) -> Sequence[PairAnswer]:
        """Every pair of this controller; a group of a cascade is in two (secondary of one, primary of another)."""

    def status(self) -> Sequence[PairStatus]:
        """One entry per pair."""

    def peer_connected(self, name: str) -> bool | None:
        """Whether the peer answers now; None if nothing is asked of it."""

    async def create(self, order: PairCreate) -> tuple[PairAnswer, bool]:
        """This side of a pair, and whether it is new (False: the same pair was there already)."""

    async def delete(self, group: str, role: RoleName | None, peer: str | None, *, force: bool = False) -> None:
        """Forget this side of the pair; role and peer choose when the group is in several.

        Without ``force`` the peer must be there to be told.
        """

    async def suspend(self, group: str, role: RoleName | None, peer: str | None) -> PairAnswer:
        """Split by order: PSUS."""

    async def forget_group(self, name: str) -> GroupForgotten:
        """Forget a group that cannot work, with its data and its sides of pairs; the peers are told."""

    async def recover_group(self, name: str) -> None:
        """Try the recovery of a held group again; its pairs go on then.

        Raises DiskFailed or Corrupt when it cannot be recovered yet.
        """

    async def preview(self, domain: str) -> TakeoverAnswer:
        """What `takeover` would do now; changes nothing."""

    async def takeover(self, domain: str) -> TakeoverAnswer:
        """Apply what is consistent, make the domain's volumes writable; durable when it returns."""


class ControllerPort(Protocol):
    """One running controller."""

    @property
    def name(self) -> str:
        """``controller.name``."""

    @property
    def serial(self) -> int:
        """``controller.serial``."""

    @property
    def started_at(self) -> int:
        """Wall-clock ns of the start."""

    @property
    def clock(self) -> Callable[[], int]:
        """Wall clock in ns."""

    @property
    def storage(self) -> StorageSystem:
        """Disks, pools, groups and volumes."""

    @property
    def pairs(self) -> PairsPort:
        """Pairs and takeover."""

    @property
    def nbd(self) -> NbdServer:
        """The host port, for its counters."""

    def nbd_addresses(self) -> list[str]:
        """Where hosts connect, with the ports really used."""

    def configured_peers(self) -> list[tuple[str, str, int | None]]:
        """(name, address, serial or None) of each ``[[peer]]``."""

    def configuration(self) -> dict[str, Any]:
        """``Config.public()``: the whole configuration as JSON values, secrets hidden."""
