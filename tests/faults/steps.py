"""The steps at which real controllers are killed: the product's own functions around every durable change of state.

Owns: which functions, in which scenario (`tests.faults.scenarios`) and at which controller they are reached.
Never: imports the product; the names are looked up where they are used (`tests.faults.stepped`).

A name is "module:qualified name" without the product's own name. A new durable change is one more line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_WRITE_PATH: Final = (
    "storage.group:Group.commit",
    "storage.journal:Journal.append",
    "storage.journal:Journal.begin_sync",
    "storage.io:SystemFile._try_sync",
)
_SEGMENTS: Final = (
    "storage.journal:Journal._next_segment",
    "storage.journal:Journal.free_through",
    "storage.journal:Journal._recycle",
)
_CHECKPOINT: Final = (
    "storage.destage:Destager.destage",
    "storage.destage:Destager._finish",
    "storage.destage:Destager._write",
    "storage.checkpoint:Checkpointer.checkpoint",
    "storage.checkpoint:Checkpointer.sync_disks",
    "storage.catalogue:Catalogue.checkpoint",
    "storage.group:Group.checkpointed",
)
_PULLING: Final = (
    "replication.receiver:Receiver.acknowledge",
    "replication.applier:DomainApplier._apply_slice",
    "storage.received:Applied.apply",
    "storage.system:StorageSystem._announce",
)
_START: Final = (
    "storage.system:StorageSystem._load",
    "storage.system:StorageSystem.recover",
    "storage.recovery:recover_group",
    "storage.recovery:_make_durable",
    "storage.recovery:_redo",
    "storage.journal:Journal.adopt",
    "storage.recovery:end_recovery",
    "storage.journal:Journal.begin_segment",
    "storage.journal:Journal.sync_now",
    "storage.pools:Pool.zero_free",
    "storage.system:StorageSystem._begin_times",
    "storage.system:StorageSystem.note_run",
    "storage.catalogue:Catalogue.put_fact",
    "storage.catalogue:Catalogue.put_document",
    "replication.pairs:PairManager.load",
    "replication.pairs:PairManager.start",
    "storage.checkpoint:Checkpointer.checkpoint",
)
_TAKEOVER: Final = (
    "replication.takeover:Takeover.run",
    "replication.takeover:Takeover._prepare",
    "replication.takeover:Takeover._apply",
    "replication.takeover:Takeover._promote",
    "replication.takeover:Takeover._finish",
    "replication.applier:DomainApplier.settle",
    "storage.catalogue:Catalogue.put_document",
    "storage.catalogue:Catalogue.checkpoint",
)
_NEW_JOURNAL: Final = (
    "storage.role_changes:RoleChanges.restart_groups",
    "storage.role_changes:restart",
    "storage.journal:Journal.reset",
    "storage.journal:Journal.release_retired",
)

REACHED: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("load", "C"): (
        *_WRITE_PATH,
        *_SEGMENTS,
        *_CHECKPOINT,
        "replication.sender:Sender._send",
        "replication.sender:Sender._take_ack",
    ),
    ("load", "A"): (
        *_WRITE_PATH[1:],
        *_SEGMENTS[:1],
        *_CHECKPOINT,
        *_PULLING,
        "replication.intake:SyncIntake._drain",
        "replication.intake:SyncIntake._now_durable",
        "storage.reception:Reception.stage_upstream",
    ),
    ("load", "B"): (
        *_WRITE_PATH[1:],
        *_SEGMENTS[:1],
        *_CHECKPOINT,
        *_PULLING,
        "replication.intake:AsyncIntake._drain",
        "replication.intake:AsyncIntake._now_durable",
        "storage.reception:Reception.append",
    ),
    ("fresh", "C"): (
        "storage.segment_files:SegmentFiles.make",
        "storage.segment_files:SegmentFiles.take",
        "storage.pools:Pool.allocate",
    ),
    ("restart", "C"): (*_START, "replication.primary:PrimaryPair.pull"),
    ("restart", "A"): (*_START, "replication.secondary:SecondaryPair.join_domain"),
    ("restart", "B"): (*_START, "replication.secondary:SecondaryPair.join_domain"),
    ("orders", "C"): (
        "storage.disks:take_disk",
        "storage.capacity:Capacity.create_disk",
        "storage.capacity:Capacity.create_pool",
        "storage.capacity:Capacity.grow_pool",
        "storage.system:StorageSystem.create_group",
        "storage.volume_orders:VolumeOrders.create",
        "storage.volume_orders:VolumeOrders.resize",
        "storage.volume_orders:VolumeOrders.allow",
        "storage.volume_orders:VolumeOrders.delete",
        "storage.system:StorageSystem.delete_group",
        "storage.system:StorageSystem.drop_group",
        "storage.system:StorageSystem.keep_write_time",
        "storage.journal:Journal.begin_segment",
        "storage.catalogue:Catalogue.put_document",
        "storage.catalogue:Catalogue.delete_document",
        "storage.catalogue:Catalogue.delete_volume",
        "storage.destage:Destager._unmap_zeroed",
        "storage.checkpoint:Checkpointer.release",
        "storage.pools:Pool.zero",
        "storage.pools:Pool.release",
    ),
    ("pairs", "C"): (
        "replication.pairs:PairManager._create_primary",
        "replication.pairs:PairManager._delete_primary",
        "replication.primary:PrimaryPair.suspend",
        "replication.context:Context.save",
        "replication.context:Context.move",
        "replication.kept:KeptFigures._write",
        "storage.catalogue:Catalogue.delete_document",
    ),
    ("pairs", "A"): (
        "replication.pairs:PairManager._create_secondary",
        "replication.pairs:PairManager._delete_secondary",
        "replication.secondary:SecondaryPair.adopt",
        "replication.secondary:SecondaryPair.received_run",
        "replication.secondary:SecondaryPair.noticed",
        "replication.context:Context.move",
        "storage.role_changes:RoleChanges.change_role",
        "storage.role_changes:_change_role",
        "storage.catalogue:Catalogue.put_document",
    ),
    ("pairs", "B"): (
        "replication.pairs:PairManager._create_secondary",
        "replication.pairs:PairManager._prepare_secondary",
        "replication.pairs:PairManager._delete_secondary",
        "replication.pairs:PairManager._drop_secondary",
        "replication.secondary:SecondaryPair.adopt",
        "replication.context:Context.save",
        "replication.kept:KeptFigures._write",
        "storage.volume_orders:VolumeOrders.rekey",
        *_NEW_JOURNAL,
        "storage.catalogue:Catalogue.checkpoint",
        "storage.catalogue:Catalogue.put_document",
        "storage.catalogue:Catalogue.delete_document",
    ),
    ("alone", "C"): (
        "replication.pair_events:PairEvents.sync_lost",
        "replication.primary:PrimaryPair.mark_suspended",
        "replication.primary:PrimaryPair.finish_suspend",
        "replication.context:Context.move",
    ),
    ("takeover-sync", "A"): (
        *_TAKEOVER,
        "replication.takeover:Takeover._promote_in_place",
        "storage.role_changes:_change_role",
        "replication.context:Context.save",
    ),
    ("takeover-async", "A"): (
        *_TAKEOVER,
        *_NEW_JOURNAL,
        "replication.context:Context.save",
        "replication.secondary:SecondaryPair._fence_told",
    ),
    ("takeover-async", "C"): (
        "replication.primary:PrimaryPair.fence",
        "replication.primary:PrimaryPair._answer_fence",
        "replication.context:Context.move",
        "replication.context:Context.save",
    ),
    ("takeover-again", "A"): (
        "replication.takeover_orders:TakeoverOrders._finish",
        "replication.takeover:Takeover._apply",
        "replication.takeover:Takeover._promote",
        "replication.takeover:Takeover._finish",
        *_NEW_JOURNAL,
    ),
    ("farewell", "A"): (
        "replication.farewells:Farewells.add",
        "replication.farewells:Farewells._heard",
        "replication.pairs:PairManager._delete_secondary",
        "replication.pairs:PairManager._drop_secondary",
        "storage.catalogue:Catalogue.delete_document",
        *_NEW_JOURNAL,
    ),
    ("farewell", "C"): (
        "replication.primary:PrimaryPair.farewell",
        "replication.primary:PrimaryPair.noticed",
        "replication.context:Context.move",
    ),
    ("held", "C"): (
        "storage.held:HeldGroups.recover",
        "storage.recovery:recover_group",
        "storage.catalogue:Catalogue.put_document",
        "storage.faults:Faults.let_go",
        "storage.system:StorageSystem.note_run",
        "storage.held:HeldGroups.forget",
        "storage.catalogue:Catalogue.forget_group",
        "storage.system:StorageSystem.drop_group",
        "storage.held:HeldGroups._give_back",
        "storage.checkpoint:Checkpointer.release",
    ),
}
"""(scenario, controller): the steps that it must reach there."""

NAMES: Final = tuple(sorted({name for names in REACHED.values() for name in names}))
