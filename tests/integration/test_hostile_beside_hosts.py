"""A peer with the key, or strangers on the management port, send anything; a host beside notices nothing (I17)."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.links import dial
from controllerd.replication.messages import Pull
from controllerd.replication.settings import Endpoint, PeerSettings, ReplicationSettings
from tests.fuzz import management_port, transfer_frames
from tests.fuzz.source import Source
from tests.integration.harness import SHARED_KEY, Controller, Site

SEED = 5
MIB = 1 << 20
BLOCK = 4096
ATTACKS = 60


@pytest.fixture
def a() -> Iterator[Controller]:
    """Controller A, primary of a pair whose other side, B, is nobody; and a volume that is in no pair."""
    with Site(["A", "B"]) as site:
        controller = site["A"]
        controller.start()
        controller.wait_ready()
        controller.create_pool()
        controller.create_group("attacked", {"v": MIB})
        controller.create_group("beside", {"w": 4 * MIB})
        (volume,) = [each for each in controller.get("/v1/volumes") if each["name"] == "v"]
        volumes = [{"primary": "v", "secondary": "v", "key": volume["key"], "size": volume["size"]}]
        order: dict[str, Any] = {"group": "attacked", "peer_group": "attacked", "volumes": volumes}
        controller.post("/v1/pairs", {**order, "role": "primary", "peer": "B"})
        yield controller
        controller.check()
        assert {each["group"] for each in controller.pairs()} >= {"attacked"}
        controller.stop()
        assert "Traceback" not in controller.log.read_text()


def chosen(rng: random.Random) -> Source:
    limit = rng.choice((256, 8, 16))
    return Source(bytes(byte % limit for byte in rng.randbytes(400)))


async def attack_as_peer(controller: Controller, rng: random.Random) -> None:
    """Sessions as controller B, each with a sound request and then anything."""
    peers = {"A": PeerSettings("A", Endpoint("127.0.0.1", controller.transfer_port))}
    settings = ReplicationSettings(controller="B", serial=1002, peers=peers, shared_key=SHARED_KEY.encode())
    generation = controller.get("/v1/groups/attacked").get("generation", 1)
    for epoch in range(1, ATTACKS + 1):
        try:
            link = await dial(settings, "A")
        except RemoteCopyError:
            continue
        link.on_frames = lambda _link, _frames: None
        source = chosen(rng)
        pull = Pull(
            "A:attacked-B:attacked", "attacked", rng.choice((generation, 0, 1)), 1, 1, 0, epoch, 0, 1, MIB, "PAIR", ""
        )
        link.send(pull.encode())
        for _ in range(10):
            link.send(transfer_frames.frame(source))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        link.abort("enough")


async def attack_management(controller: Controller, rng: random.Random) -> None:
    """Connections with any bytes, most of them not read from."""
    path = controller.directory / "management.sock"
    for _ in range(ATTACKS):
        reader, writer = await asyncio.open_unix_connection(Path(path))
        try:
            await management_port.speak(chosen(rng), reader, writer)
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("attack", [attack_as_peer, attack_management])
def test_host_beside_an_attack_reads_what_it_wrote(
    a: Controller, attack: Callable[[Controller, random.Random], Any]
) -> None:
    rng = random.Random(SEED)
    attacker = threading.Thread(target=lambda: asyncio.run(attack(a, rng)))
    host = nbd.NBD()
    host.connect_uri(a.uri("w"))
    attacker.start()
    written: dict[int, bytes] = {}
    number = 0
    while attacker.is_alive() or number < 200:
        number += 1
        offset, data = BLOCK * (number * 7 % 1000), number.to_bytes(8, "big") * (BLOCK // 8)
        host.pwrite(data, offset, nbd.CMD_FLAG_FUA if number % 10 == 0 else 0)
        written[offset] = data
        assert host.pread(BLOCK, offset) == data
    attacker.join()
    for offset, data in written.items():
        assert host.pread(BLOCK, offset) == data
    host.shutdown()
