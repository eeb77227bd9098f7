"""TLS on the host port, with libnbd's implementation (GnuTLS) on the other side."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.certificates import Authority
from tests.interop.nbd_served import MIB, NbdServed, run_tool


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of certificates."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    for name in ("server", "client"):
        authority.issue(name, "DNS:localhost,IP:127.0.0.1")
    return directory


@pytest.fixture
def served(tmp_path: Path, certificates: Path, request: pytest.FixtureRequest) -> Iterator[NbdServed]:
    """A server with TLS; the test's parameter gives its mode and options."""
    for path in certificates.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    server = NbdServed(tmp_path, *request.param)
    yield server
    if server.process.poll() is None:
        server.kill()


def secure(served: NbdServed, certificates: Path | None) -> Any:
    """Return a client that insists on TLS."""
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    if certificates is not None:
        handle.set_tls_certificates(str(certificates))
    handle.set_export_name("vol")
    handle.connect_tcp("localhost", str(served.port))
    return handle


@pytest.mark.parametrize("served", [["--tls", "require"], ["--tls", "allow"]], indirect=True)
def test_data_over_tls(served: NbdServed, certificates: Path) -> None:
    handle = secure(served, certificates)
    assert handle.get_tls_negotiated()
    for length in (1, 4096, 100_000, 5 * MIB):
        data = os.urandom(length)
        handle.pwrite(data, 777)
        assert handle.pread(length, 777) == data
    handle.flush()
    handle.shutdown()
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_required_tls_gives_nothing_away_in_clear(served: NbdServed) -> None:
    plain = nbd.NBD()
    plain.set_opt_mode(True)
    plain.connect_unix(str(served.socket))
    with pytest.raises(nbd.Error):
        plain.opt_list(lambda *_: 0)
    for name in ("vol", "nothing"):
        plain.set_export_name(name)
        with pytest.raises(nbd.Error):
            plain.opt_go()
    plain.opt_abort()


@pytest.mark.parametrize("served", [["--tls", "allow"]], indirect=True)
def test_allowed_tls_leaves_the_choice(served: NbdServed, certificates: Path) -> None:
    run_tool("nbdinfo", served.tcp_uri())
    secure(served, certificates).shutdown()


@pytest.mark.parametrize("served", [["--tls", "require", "--client-certificates"]], indirect=True)
def test_client_without_certificate_is_refused(served: NbdServed, certificates: Path, tmp_path: Path) -> None:
    secure(served, certificates).shutdown()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    with pytest.raises(nbd.Error):
        secure(served, bare).pread(512, 0)
    secure(served, certificates).shutdown()
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_nonsense_instead_of_tls_is_closed(served: NbdServed, certificates: Path) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.recv(18)
        sock.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 5, 0))
        assert len(sock.recv(20)) == 20
        sock.sendall(b"this is not TLS at all" * 10)
        while sock.recv(1000):
            pass
    secure(served, certificates).shutdown()
    served.stop()
