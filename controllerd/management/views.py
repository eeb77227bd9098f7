"""The controller's objects as answers of the API.

Owns: the mapping from storage objects to schemas. Never: changes anything, or waits.
"""

from __future__ import annotations

from controllerd.management.ports import ControllerPort
from controllerd.management.schemas import (
    VERSION,
    AllowRule,
    DiskAnswer,
    GroupAnswer,
    PairStatus,
    PeerAnswer,
    PoolAnswer,
    Position,
    SessionAnswer,
    StatusAnswer,
    SystemAnswer,
    VolumeAnswer,
    format_size,
)
from controllerd.storage.group import Group
from controllerd.storage.pools import Disk, Pool
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume

_LOW_SPACE_PART = 10  # a pool with less than a tenth free, and more promised than it has, is worth a warning


def system(controller: ControllerPort) -> SystemAnswer:
    storage = controller.storage
    pairs = controller.pairs
    return SystemAnswer(
        name=controller.name,
        serial=controller.serial,
        version=VERSION,
        time_source=storage.settings.time_source,
        started_at=controller.started_at,
        uptime_s=max(0, controller.clock() - controller.started_at) / 1e9,
        nbd_listen=controller.nbd_addresses(),
        disks=len(storage.disks),
        pools=len(storage.pools),
        volumes=len(storage.volumes),
        groups=len(storage.groups),
        pairs=len(pairs.pairs()),
        sessions=sum(len(volume.sessions) for volume in storage.volumes.values()),
        cache_used_bytes=storage.budget.used,
        cache_limit_bytes=storage.budget.limit,
        checkpoints=storage.checkpointer.count,
        peers=[
            _peer(name, address, serial, pairs.peer_link(name))
            for name, address, serial in controller.configured_peers()
        ],
        faults=faults(storage),
    )


def _peer(name: str, address: str, serial: int | None, link: tuple[bool | None, str]) -> PeerAnswer:
    connected, reason = link
    return PeerAnswer(name=name, address=address, serial=serial, connected=connected, reason=reason)


def faults(storage: StorageSystem) -> list[str]:
    """What does not work as it should, one line each."""
    found = [storage.checkpointer.fault] if storage.checkpointer.fault else []
    found += [disk.failed for disk in storage.disks.values() if disk.failed is not None]
    for group in storage.groups.values():
        fault = group.name_fault()
        if fault is not None:
            found.append(fault)
    found += [warning for pool in storage.pools.values() for warning in _pool_warnings(pool, _promised(storage, pool))]
    return found


def disk(storage: StorageSystem, item: Disk) -> DiskAnswer:
    owner = next((pool.name for pool in storage.pools.values() if item in pool.disks), None)
    return DiskAnswer(name=item.name, path=item.path, size=item.size, pool=owner, fault=item.failed)


def pool(storage: StorageSystem, item: Pool) -> PoolAnswer:
    promised = _promised(storage, item)
    return PoolAnswer(
        name=item.name,
        disks=[disk.name for disk in item.disks],
        region_size=item.region_size,
        size=item.regions * item.region_size,
        free=item.free * item.region_size,
        provisioned=promised,
        warnings=_pool_warnings(item, promised),
    )


def _promised(storage: StorageSystem, item: Pool) -> int:
    return sum(volume.size for volume in storage.volumes.values() if volume.pool is item)


def _pool_warnings(item: Pool, promised: int) -> list[str]:
    size, free = item.regions * item.region_size, item.free * item.region_size
    if promised <= size or free * _LOW_SPACE_PART > size:
        return []
    space = f"{format_size(free)} of {format_size(size)} free while its volumes promise {format_size(promised)}"
    return [f"pool {item.name}: {space}; writes fail with no space when it is full"]


def volume(item: Volume, warning: str | None = None) -> VolumeAnswer:
    return VolumeAnswer(
        name=item.name,
        key=item.key,
        size=item.size,
        allocated=item.allocated,
        pool=item.pool.name,
        group=item.group.name,
        block_size=item.block_size,
        description=item.description,
        access=item.access.value,
        allow=None if item.allow is None else [AllowRule(**rule.document()) for rule in item.allow],
        writable=item.writable,
        visible=item.visible,
        sessions=sorted(
            (SessionAnswer.model_validate(session.describe()) for session in item.sessions), key=lambda one: one.id
        ),
        warnings=[] if warning is None else [warning],
    )


def group(item: Group) -> GroupAnswer:
    return GroupAnswer.model_validate(
        {
            "name": item.name,
            "role": item.role.value,
            "generation": item.generation,
            "incarnation": item.incarnation,
            "durability": item.durability,
            "overflow": item.facts.overflow,
            "journal_bytes": item.facts.journal_bytes,
            "journal_used_bytes": item.journal.used_bytes,
            "bytes_written": item.bytes_written,
            "accepting": item.accepting,
            "volumes": sorted(volume.name for volume in item.volumes.values()),
            "written": {"seq": item.last_seq, "time": item.last_time},
            "durable_seq": item.durable_seq,
            "applied": {"seq": item.applied_seq, "time": item.applied_time},
            "fault": item.describe_fault(),
        }
    )


def status(controller: ControllerPort) -> StatusAnswer:
    """Every pair, then every group that is in none."""
    storage = controller.storage
    entries = sorted(controller.pairs.status(), key=lambda entry: (entry.group, entry.role, entry.peer or ""))
    paired = {entry.group for entry in entries}
    alone = [_without_pair(item) for name, item in sorted(storage.groups.items()) if name not in paired]
    return StatusAnswer(
        controller=controller.name,
        serial=controller.serial,
        time_source=storage.settings.time_source,
        now=controller.clock(),
        groups=entries + alone,
        faults=faults(storage),
    )


def _without_pair(item: Group) -> PairStatus:
    return PairStatus.model_validate(
        {
            "group": item.name,
            "role": item.role.value,
            "state": "SMPL",
            "written": Position(seq=item.last_seq, time=item.last_time),
            "applied": Position(seq=item.applied_seq, time=item.applied_time),
            "reason": item.describe_fault(),
        }
    )
