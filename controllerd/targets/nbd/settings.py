"""Settings of the NBD target: where it listens, and every limit that protects it.

Owns: the values and their defaults.
Never: reads the configuration (daemon.py maps it to these).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from controllerd.storage.buffers import BufferPool

KIB: Final = 1 << 10
MIB: Final = 1 << 20
MEMORY_FIXED: Final = 9 * MIB
"""What a connection takes beside its reads: a receive chunk (2 MiB), replies of three passes (1 MiB each: one handed to
the transport below its mark, one above it, one gathered), and what the last reply may exceed that by (4 MiB)."""

TlsMode = Literal["off", "allow", "require"]
ClientCertificates = Literal["none", "optional", "required"]


@dataclass(frozen=True, slots=True)
class TcpListen:
    """Listen on a TCP address; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixListen:
    """Listen on a UNIX socket. A socket nobody listens on is replaced; ``mode`` are its permission bits."""

    path: str
    mode: int = 0o660

    def __str__(self) -> str:
        return f"unix:{self.path}"


Listen = TcpListen | UnixListen


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of the host port: ``allow`` lets the client choose, ``require`` shows nothing before it.

    ``certificate`` (a chain), ``key`` and ``ca`` are paths of PEM files. A client's certificate is checked against
    ``ca``; with "optional" a client may have none, but no wrong one.
    """

    mode: TlsMode = "off"
    certificate: str = ""
    key: str = ""
    ca: str = ""
    client_certificates: ClientCertificates = "none"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take; sizes in bytes.

    The memory of a connection is bounded by one receive chunk, replies that are gathered and not sent, and reads that
    wait for a disk: `memory_max`.
    """

    payload_max: int = 32 * MIB
    """Longest READ or WRITE; advertised to clients."""
    drain_max: int = 256 * MIB
    """A longer WRITE is refused after its payload was thrown away; beyond this the connection is closed instead."""
    option_max: int = 64 * KIB
    """Longest data of an option that is looked at; longer ones are refused."""
    option_drain_max: int = 1 * MIB
    """Longest data of an option that is thrown away; beyond this the connection is closed instead."""
    in_flight_max: int = 1024
    """Requests that may wait for an answer before reading stops. Those of one receive chunk may exceed it."""
    chunk_min: int = 64 * KIB
    """Receive chunk of a connection with little traffic."""
    chunk_max: int = 2 * MIB
    """Receive chunk of a connection with much traffic; at least twice ``piece_max``."""
    piece_max: int = 1 * MIB
    """Most data that is read or written in one go; longer requests are served in pieces of this size."""
    output_max: int = 1 * MIB
    """Replies that are gathered before they are sent and, unless the client takes them, parsing stops."""
    slow_reads_max: int = 8 * MIB
    """Data of reads under way to a disk before parsing stops."""
    extents_range_max: int = 128 * MIB
    """Range that one BLOCK_STATUS answers; the client asks again for the rest."""

    @property
    def memory_max(self) -> int:
        """Most memory of a connection: what is fixed, the longest reply that must not be split, and reads beside it."""
        return MEMORY_FIXED + self.payload_max + self.slow_reads_max

    def __post_init__(self) -> None:
        if self.chunk_max < 2 * self.piece_max or self.chunk_min > self.chunk_max or self.piece_max % 4096:
            raise ValueError("limits contradict each other: see their descriptions")


@dataclass(frozen=True, slots=True)
class NbdSettings:
    """Everything `NbdServer` is told; times in seconds."""

    listen: tuple[Listen, ...] = (TcpListen("127.0.0.1", 10809),)
    max_connections: int = 256
    max_connections_per_address: int = 0
    """Connections from one TCP address; 0: no limit."""
    handshake_timeout_s: float = 10.0
    idle_timeout_s: float = 0.0
    """A session is closed after this time in which the client neither sent a request nor took an answer; 0: never."""
    poll_s: float = 50e-6
    """For how long the next request is looked for before the loop sleeps; 0: not at all."""
    shutdown_grace_s: float = 10.0
    default_export: str = ""
    """Volume that a client gets which names none; empty: such a client is refused."""
    chunks: BufferPool = field(default_factory=lambda: BufferPool(512 * MIB))
    """Receive memory that is remembered for reuse, shared with whom you like; the server trims it. Most of it is at any
    time held by the write cache and the journal's tail, so its bound should be above their limits together."""
    reply_bytes_max: int = 32 * MIB
    """Reply memory that is kept for reuse."""
    unix_send_buffer_bytes: int = 1 * MIB
    """Send buffer of a connection over a UNIX socket; 0 leaves the kernel's default."""
    backlog: int = 512
    tls: Tls = field(default_factory=Tls)
    limits: Limits = field(default_factory=Limits)
