"""What hosts' connections may hold of a controller's memory, under full mixed load and with clients that are stuck."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.bench.load import MixedLoad, stuck_client
from tests.integration.harness import Settings, Site, reported, wait_for

MIB = 1 << 20
CONNECTION = 16 * MIB
BUFFERS = 128 * MIB
"""storage.cache_bytes and tail_bytes: what keeps views of receive buffers."""
SIZE = 64 * MIB
LIMITS = 'max_request_bytes = "4MiB"\nmax_connection_bytes = "16MiB"\nmax_connections = 40'


@pytest.mark.slow
def test_memory_of_connections_is_bounded(tmp_path: Path) -> None:
    with Site(["A"], Settings(host_port=LIMITS)) as site, reported(site), contextlib.ExitStack() as stack:
        site.start()
        controller = site["A"]
        controller.create_pool()
        controller.create_group("g", {"v1": SIZE})
        load = MixedLoad(controller.uri("v1"), SIZE, tmp_path / "fio.log", limit_s=250)
        stack.callback(load.stop)
        socket = controller.directory / "nbd.sock"
        for length in (4 * MIB, MIB, 4096, 4 * MIB):
            stack.enter_context(stuck_client(socket, "v1", length))
        for turn in range(1, 21):

            def went_on(requests: int = 100 * turn) -> bool:
                return answered(controller.metrics()) > requests

            wait_for("the load to go on", went_on)
            metrics = controller.metrics()
            load.check()
            sessions = controller.get("/v1/volumes/v1")["sessions"]
            assert len(sessions) >= 4
            assert max(session["memory"] for session in sessions) <= CONNECTION
            assert metrics["remotecopy_nbd_connection_memory_limit_bytes"] == CONNECTION
            assert metrics['remotecopy_nbd_memory_bytes{kind="receive-buffers"}'] <= BUFFERS
            assert metrics["remotecopy_cache_used_bytes"] <= metrics["remotecopy_cache_limit_bytes"]
        stack.close()
        wait_for("the sessions to end", lambda: not controller.get("/v1/volumes/v1")["sessions"])
        assert controller.metrics()['remotecopy_nbd_memory_bytes{kind="sessions"}'] == 0
        controller.stop()


def answered(metrics: dict[str, float]) -> float:
    """Return how many requests were answered."""
    return sum(value for name, value in metrics.items() if name.startswith("remotecopy_nbd_requests_total{"))
