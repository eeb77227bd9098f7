"""Host port and storage layer in one process, for the interop tests: no configuration, no management, no pairs.

Owns: a small storage system in a directory, and the server on the sockets it is told.
Never: is part of the product.

Prints one line ``ready ADDRESS ...`` when clients can connect, makes the volume ``small`` 2 MiB long on SIGUSR1, and
stops on SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import time
from pathlib import Path

import uvloop

from controllerd.daemon import GC_THRESHOLDS
from controllerd.model.access import rules
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from controllerd.storage.volume import Access, Volume
from controllerd.targets.nbd.server import NbdServer
from controllerd.targets.nbd.settings import Limits, Listen, NbdSettings, TcpListen, Tls, UnixListen

MIB = 1 << 20


class Exports:
    """All volumes of a storage system."""

    def __init__(self, storage: StorageSystem) -> None:
        self._storage = storage

    def lookup(self, name: str) -> Volume | None:
        """Return the volume of that name."""
        return self._storage.volumes.get(name)

    def names(self) -> list[Volume]:
        """Return every volume."""
        return list(self._storage.volumes.values())


async def _serve(options: argparse.Namespace) -> None:
    directory = Path(options.directory)
    events = (directory / "events.log").open("a", buffering=1)

    def report(event: str, facts: dict[str, object]) -> None:
        print(event, facts, file=events)

    storage = StorageSystem(
        StorageSettings(
            str(directory / "data"),
            time_source="host",
            cache_bytes=options.cache_mib * MIB,
            journal_bytes=options.journal_mib * MIB,
        ),
        SystemFiles(),
        clock=time.time_ns,
        report=report,
        rng=random.Random(1),
    )
    await storage.start()
    if not storage.volumes:
        size = options.size_mib * MIB
        storage.create_disk("disk", str(directory / "disk"), 2 * size)
        storage.create_pool("pool", ["disk"])
        storage.create_group("group", durability=options.durability)
        storage.create_volume("vol", size, pool="pool", group="group", description="for tests")
        storage.create_volume("small", MIB, pool="pool", group="group")
        storage.create_volume("fixed", MIB, pool="pool", group="group", access=Access.READ_ONLY)
    listen: tuple[Listen, ...] = (UnixListen(str(directory / "nbd.sock")), TcpListen(options.host, 0))
    certificate, key, ca = (str(directory / f"{name}.pem") for name in ("server-cert", "server-key", "ca-cert"))
    tls = Tls(options.tls, certificate, key, ca, options.client_certificates)
    for text in options.allow:
        volume, _, documents = text.partition("=")
        storage.allow_volume(volume, rules(json.loads(documents)))
    settings = NbdSettings(
        tls=tls,
        listen=listen,
        default_export="vol",
        max_connections=options.max_connections,
        max_connections_per_address=options.max_per_address,
        idle_timeout_s=options.idle_timeout,
        handshake_timeout_s=options.handshake_timeout,
        shutdown_grace_s=5.0,
        limits=Limits(payload_max=options.max_request_mib * MIB),
    )
    server = NbdServer(Exports(storage), settings, clock=time.time_ns, report=report)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload_tls)
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, storage.resize_volume, "small", 2 * MIB)
    print("ready", *server.addresses(), flush=True)
    await stop.wait()
    await server.stop()
    await storage.stop()
    events.close()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--size-mib", type=int, default=64)
    parser.add_argument("--cache-mib", type=int, default=64)
    parser.add_argument("--journal-mib", type=int, default=256)
    parser.add_argument("--durability", choices=("cache", "stable"), default="cache")
    parser.add_argument("--max-connections", type=int, default=256)
    parser.add_argument("--handshake-timeout", type=float, default=10.0)
    parser.add_argument("--max-request-mib", type=int, default=32)
    parser.add_argument("--tls", choices=("off", "allow", "require"), default="off")
    parser.add_argument("--client-certificates", choices=("none", "optional", "required"), default="none")
    parser.add_argument("--max-per-address", type=int, default=0)
    parser.add_argument("--idle-timeout", type=float, default=0.0)
    parser.add_argument("--host", default="127.0.0.1", help="TCP address to listen on")
    parser.add_argument("--allow", action="append", default=[], metavar="VOLUME=JSON", help="rules about hosts")
    options = parser.parse_args()
    os.makedirs(options.directory, exist_ok=True)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as in the daemon: what is left to the collector stays for long
    uvloop.run(_serve(options))


if __name__ == "__main__":
    main()
