"""Settings of the replication layer, as the composition root hands them in.

Owns: their names, units and defaults.
Never: reads configuration files or keys.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from controllerd.replication.auth import NONCE_BYTES
from controllerd.storage.buffers import BufferPool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a transfer port is: ``host`` and ``port``, or the UNIX socket ``path``."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path is not None else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """A controller that this one replicates with; ``serial`` None accepts any."""

    name: str
    endpoint: Endpoint
    serial: int | None = None


def _nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """Limits and timers; times in seconds, sizes in bytes.

    ``boot`` names the present run of the machine (kernel boot id): if it changed, what was
    journaled and not synced may be gone. "" means not known.
    """

    controller: str
    serial: int
    listen: Endpoint | None = None
    peers: Mapping[str, PeerSettings] = field(default_factory=dict)
    shared_key: bytes | None = None
    server_tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None
    nonce: Callable[[], bytes] = _nonce
    boot: str = ""
    tick_interval_s: float = 0.05
    heartbeat_interval_s: float = 0.2
    peer_timeout_s: float = 3.0
    handshake_timeout_s: float = 5.0
    window_bytes: int = 16 << 20
    connections: int = 2
    connections_max: int = 256
    gap_timeout_s: float = 2.0
    backoff_min_s: float = 0.05
    backoff_max_s: float = 2.0
    fence_backoff_max_s: float = 10.0
    sync_timeout_s: float = 5.0
    throttle_timeout_s: float = 30.0
    mirror_sync_interval_s: float = 0.1
    order: Literal["time", "sequence"] = "time"
    slice_records: int = 256
    chunks: BufferPool = field(default_factory=lambda: BufferPool(64 << 20))
    """Receive memory that is remembered for reuse; somebody else trims it."""

    def __post_init__(self) -> None:
        if self.shared_key is None and self.server_tls is None and (self.listen is not None or self.peers):
            raise ValueError("the transfer path needs a shared key or mutual TLS")
