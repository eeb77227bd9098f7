"""Checks before a pair is created.

Owns: what a pair order must fulfil, and the messages that say what would be right.
Never: changes anything.

Source: spec §7.1, §7.5, §13; VC ¶65-73 (equal capacity).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from controllerd.model.errors import BadOrder, Conflict, NotFound
from controllerd.model.pair_state import PairState, Role
from controllerd.replication.context import Context
from controllerd.replication.pair_record import PairRecord, PairSpec
from controllerd.storage.group import Group

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:>-]{0,254}")


def check_create(
    context: Context, role: Role, spec: PairSpec, records: Iterable[PairRecord], *, prepared: bool = False
) -> Group:
    """Return the group the order is for. ``prepared``: it is being repeated, after a crash in its middle.

    Raises:
        BadOrder, NotFound, Conflict: the order is not possible; nothing was changed.
    """
    own = spec.primary_controller if role is Role.PRIMARY else spec.secondary_controller
    peer = spec.secondary_controller if role is Role.PRIMARY else spec.primary_controller
    name = spec.primary_group if role is Role.PRIMARY else spec.secondary_group
    settings = context.settings
    if own != settings.controller:
        raise BadOrder(f"this controller is {settings.controller}, the order's {role} is {own}")
    if peer == own:
        raise BadOrder("both sides of a remote pair are on this controller; local pairs come later")
    context.check_peer(peer)
    if not _ID.fullmatch(spec.identity):
        raise BadOrder(f"pair id {spec.identity!r}: use letters, digits and . _ : > - (at most 255)")
    if name not in context.storage.groups:
        raise NotFound(f"no group named {name}", group=name)
    group = context.storage.groups[name]
    others = [record for record in records if record.spec.identity != spec.identity and record.group == name]
    _check_roles(role, spec, group, others)
    _check_domain(role, spec, records)
    if not prepared:
        _check_volumes(role, spec, group)
    return group


def _check_roles(role: Role, spec: PairSpec, group: Group, others: list[PairRecord]) -> None:
    upstream = [record for record in others if record.role is Role.SECONDARY and record.state is not PairState.SSWS]
    downstream = [record for record in others if record.role is Role.PRIMARY]
    fault = group.describe_fault()
    if fault is not None:
        raise Conflict(group.say("does not work", fault), group=group.name)
    if role is Role.SECONDARY:
        if upstream:
            raise Conflict(f"group {group.name} is already the secondary of pair {upstream[0].spec.identity}")
        if downstream and spec.mode == "async":
            raise Conflict(
                f"group {group.name} is the primary of pair {downstream[0].spec.identity}; only a synchronous"
                " secondary can be one (cascade C -sync-> A -async-> B)"
            )
        keys = {volume.secondary: volume.key for volume in spec.volumes}
        if downstream and any(keys.get(volume.name) != volume.key for volume in group.volumes.values()):
            raise Conflict(
                f"group {group.name} is the primary of pair {downstream[0].spec.identity}, whose secondary knows its"
                " volumes by their present keys: in a cascade create the pair of the first two sites first"
            )
        return
    if upstream and upstream[0].spec.mode == "async":
        raise Conflict(
            f"group {group.name} is the asynchronous secondary of pair {upstream[0].spec.identity};"
            " only a synchronous secondary can be the primary of another pair"
        )
    if upstream and spec.mode == "sync":
        raise Conflict(f"group {group.name} is a secondary: from there on only asynchronous pairs are possible")
    if spec.mode == "sync" and any(record.spec.mode == "sync" for record in downstream):
        raise Conflict(f"group {group.name} has a synchronous secondary already")


def _check_domain(role: Role, spec: PairSpec, records: Iterable[PairRecord]) -> None:
    for record in records:
        other = record.spec
        if other.identity == spec.identity or record.role is not role or other.domain != spec.domain:
            continue
        if record.state is PairState.SSWS or (role is Role.PRIMARY and record.peer != spec.secondary_controller):
            continue
        if other.mode != spec.mode:
            raise Conflict(f"domain {spec.domain} has {other.mode} pairs ({other.identity}); choose another domain")
        if spec.mode == "sync" and role is Role.PRIMARY and other.on_sync_loss != spec.on_sync_loss:
            raise Conflict(
                f"domain {spec.domain} has pairs with on_sync_loss = {other.on_sync_loss}: they are suspended together"
            )
        if role is Role.SECONDARY and (other.order or "") != (spec.order or ""):
            raise Conflict(f"domain {spec.domain} is applied in order {other.order or 'as configured'}")


def _check_volumes(role: Role, spec: PairSpec, group: Group) -> None:
    if not spec.volumes:
        raise BadOrder(f"group {group.name}: name at least one volume")
    own = {(volume.primary if role is Role.PRIMARY else volume.secondary): volume for volume in spec.volumes}
    if len(own) != len(spec.volumes) or len({volume.key for volume in spec.volumes}) != len(spec.volumes):
        raise BadOrder("a volume or a volume key is named twice")
    present = {volume.name: volume for volume in group.volumes.values()}
    for name in own:
        if name not in present:
            raise NotFound(f"group {group.name} has no volume {name}", volume=name)
    left_out = sorted(set(present) - set(own))
    if left_out:
        raise BadOrder(f"group {group.name}: every volume of a group is in the pair; missing: {', '.join(left_out)}")
    for name, wanted in own.items():
        volume = present[name]
        if volume.size != wanted.size:
            raise BadOrder(f"volume {name} has {volume.size} bytes, the order says {wanted.size}: both must be equal")
        if role is Role.PRIMARY and volume.key != wanted.key:
            raise BadOrder(f"volume {name} has key {volume.key}, the order says {wanted.key}")
        if not volume.is_empty:
            raise Conflict(
                f"volume {name} holds data: copying volumes that hold data comes with a later version;"
                " create the pair while both volumes are still empty",
                volume=name,
            )
