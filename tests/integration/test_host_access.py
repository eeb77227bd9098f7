"""Hosts that are allowed, refused, shown and disconnected by order, on a real controller that is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.integration.harness import Controller, Settings, Site, wait_for
from tests.interop.test_nbd_tls import client_directory, make_certificates

MIB = 1 << 20


@pytest.fixture
def controller() -> Iterator[Controller]:
    with Site(["A"]) as site:
        site.start()
        one = site["A"]
        one.create_pool()
        one.create_group("g", {"v1": 8 * MIB, "v2": 8 * MIB})
        yield one


def order(controller: Controller, *words: str) -> Any:
    """Give an order with mgmtctl; returns its answer."""
    done = subprocess.run(
        [sys.executable, "-m", "mgmtctl", "--config", str(controller.client_file()), *words, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def connect(controller: Controller, volume: str) -> Any:
    handle = nbd.NBD()
    handle.connect_uri(controller.uri(volume))
    return handle


def test_rules_count_at_once_and_after_a_crash(controller: Controller) -> None:
    kept, lost = connect(controller, "v2"), connect(controller, "v1")
    lost.pwrite(b"acknowledged", 0)
    assert order(controller, "volume", "allow", "v1", "--to", "certificate=db1,read-only", "--to", "network=10.0.0.0/8")
    with pytest.raises(nbd.Error):
        lost.pread(1, 0)
    assert kept.pread(1, 0) == b"\0"
    controller.kill()
    controller.start()
    controller.wait_ready()
    with pytest.raises(nbd.Error):
        connect(controller, "v1")
    assert order(controller, "volume", "show", "v1")["allow"] == [
        {"network": None, "certificate": "db1", "read_only": True},
        {"network": "10.0.0.0/8", "certificate": None, "read_only": False},
    ]
    order(controller, "volume", "allow", "v1", "--to", "network=unix,read-only")
    reader = connect(controller, "v1")
    assert reader.is_read_only()
    assert reader.pread(12, 0) == b"acknowledged"
    order(controller, "volume", "allow", "v1", "--everyone")
    with pytest.raises(nbd.Error):
        reader.pread(1, 0)  # the session ends, so that the host learns that it may write
    connect(controller, "v1").pwrite(b"again", 0)


def test_connections_are_shown_counted_and_disconnected(controller: Controller) -> None:
    first, second = connect(controller, "v1"), connect(controller, "v1")
    first.pwrite(bytes(4096), 0)
    first.pread(512, 0)
    second.flush()
    second.set_strict_mode(0)
    with pytest.raises(nbd.Error):
        second.pread(10, 8 * MIB)
    shown = order(controller, "volume", "connections", "v1")
    assert [(one["peer"], one["requests"], one["errors"]) for one in shown] == [("unix", 2, 0), ("unix", 2, 1)]
    assert (shown[0]["bytes_written"], shown[0]["bytes_read"]) == (4096, 512)
    metrics = controller.metrics()
    assert metrics['remotecopy_nbd_requests_total{command="write",volume="v1"}'] == 1
    assert metrics['remotecopy_nbd_bytes_total{command="read",volume="v1"}'] == 512
    assert metrics['remotecopy_nbd_errors_total{command="read",volume="v1"}'] == 1
    assert metrics['remotecopy_nbd_connections{state="transmission"}'] == 2
    order(controller, "volume", "disconnect", "v1", str(shown[0]["id"]))
    with pytest.raises(nbd.Error):
        first.pread(1, 0)
    assert second.pread(1, 0) == b"\0"
    (left,) = order(controller, "volume", "connections")
    assert left["id"] == shown[1]["id"]
    second.shutdown()
    wait_for("the sessions to end", lambda: not order(controller, "volume", "connections"))
    after = controller.metrics()
    assert after['remotecopy_nbd_requests_total{command="write",volume="v1"}'] == 1, "counters outlive sessions"
    assert after["remotecopy_nbd_connections_accepted_total"] >= 2


def test_tls_of_the_configuration_with_names_and_new_files(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = "".join(
        f'{key} = "{tmp_path}/{name}.pem"\n'
        for key, name in (("certificate", "server-cert"), ("key", "server-key"), ("ca", "ca-cert"))
    )
    with Site(["A"], Settings(host_port=f'[nbd.tls]\nclient_certificates = "optional"\n{files}')) as site:
        site.start()
        controller = site["A"]
        controller.create_pool()
        controller.create_group("g", {"v1": 8 * MIB, "v2": 8 * MIB})
        order(controller, "volume", "allow", "v1", "--to", "network=unix,certificate=client")
        with pytest.raises(nbd.Error):
            connect(controller, "v2")
        bare = client_directory(tmp_path, tmp_path / "bare", "ca-cert")
        assert secure(controller, "v2", bare).pread(1, 0) == b"\0"
        with pytest.raises(nbd.Error):
            secure(controller, "v1", bare)
        known = secure(controller, "v1", tmp_path)
        (shown,) = order(controller, "volume", "connections", "v1")
        assert (shown["tls"], "client" in shown["certificate"]) == ("TLSv1.3", True)
        old = client_directory(tmp_path, tmp_path / "old", "ca-cert", "client-cert", "client-key")
        make_certificates(tmp_path)
        controller.reload()
        wait_for("the new certificates", lambda: "nbd-tls-reloaded" in controller.log.read_text())
        assert known.pread(1, 0) == b"\0"
        assert secure(controller, "v1", tmp_path).pread(1, 0) == b"\0"
        with pytest.raises(nbd.Error):
            secure(controller, "v2", old)  # no certificate would do, a wrong one does not
        controller.stop()


def secure(controller: Controller, volume: str, certificates: Path) -> Any:
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(str(certificates))
    handle.set_export_name(volume)
    handle.connect_unix(str(controller.directory / "nbd.sock"))
    return handle
