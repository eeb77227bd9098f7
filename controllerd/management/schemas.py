"""What goes over the management port: every request and answer, shared with mgmtctl.

Owns: the JSON shapes (stable: fields are added, never renamed), their limits, and the product's version.
Never: imports anything of the controller but the pure ``units``; mgmtctl imports this module and no other.

Sizes are bytes (requests also take text such as "64MiB"). Times named ``*_time`` are write times: u64 ns, or plain
numbers where the controller's time source is ``sequence``; the others are wall-clock ns since 1970. ``None`` means
"not known on this side".

Source: spec §5.5, §7, §12, §13; RC ¶46 (what can be asked for), fig. 4, 7, 8.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from controllerd.units import SIZE_MAX, format_size, parse_size

__all__ = ["VERSION", "format_size", "parse_size"]

VERSION: Final = "0.1.0"
API_VERSION: Final = "v1"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
VOLUME_SIZE_MIN: Final = 512
LIST_LENGTH_MAX: Final = 4096

Name = Annotated[str, Field(pattern=NAME_PATTERN, description="1 to 63 letters, digits, '.', '_' or '-'.")]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=SIZE_MAX, description="Bytes, or text like '64MiB'.")]
Durability = Literal["cache", "stable"]
Overflow = Literal["suspend", "throttle"]
Mode = Literal["async", "sync"]
Order = Literal["time", "sequence"]
SyncLoss = Literal["suspend", "block"]
RoleName = Literal["primary", "secondary"]


class Request(BaseModel):
    """Base of what callers send: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, from_attributes=True)


class Answer(BaseModel):
    """Base of what the controller says: a newer controller may say more than an older client knows."""

    model_config = ConfigDict(extra="ignore", frozen=True, from_attributes=True)


class ErrorAnswer(Answer):
    """The one shape of every error."""

    code: str = Field(description="Stable kebab-case name of the kind of error.")
    message: str = Field(description="One line: what is wrong, where, and what would be right.")
    details: dict[str, Any] = Field(default_factory=dict, description="The same facts for programs.")


# ---- system ------------------------------------------------------------------


class PeerAnswer(Answer):
    """A configured peer controller."""

    name: str
    address: str
    serial: int | None = None
    connected: bool | None = Field(None, description="Whether the peer is connected; None: no connection is wanted.")
    reason: str = Field("", description="Why it is not connected.")


class SystemAnswer(Answer):
    """Which controller this is, and how it is."""

    name: str
    serial: int
    version: str
    api_version: str = API_VERSION
    time_source: Literal["host", "clock", "sequence"]
    started_at: int = Field(description="Wall-clock ns of the start.")
    uptime_s: float
    nbd_listen: list[str] = Field(description="Where hosts connect.")
    disks: int
    pools: int
    volumes: int
    groups: int
    pairs: int
    sessions: int
    cache_used_bytes: int
    cache_limit_bytes: int
    checkpoints: int
    peers: list[PeerAnswer] = []
    faults: list[str] = Field(default=[], description="One line each; empty when all is well.")


# ---- disks and pools ---------------------------------------------------------


class DiskCreate(Request):
    """A file or block device to be used; a file that does not exist is made with ``size``."""

    name: Name
    path: str | None = Field(
        None, min_length=1, max_length=4096, description="Default: disks/NAME in the data directory."
    )
    size: Size | None = Field(None, description="Needed for a new file; default for an existing one: its size.")
    erase: bool = Field(False, description="Take an existing file or device although it holds data, which is lost.")


class DiskAnswer(Answer):
    name: str
    path: str
    size: int
    pool: str | None = None
    fault: str | None = None


class PoolCreate(Request):
    name: Name
    disks: list[Name] = Field(min_length=1, max_length=LIST_LENGTH_MAX)
    region_size: Size | None = Field(None, description="Power of two from 4 KiB to 16 MiB.")


class PoolGrow(Request):
    """A disk that is in no pool."""

    disk: Name


class PoolAnswer(Answer):
    name: str
    disks: list[str]
    region_size: int
    size: int
    free: int
    provisioned: int = Field(description="Sum of the volumes' sizes; more than size is thin provisioning.")
    warnings: list[str] = []


# ---- volumes and groups ------------------------------------------------------


class AllowRule(Request):
    """Hosts that may open a volume: in ``network`` and with the name ``certificate``; without both, every host."""

    network: str | None = Field(
        None, max_length=64, description='"10.0.0.0/8", "2001:db8::/32", or "unix" for UNIX sockets.'
    )
    certificate: str | None = Field(
        None, min_length=1, max_length=256, description="Common or alternative name of the host's TLS certificate."
    )
    read_only: bool = Field(False, description="They may not write.")


Allow = Annotated[
    list[AllowRule] | None,
    Field(
        max_length=256,
        description="Which hosts may open it, by all rules that fit; None: every host; an empty list: no host.",
    ),
]


class VolumeAllow(Request):
    """Replaces what was said before."""

    allow: Allow


class VolumeCreate(Request):
    name: Name
    size: Size = Field(ge=VOLUME_SIZE_MIN)
    pool: Name
    group: Name
    block_size: Annotated[int, Field(ge=512, le=65536)] = 4096
    access: Literal["read-write", "read-only"] = "read-write"
    description: str = Field("", max_length=256)
    allow: Allow = None


class VolumeResize(Request):
    size: Size = Field(ge=VOLUME_SIZE_MIN)


class SessionAnswer(Answer):
    """A host's connection to a volume, and what it did since it was opened."""

    id: int = Field(description="Number of the connection, for an order to close it; never used again.")
    protocol: str
    peer: str = Field(description='"ADDRESS:PORT", or "unix".')
    tls: str | None = Field(None, description="TLS version; None: in clear.")
    certificate: list[str] = Field(default=[], description="Names in the host's certificate, in lower case.")
    read_only: bool = Field(description="Whether the host can only read now.")
    opened: int = Field(description="Wall-clock ns.")
    carries_write_time: bool = Field(False, description="Whether the host gives its writes their time.")
    requests: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    in_flight: int = Field(0, description="Requests that wait for an answer.")
    memory: int = Field(0, description="Bytes that the connection holds; nbd.max_connection_bytes at most.")


class VolumeAnswer(Answer):
    name: str
    key: int
    size: int
    allocated: int
    pool: str
    group: str
    block_size: int
    description: str
    access: Literal["read-write", "read-only"]
    allow: Allow = None
    writable: bool = Field(description="Whether a host write would be accepted now.")
    visible: bool = Field(description="Whether hosts may open it at all.")
    sessions: list[SessionAnswer] = Field(default=[], description="One object per open host session.")
    warnings: list[str] = []


class GroupCreate(Request):
    name: Name
    durability: Durability | None = Field(None, description="Default: defaults.durability of the configuration.")
    overflow: Overflow | None = None
    journal_bytes: Size | None = None


class Position(Answer):
    """A point in a group's order of writes."""

    seq: int | None = None
    time: int | None = None


class GroupAnswer(Answer):
    name: str
    role: RoleName
    generation: int
    incarnation: int
    durability: Durability
    overflow: Overflow
    journal_bytes: int
    journal_used_bytes: int
    bytes_written: int
    accepting: bool = Field(description="False: hosts wait because cache or journal is full.")
    volumes: list[str]
    written: Position
    durable_seq: int
    applied: Position
    fault: str | None = None


class ForgottenPair(Answer):
    """A side of a pair that went with its group."""

    pair_id: str
    role: RoleName
    peer: str
    peer_group: str
    told: bool = Field(description="False: the peer was not connected; it hears it when it is reached.")


class GroupForgotten(Answer):
    group: str
    volumes: list[str] = Field(description="Volumes that are gone, with their data.")
    pairs: list[ForgottenPair]


# ---- pairs -------------------------------------------------------------------


class PairVolume(Request):
    """A volume of the primary group and its counterpart: the secondary takes over ``key``."""

    primary: Name
    secondary: Name
    key: Annotated[int, Field(ge=1, le=0xFFFFFFFF)]
    size: Annotated[int, Field(ge=VOLUME_SIZE_MIN, le=SIZE_MAX)]


class PairCreate(Request):
    """One side of a group pair. The secondary side is created first, then the primary."""

    group: Name
    role: RoleName = Field(description="What this controller's group becomes.")
    peer: Name = Field(description="The other controller, as in [[peer]] name.")
    peer_group: Name
    volumes: list[PairVolume] = Field(min_length=1, max_length=LIST_LENGTH_MAX)
    mode: Mode = "async"
    domain: Name = Field(
        "default", description="Apply domain of the secondary: its groups are kept consistent together."
    )
    order: Order | None = Field(None, description="Secondary: apply order; default: apply.order of the configuration.")
    on_sync_loss: SyncLoss = "suspend"
    sync_timeout_s: Annotated[float, Field(gt=0, le=600)] | None = None
    overflow: Overflow | None = Field(None, description="Default: that of the primary group.")
    connections: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="Default: replication.connections of the configuration."
    )
    keep_journal: bool = Field(
        False, description="Keep the journal for the secondary after a failure, too, as long as there is room."
    )


class PairAnswer(Answer):
    pair_id: str = Field(description="Id of the pair, the same on both sides.")
    group: str
    role: RoleName
    state: str
    peer: str
    peer_group: str
    mode: Mode
    domain: str
    order: Order | None = None
    on_sync_loss: SyncLoss | None = None
    sync_timeout_s: float | None = None
    connected: bool
    reason: str | None = Field(None, description="Why the pair is not in state PAIR.")
    since: int | None = Field(None, description="Wall-clock ns since when it is in this state.")
    volumes: list[PairVolume] = []


# ---- status and takeover -----------------------------------------------------


class PairStatus(Answer):
    """Where one group stands, seen from one side of one pair (or from a group without a pair).

    Sequence numbers are the primary's, on both sides.
    """

    pair_id: str | None = None
    group: str
    role: RoleName
    state: str
    since: int | None = Field(None, description="Wall-clock ns of the last change of state or reason.")
    reason: str | None = Field(None, description="Why the state is not PAIR.")
    peer: str | None = None
    peer_group: str | None = None
    mode: Mode | None = None
    domain: str | None = None
    connected: bool | None = None
    connected_since: int | None = None
    last_contact: int | None = Field(None, description="Wall-clock ns when the peer was last heard.")
    link_reason: str | None = Field(None, description="Why there is no connection.")
    blocked: bool = Field(
        False,
        description="Primary: writes fail (EIO), none may open for writing; secondary: no room for what arrives.",
    )
    written: Position = Field(Position(), description="The primary's newest record.")
    transferred: Position = Field(
        Position(), description="Sent by the primary. From here on null: not known, until the peer is heard."
    )
    arrived: Position = Field(Position(), description="In the secondary's journal, without gaps.")
    durable: Position = Field(Position(), description="There for good.")
    applied: Position = Field(Position(), description="Visible at the secondary.")
    lag_s: float | None = Field(None, description="How old the secondary's image is; None: not known.")
    lag_bytes: int | None = Field(None, description="Bytes of data that are not applied; None: not known.")
    missing_writes: int | None = Field(None, description="Writes the secondary does not have; None: not known.")
    missing_bytes: int | None = None
    pending_writes: int | None = Field(None, description="Records that arrived and are not applied.")
    cut_time: int | None = Field(None, description="Secondary: everything older than this is visible.")
    unknown_since: int | None = Field(
        None, description="Secondary: wall-clock ns since when nothing is known here of what the hosts wrote."
    )
    unheard_why: str = Field("", description="Why that is so; empty while the primary, and its own one, are heard.")
    diverged_writes: int | None = Field(
        None, description="After a takeover: writes of the old primary that the new one does not have."
    )
    diverged_bytes: int | None = Field(
        None, description="Their bytes; None: not known, and `diverged_writes` is the most it can be."
    )
    corrupt_frames: int = Field(0, description="How often damaged data came from the peer, since the start.")
    holder: str | None = Field(None, description="Group that holds the consistency line back, or whose path is cut.")
    holder_since: int | None = Field(
        None, description="Wall-clock ns since when the line stands still; no reconnect moves it."
    )
    holder_why: str | None = None


class StatusAnswer(Answer):
    controller: str
    serial: int
    time_source: Literal["host", "clock", "sequence"]
    now: int = Field(description="The controller's wall clock, ns.")
    groups: list[PairStatus]
    faults: list[str] = []


class UnusableVolume(Answer):
    """Writes that arrived for a volume and cannot be used, because something older of another group is missing."""

    volume: str
    writes: int
    bytes: int


class TakeoverGroup(Answer):
    """What a takeover gives or gave for one group."""

    pair_id: str
    group: str
    peer: str
    peer_group: str
    mode: Mode
    state: str
    cut_seq: int = Field(description="Last record that is in the image.")
    cut_time: int
    primary_seq: int | None = Field(None, description="Newest record the primary is known to have.")
    primary_time: int | None = None
    primary_age_s: float | None = Field(None, description="How long ago it told.")
    unknown_since: int = Field(
        description="Wall-clock ns since when nothing is known here of what the hosts wrote: it may be missing."
    )
    unknown_s: float = Field(description="How long that is.")
    unheard_why: str = Field("", description="Why that is so; empty while the primary is heard.")
    missing_writes: int | None = Field(
        None, description="Writes that the primary told of and that never arrived; None: not known."
    )
    missing_bytes: int | None = None
    unusable_writes: int = Field(0, description="Records that arrived behind the cut.")
    unusable_bytes: int = 0
    unusable: list[UnusableVolume] = []
    volumes: list[str] = []


class TakeoverAnswer(Answer):
    """What a takeover would do (preview) or has done."""

    domain: str
    preview: bool
    cut_time: int = Field(description="Everything older than this write time is in the image.")
    rpo_s: float | None = Field(
        None, description="Seconds of the hosts' writes that are missing at the most; None: not known."
    )
    rpo_known_s: float | None = Field(None, description="The part of it that the primary told of.")
    unknown_since: int = Field(description="Wall-clock ns since when nothing is known here of what the hosts wrote.")
    unknown_s: float = Field(description="The other part: how long that is.")
    unheard_why: str = Field("", description="Why that is so; empty while the primary is heard.")
    rto_s: float | None = Field(None, description="How long the takeover took; None in a preview.")
    phases_s: dict[str, float] = Field(default={}, description="What took how long.")
    holder: str | None = Field(None, description="Group that holds the consistency line back.")
    holder_why: str | None = None
    groups: list[TakeoverGroup]
    warnings: list[str] = []


class TakeoverOrder(Request):
    domain: Name = "default"


class Done(Answer):
    """An order without further result."""

    done: bool = True
    message: str = ""
