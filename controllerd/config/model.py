"""Every configuration key: its type, default, limits and description (the reference is generated from them).

Owns: the sections as frozen models, and the syntax of addresses, paths, names and sizes in them.
Never: knows rules between keys (checks.py), opens sockets, or creates files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)

from controllerd.config.problems import ConfigError, Problem, shown
from controllerd.units import parse_size

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: a TCP host and port, or the path of a UNIX socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _base(info: ValidationInfo) -> Path:
    context = info.context
    return context["base"] if isinstance(context, dict) else Path()


def _parse_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f'{shown(value)} is not a path; write text like "keys/transfer.key"')
    return _resolved(value, info)


def _resolved(path: str | Path, info: ValidationInfo) -> Path:
    """The absolute path that is meant; raises ValueError when there can be none."""
    if "\0" in str(path):
        raise ValueError("a path cannot contain a zero character")
    try:
        return (_base(info) / Path(path).expanduser()).absolute()
    except RuntimeError:
        raise ValueError(f"{shown(str(path))} begins with the home directory of a user that is not known") from None


def _parse_address(value: object, info: ValidationInfo) -> Address:
    if isinstance(value, Address):
        return value
    right = 'write "127.0.0.1:10809", "[::1]:10809" or "unix:/run/controllerd/nbd.sock"'
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not an address; {right}")
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path:
            raise ValueError(f'"{value}" names no socket; {right}')
        resolved = _resolved(path, info)
        if len(str(resolved).encode()) > 107:  # sockaddr_un.sun_path, with its closing zero
            raise ValueError(f'"{resolved}" is longer than the 107 bytes of a UNIX socket path; use a shorter one')
        return Address(path=resolved)
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]]+)):(\d{1,5})", value, re.ASCII)
    if match is None:
        raise ValueError(f'"{value}" is not an address; {right}')
    port = int(match[3])
    if port > 65535:
        raise ValueError(f'"{value}": port {port} does not exist; a port is at most 65535')
    return Address(host=match[1] or match[2], port=port)


def _parse_addresses(value: object, info: ValidationInfo) -> tuple[Address, ...]:
    if isinstance(value, str):
        value = [value]
    if value == []:
        raise ValueError('the list is empty; write at least one address, like ["127.0.0.1:10809"]')
    if not isinstance(value, list | tuple):
        raise ValueError(f'{shown(value)} is not a list of addresses; write ["127.0.0.1:10809"]')
    return tuple(_parse_address(item, info) for item in value)


def _parse_name(value: object) -> str:
    if not isinstance(value, str) or NAME_PATTERN.fullmatch(value) is None:
        raise ValueError(
            f"{shown(value)} is not a name; use 1 to 63 letters, digits, '.', '_', '-'; first a letter or digit"
        )
    return value


Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema({"title": "size"})]
FilePath = Annotated[Path, PlainValidator(_parse_path), PlainSerializer(str), WithJsonSchema({"title": "path"})]
Listen = Annotated[Address, PlainValidator(_parse_address), PlainSerializer(str), WithJsonSchema({"title": "address"})]
Listens = Annotated[
    tuple[Address, ...],
    PlainValidator(_parse_addresses),
    PlainSerializer(lambda values: [str(value) for value in values]),
    WithJsonSchema({"title": "list of addresses"}),
]
Name = Annotated[str, PlainValidator(_parse_name), WithJsonSchema({"title": "name"})]


def sized(default: int, low: int, high: int, description: str) -> Any:
    """A size key; default and limits in bytes."""
    return Field(default, ge=low, le=high, description=description)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ControllerSection(Section):
    """Who this controller is and where it keeps its data."""

    name: Name = Field(description="Name of this controller; peers and mgmtctl know it by this name.")
    serial: int = Field(ge=1, le=0xFFFFFFFF, description="Serial number, different on every controller.")
    data_directory: FilePath = Field(
        description="Where catalogue, journals, and disks given without a directory are kept. Created if absent."
    )
    time_source: Literal["host", "clock", "sequence"] = Field(
        "clock",
        description="What gives writes their time: the time hosts send with a write (a write without one gets the last "
        "time known), this controller's clock, or a controller-wide counter.",
    )
    host_time_ahead_s: float = Field(
        3600.0,
        ge=1,
        le=1e9,
        description="A host's time further ahead of this controller's clock is not believed: the write counts as one "
        "without a time.",
    )
    shutdown_grace_s: float = Field(
        10.0, ge=0, le=600, description="How long a stop waits for hosts' requests that are under way."
    )

    @property
    def owner(self) -> str:
        """Who the data directory belongs to."""
        return f"{self.name} (serial {self.serial})"


class NbdTls(Section):
    """TLS on the port hosts use. SIGHUP takes changed files into use; sessions go on as they are."""

    mode: Literal["off", "allow", "require"] = Field(
        "require",
        description="require: without TLS a client learns nothing, no name either; allow: the client chooses.",
    )
    certificate: FilePath = Field(description="Certificate chain of this controller, PEM.")
    key: FilePath = Field(description="Private key of the certificate, PEM.")
    ca: FilePath | None = Field(
        None, description="Certificates of the authorities that may sign a client's certificate, PEM."
    )
    client_certificates: Literal["none", "optional", "required"] = Field(
        "none",
        description="Whether clients prove who they are; optional: those that do not can open what asks for no name.",
    )
    psk_file: FilePath | None = Field(
        None, description="Pre-shared keys: not possible, as Python 3.11 has none; use certificates."
    )


class NbdSection(Section):
    """The port hosts use."""

    listen: Listens = Field(
        (Address("127.0.0.1", 10809),), description='Addresses to listen on: "host:port" or "unix:/path".'
    )
    max_connections: int = Field(
        256,
        ge=1,
        le=65536,
        description="More are closed at once, unless one that has not chosen a volume yet can give way.",
    )
    max_connections_per_address: int = Field(
        0, ge=0, le=65536, description="Likewise for the connections from one TCP address; 0: no such limit."
    )
    handshake_timeout_s: float = Field(
        10.0, gt=0, le=600, description="A client that has not chosen an export by then, TLS included, is closed."
    )
    idle_timeout_s: float = Field(
        0.0,
        ge=0,
        le=30 * 86400,
        description="A client that for this long neither sends a request nor takes an answer is closed; 0: never.",
    )
    poll_us: int = Field(
        50,
        ge=0,
        le=1000,
        description="Microseconds for which a busy host's next request is looked for before the controller sleeps: "
        "shorter answers for a host that is alone and has few requests in flight, for some processor time; 0: never.",
    )
    max_option_bytes: Size = sized(64 * KIB, 8 * KIB, MIB, "Longest option of a handshake; longer ones are refused.")
    max_in_flight: int = Field(
        1024, ge=1, le=65536, description="Requests of one connection that may wait for an answer before reading stops."
    )
    max_request_bytes: Size = sized(32 * MIB, MIB, 64 * MIB, "Longest read or write of one request.")
    max_connection_bytes: Size = sized(
        48 * MIB,
        11 * MIB,
        1 << 30,
        "Most memory of one connection for requests that arrive, reads under way and answers that the client has not "
        "taken; at least 10 MiB more than max_request_bytes. Written data counts against storage.cache_bytes.",
    )
    tls: NbdTls | None = None


class ManagementTls(Section):
    """HTTPS for the management port."""

    certificate: FilePath = Field(description="Certificate chain, PEM.")
    key: FilePath = Field(description="Private key of the certificate, PEM.")


class ManagementSection(Section):
    """The HTTP port for mgmtctl, scripts and Prometheus."""

    listen: Listen = Field(Address("127.0.0.1", 9711), description='Address to listen on: "host:port" or "unix:/path".')
    token_file: FilePath | None = Field(
        None, description="File whose first line is the access token. Either this or token must be given."
    )
    token: SecretStr | None = Field(
        None, description="The access token itself, at least 16 characters; a token_file is safer."
    )
    tls: ManagementTls | None = Field(None, description="Serve HTTPS with this certificate.")
    max_body_bytes: Size = sized(MIB, 4 * KIB, 64 * MIB, "Longest request body that is read.")
    keep_alive_timeout_s: int = Field(30, ge=1, le=3600, description="An idle connection is closed after this time.")
    max_connections: int = Field(64, ge=1, le=4096, description="Requests beyond this many get 503.")


class TransferTls(Section):
    """Mutual TLS on the transfer path; both sides check the other's certificate against ca."""

    certificate: FilePath = Field(description="Certificate chain of this controller, PEM.")
    key: FilePath = Field(description="Private key of the certificate, PEM.")
    ca: FilePath = Field(description="Certificates of the authorities that may sign a peer's certificate, PEM.")


class ReplicationSection(Section):
    """The transfer path to and from other controllers."""

    listen: Listen | None = Field(None, description='Address for the transfer path: "host:port" or "unix:/path".')
    shared_key_file: FilePath | None = Field(
        None,
        description="File with the secret that all peers share, at least 16 bytes. Required for peers without tls.",
    )
    tls: TransferTls | None = Field(None, description="Mutual TLS for the transfer path.")
    tick_interval_ms: int = Field(
        50,
        ge=1,
        le=10_000,
        description="An idle group sends a time tick this often, so as to hold no other group back.",
    )
    heartbeat_interval_ms: int = Field(200, ge=10, le=60_000, description="How often each side says that it is alive.")
    peer_timeout_s: float = Field(3.0, gt=0, le=600, description="A peer silent for this long is taken as lost.")
    window_bytes: Size = sized(
        16 * MIB, 2 * MIB, 4096 * MIB, "Most bytes on their way to a secondary group that it has not yet taken."
    )
    connections: int = Field(2, ge=1, le=16, description="TCP connections per group pair.")
    gap_timeout_s: float = Field(
        2.0, gt=0, le=600, description="A gap in what arrived is asked for again after this time."
    )
    handshake_timeout_s: float = Field(
        5.0, gt=0, le=600, description="A peer that has not proved who it is by then is closed."
    )
    connections_max: int = Field(256, ge=1, le=65536, description="More connections than this are closed at once.")
    mirror_sync_interval_ms: int = Field(
        100,
        ge=1,
        le=60_000,
        description="Synchronous pair: how often the secondary's journal is synced without a flush.",
    )
    backoff_min_ms: int = Field(50, ge=1, le=600_000, description="First wait before a lost connection is made again.")
    backoff_max_ms: int = Field(2_000, ge=1, le=600_000, description="Longest wait between two such attempts.")
    fence_backoff_max_ms: int = Field(
        10_000, ge=1, le=600_000, description="Longest wait between attempts to tell an old primary of a takeover."
    )


class PeerSection(Section):
    """A controller that this one replicates with."""

    name: Name = Field(description="The peer's own controller.name.")
    address: Listen = Field(description="Where the peer's replication.listen is reached.")
    serial: int | None = Field(
        None, ge=1, le=0xFFFFFFFF, description="The peer's controller.serial; when given, another serial is refused."
    )


class StorageSection(Section):
    """Memory, journals and the way to the disks."""

    cache_bytes: Size = sized(
        256 * MIB,
        16 * MIB,
        1 << 40,
        "Memory for written data that is not yet on the disks; when full, hosts wait.",
    )
    journal_bytes: Size = sized(
        1024 * MIB, 16 * MIB, 1 << 44, "Journal of a group, unless given when the group is created."
    )
    segment_bytes: Size = sized(64 * MIB, 4 * MIB, 1 << 32, "One journal file; a journal is a number of these.")
    checkpoint_interval_s: float = Field(
        10.0, gt=0, le=3600, description="How often the disks are brought up to date and journal space is freed."
    )
    destage_age_s: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="Written data goes to the disks after this time; earlier overwrites are joined.",
    )
    pending_bytes: Size = sized(
        64 * MIB, 4 * MIB, 1 << 36, "Memory per secondary group for what arrived and is not yet applied."
    )
    tail_bytes: Size = sized(
        64 * MIB, 4 * MIB, 1 << 36, "Newest part of a group's journal that is kept in memory for its peers."
    )
    region_bytes: Size = sized(64 * KIB, 4 * KIB, 16 * MIB, "Region size of a pool, unless given when it is created.")


class GroupDefaults(Section):
    """What a new group gets when the order does not say."""

    durability: Literal["cache", "stable"] = Field(
        "cache",
        description="cache: a write is acknowledged when the kernel has the journal write (survives a crash of the "
        "daemon); stable: when it is on stable storage (survives power loss).",
    )
    overflow: Literal["suspend", "throttle"] = Field(
        "suspend", description="Journal full because a peer is slow or gone: suspend the pair, or let hosts wait."
    )
    throttle_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="With throttle: after this long the pair is suspended all the same."
    )
    sync_timeout_s: float = Field(
        5.0, gt=0, le=600, description="Synchronous pair: how long a write waits for the peer."
    )


class ApplySection(Section):
    """How a secondary makes what arrived visible."""

    order: Literal["time", "sequence"] = Field(
        "time",
        description="time: by write time over all groups, every write moves the image; sequence: each group by itself, "
        "which costs less, and the image moves once per cycle.",
    )
    slice_records: int = Field(256, ge=1, le=1_000_000, description="Records applied before other work gets its turn.")


class LoggingSection(Section):
    """What the daemon says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least important line written.")
    format: Literal["auto", "json", "text"] = Field(
        "auto", description="json for collectors, text for people; auto: text on a terminal."
    )


class Config(Section):
    """One controller's configuration file."""

    controller: ControllerSection
    nbd: NbdSection = NbdSection()
    management: ManagementSection
    replication: ReplicationSection = ReplicationSection()
    peer: tuple[PeerSection, ...] = Field((), strict=False)
    storage: StorageSection = StorageSection()
    defaults: GroupDefaults = GroupDefaults()
    apply: ApplySection = ApplySection()
    logging: LoggingSection = LoggingSection()

    def token(self) -> str:
        """The management token; raises ConfigError when the file is gone since the start."""
        if self.management.token is not None:
            return self.management.token.get_secret_value()
        path = self.management.token_file
        if path is None:
            raise ConfigError([Problem("", "management.token_file", "missing", 'give token_file = "mgmt.token"')])
        lines = read_secret(path, "management.token_file").decode("ascii", "replace").splitlines()
        return lines[0].strip() if lines else ""

    def shared_key(self) -> bytes | None:
        """The transfer path's shared secret, without the line end that editors add; None if not configured."""
        path = self.replication.shared_key_file
        return None if path is None else read_secret(path, "replication.shared_key_file").strip()

    def public(self) -> dict[str, Any]:
        """The configuration as JSON values, with secrets hidden."""
        return self.model_dump(mode="json")


def read_secret(path: Path, key: str) -> bytes:
    """Content of a key or token file (at most 64 KiB); raises ConfigError naming ``key``."""
    try:
        with path.open("rb") as file:
            return file.read(64 * KIB)
    except OSError as error:
        raise ConfigError([Problem(str(path), key, error.strerror or str(error), "name a readable file")]) from None
