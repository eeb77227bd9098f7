"""The controller daemon: puts the layers together and runs them until told to stop.

Owns: the mapping from configuration to each layer's settings, the order of start and
stop, signals, and the exit code.
Never: implements anything that a layer could.

Order of start: storage (recovery), pairs, management port, host port last, so that no
host writes before the pairs that must see the write are there (I16). Stop is the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import random
import resource
import signal
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from controllerd.config import Address, Config
from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.management.observability import configure_logging, severity
from controllerd.management.pair_orders import PairOrders
from controllerd.management.server import ApiServer, ApiSettings
from controllerd.model.errors import Conflict, RemoteCopyError
from controllerd.replication.pairs import PairManager
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from controllerd.storage.buffers import BufferPool
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Volume
from controllerd.targets.nbd.server import NbdServer
from controllerd.targets.nbd.settings import MEMORY_FIXED, Limits, Listen, NbdSettings, TcpListen, Tls, UnixListen

EXIT_FAILED: Final = 1
# A full collection walks every cached block; the hot paths make no cycles, so rare is right. The youngest objects are
# looked at in portions that hold nobody up.
GC_THRESHOLDS: Final = (10_000, 250, 1000)


class Exports:
    """The volumes that hosts see on the NBD port."""

    def __init__(self, storage: StorageSystem) -> None:
        self._storage = storage

    def lookup(self, name: str) -> Volume | None:
        """Return the volume to export under ``name``."""
        volume = self._storage.volumes.get(name)
        return volume if volume is not None and volume.visible else None

    def names(self) -> list[Volume]:
        """Return every exported volume."""
        return [volume for _, volume in sorted(self._storage.volumes.items()) if volume.visible]


class Controller:
    """One running controller."""

    def __init__(self, config: Config, clock: Callable[[], int] = time.time_ns) -> None:
        self.config = config
        self.name = config.controller.name
        self.serial = config.controller.serial
        self.clock = clock
        self.started_at = clock()
        self._log = structlog.get_logger("controllerd")
        self._lock = lock_directory(config.controller.data_directory)
        rng = random.SystemRandom()
        self.storage = StorageSystem(storage_settings(config), SystemFiles(), clock=clock, report=self.report, rng=rng)
        # What arrives from hosts and from peers ends in the same write cache.
        chunks = BufferPool(config.storage.cache_bytes + config.storage.tail_bytes)
        self.replication = PairManager(
            self.storage, replication_settings(config, chunks), clock=clock, rng=rng, report=self.report
        )
        self.pairs = PairOrders(self.replication, self.name)
        self.nbd = NbdServer(Exports(self.storage), nbd_settings(config, chunks), clock=clock, report=self.report)
        self.api = ApiServer(
            create_app(self, GuardSettings(config.token(), config.management.max_body_bytes)), api_settings(config)
        )

    def report(self, event: str, facts: dict[str, Any]) -> None:
        """Log one event that an operator cares about."""
        self._log.log(severity(event, facts), event, **facts)

    # ---- what the management API asks -----------------------------------------

    def nbd_addresses(self) -> list[str]:
        """Where hosts connect, with the ports really used."""
        return self.nbd.addresses()

    def configured_peers(self) -> list[tuple[str, str, int | None]]:
        """(name, address, serial or None) of each configured peer."""
        return [(peer.name, str(peer.address), peer.serial) for peer in self.config.peer]

    def configuration(self) -> dict[str, Any]:
        """The whole configuration, secrets hidden."""
        return self.config.public()

    # ---- life ------------------------------------------------------------------

    async def start(self) -> None:
        """Start every layer.

        Raises:
            RemoteCopyError, OSError: something needed cannot be opened; what was started is stopped.
        """
        async with contextlib.AsyncExitStack() as started:
            await self.storage.start()
            started.push_async_callback(self.storage.stop)
            self.replication.load()
            await self.replication.start()
            started.push_async_callback(self.replication.stop)
            await self.api.start()
            started.push_async_callback(self.api.stop)
            await self.nbd.start()
            started.push_async_callback(self.nbd.stop)
            self._stack = started.pop_all()
        self.report(
            "started",
            {"serial": self.serial, "hosts": self.nbd_addresses(), "management": self.api.address},
        )

    def reload(self) -> None:
        """Take into use what may change while running: the TLS files of the host port."""
        self.nbd.reload_tls()

    async def stop(self) -> None:
        """Stop every layer, hosts first; the next start redoes nothing."""
        await self._stack.aclose()
        os.close(self._lock)
        self.report("stopped", {})


def lock_directory(path: Path) -> int:
    """Make sure that no other controller runs on the data directory; returns the descriptor that keeps the lock.

    Raises:
        Conflict: another one does.
        OSError: the directory cannot be made or written; the text names the configuration key.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OSError(error.errno, f"controller.data_directory: {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f"{path}: another controller is running on this data directory") from None
    return descriptor


def storage_settings(config: Config) -> StorageSettings:
    """Map the configuration for the storage layer."""
    storage, defaults = config.storage, config.defaults
    return StorageSettings(
        data_directory=str(config.controller.data_directory),
        owner=config.controller.owner,
        boot=_boot(),
        time_source=config.controller.time_source,
        host_time_ahead_s=config.controller.host_time_ahead_s,
        cache_bytes=storage.cache_bytes,
        journal_bytes=storage.journal_bytes,
        segment_bytes=storage.segment_bytes,
        tail_bytes=storage.tail_bytes,
        pending_bytes=storage.pending_bytes,
        max_request_bytes=config.nbd.max_request_bytes,
        region_bytes=storage.region_bytes,
        checkpoint_interval_s=storage.checkpoint_interval_s,
        destage_age_s=storage.destage_age_s,
        durability=defaults.durability,
        overflow=defaults.overflow,
    )


def _listen(address: Address) -> Listen:
    return UnixListen(str(address.path)) if address.path is not None else TcpListen(address.host, address.port)


def nbd_settings(config: Config, chunks: BufferPool) -> NbdSettings:
    """Map the configuration for the host port."""
    nbd, tls = config.nbd, config.nbd.tls
    return NbdSettings(
        listen=tuple(_listen(address) for address in nbd.listen),
        max_connections=nbd.max_connections,
        max_connections_per_address=nbd.max_connections_per_address,
        handshake_timeout_s=nbd.handshake_timeout_s,
        idle_timeout_s=nbd.idle_timeout_s,
        poll_s=nbd.poll_us / 1e6,
        shutdown_grace_s=config.controller.shutdown_grace_s,
        chunks=chunks,
        tls=Tls()
        if tls is None
        else Tls(
            tls.mode, str(tls.certificate), str(tls.key), "" if tls.ca is None else str(tls.ca), tls.client_certificates
        ),
        limits=Limits(
            payload_max=nbd.max_request_bytes,
            option_max=nbd.max_option_bytes,
            in_flight_max=nbd.max_in_flight,
            slow_reads_max=nbd.max_connection_bytes - nbd.max_request_bytes - MEMORY_FIXED,
        ),
    )


def _endpoint(address: Address) -> Endpoint:
    return Endpoint(address.host, address.port, None if address.path is None else str(address.path))


def _tls_contexts(config: Config) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Contexts for accepting and for dialling on the transfer path; each side checks the other's certificate."""
    tls = config.replication.tls
    if tls is None:
        return None, None
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    return contexts[0], contexts[1]


def _boot() -> str:
    """Name of the machine's present run: after another one, what was not synced may be gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def replication_settings(config: Config, chunks: BufferPool) -> ReplicationSettings:
    """Map the configuration for the transfer path.

    Raises:
        OSError: a certificate or key cannot be used.
    """
    replication = config.replication
    server_tls, client_tls = _tls_contexts(config)
    return ReplicationSettings(
        controller=config.controller.name,
        serial=config.controller.serial,
        listen=None if replication.listen is None else _endpoint(replication.listen),
        peers={peer.name: PeerSettings(peer.name, _endpoint(peer.address), peer.serial) for peer in config.peer},
        shared_key=config.shared_key(),
        server_tls=server_tls,
        client_tls=client_tls,
        boot=_boot(),
        tick_interval_s=replication.tick_interval_ms / 1000,
        heartbeat_interval_s=replication.heartbeat_interval_ms / 1000,
        handshake_timeout_s=replication.handshake_timeout_s,
        connections_max=replication.connections_max,
        mirror_sync_interval_s=replication.mirror_sync_interval_ms / 1000,
        fence_backoff_max_s=replication.fence_backoff_max_ms / 1000,
        peer_timeout_s=replication.peer_timeout_s,
        window_bytes=replication.window_bytes,
        connections=replication.connections,
        gap_timeout_s=replication.gap_timeout_s,
        backoff_min_s=replication.backoff_min_ms / 1000,
        backoff_max_s=replication.backoff_max_ms / 1000,
        sync_timeout_s=config.defaults.sync_timeout_s,
        throttle_timeout_s=config.defaults.throttle_timeout_s,
        order=config.apply.order,
        slice_records=config.apply.slice_records,
        chunks=chunks,
    )


def api_settings(config: Config) -> ApiSettings:
    """Map the configuration for the management port."""
    management = config.management
    tls = management.tls
    return ApiSettings(
        host=management.listen.host,
        port=management.listen.port,
        path=management.listen.path,
        certificate=None if tls is None else Path(tls.certificate),
        key=None if tls is None else Path(tls.key),
        keep_alive_timeout_s=management.keep_alive_timeout_s,
        max_connections=management.max_connections,
    )


async def _serve(config: Config) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        controller = Controller(config)
        await controller.start()
    except (RemoteCopyError, OSError) as error:
        structlog.get_logger("controllerd").error("start-failed", error=str(error))
        return EXIT_FAILED
    loop.add_signal_handler(signal.SIGHUP, controller.reload)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    await stop.wait()
    await controller.stop()
    return 0


def run(config: Config) -> int:
    """Run a controller until SIGTERM or SIGINT; returns the exit code."""
    configure_logging(config.logging.level, config.logging.format, controller=config.controller.name)
    sys.setswitchinterval(0.001)
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))  # every host connection is an open file
    return uvloop.run(_serve(config))
