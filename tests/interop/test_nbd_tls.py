"""TLS on the host port, with libnbd's implementation (GnuTLS) on the other side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.interop.nbd_served import MIB, NbdServed, receive, run_tool, wait_for
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request


def make_certificates(directory: Path) -> None:
    """Make a certificate authority, a server's and a client's certificate with the names libnbd looks for."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority",
        "-keyout", "ca-key.pem", "-out", "ca-cert.pem",
    )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem",
            "-out", f"{name}.csr",
        )  # fmt: skip
        (directory / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", f"{name}-cert.pem",
        )  # fmt: skip


def client_directory(certificates: Path, directory: Path, *files: str) -> Path:
    """Return a new directory with some of the certificates."""
    directory.mkdir()
    for name in files:
        (directory / f"{name}.pem").write_bytes((certificates / f"{name}.pem").read_bytes())
    return directory


def tls_uri(served: NbdServed, certificates: Path, volume: str = "vol") -> str:
    """Return the URI of a volume over TLS, for libnbd's tools."""
    return f"nbds://localhost:{served.port}/{volume}?tls-certificates={certificates}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of certificates."""
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
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


@pytest.mark.parametrize("served", [["--tls", "require", "--client-certificates", "required"]], indirect=True)
def test_client_without_certificate_is_refused(served: NbdServed, certificates: Path, tmp_path: Path) -> None:
    secure(served, certificates).shutdown()
    bare = client_directory(certificates, tmp_path / "bare", "ca-cert")
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


def qemu_img(served: NbdServed, certificates: Path, order: str, *arguments: str) -> str:
    """Run qemu-img on ``vol`` over TLS."""
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates},verify-peer=on"
    image = f"driver=nbd,host=localhost,port={served.port},export=vol,tls-creds=tls0"
    return run_tool("qemu-img", order, "--object", credentials, "--image-opts", *arguments, image)


@pytest.mark.parametrize(
    "served", [["--tls", "require"], ["--tls", "require", "--client-certificates", "required"]], indirect=True
)
def test_tools_over_tls(served: NbdServed, certificates: Path, tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.mkdir()
    for name in ("ca-cert", "client-cert", "client-key"):
        (qemu / f"{name}.pem").write_bytes((certificates / f"{name}.pem").read_bytes())
    uri = tls_uri(served, certificates)
    described = json.loads(run_tool("nbdinfo", "--json", uri))
    assert described["TLS"] is True
    assert [export["export-name"] for export in described["exports"]] == ["vol"]
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(8 * MIB) + bytes(48 * MIB) + os.urandom(8 * MIB))
    run_tool("nbdcopy", "--flush", str(source), uri)
    run_tool("nbdcopy", uri, str(copy))
    assert copy.read_bytes() == source.read_bytes()
    assert "virtual size: 64 MiB" in qemu_img(served, qemu, "info")
    assert json.loads(qemu_img(served, qemu, "map", "--output=json"))
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_plain_tools_are_told_that_tls_is_required(served: NbdServed) -> None:
    for arguments in (
        ("nbdinfo", served.tcp_uri()),
        ("nbdinfo", "--list", served.tcp_uri("")),
        ("qemu-img", "info", served.tcp_uri()),
        ("nbdcopy", served.tcp_uri(), "null:"),
    ):
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        for secret in ("small", "64 MiB", "67108864", "for tests"):
            assert secret not in done.stdout + done.stderr
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_every_option_but_starttls_and_abort_is_refused_before_tls(served: NbdServed) -> None:
    for option in (*range(1, 12), 99):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
            data = client.go("vol", number=option) if option in (client.INFO, client.GO) else client.option(option)
            sock.sendall(struct.pack(">I", 3) + data)
            assert len(receive(sock, 18)) == 18
            if option == client.EXPORT_NAME:
                assert sock.recv(100) == b""  # it has no error reply
                continue
            _, _, kind, _ = struct.unpack(">QIII", receive(sock, 20))
            expected = client.ACK if option in (client.STARTTLS, client.ABORT) else client.TLS_REQD
            assert kind == expected, option
    served.stop()


class Stripper:
    """Someone between client and server who says that the server knows no TLS, and passes everything else on."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.passed = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        host, _ = self._listener.accept()
        with host, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            host.settimeout(20)
            server.settimeout(20)
            host.sendall(receive(server, 18))
            server.sendall(receive(host, 4))
            while True:
                head = receive(host, 16)
                _, option, length = struct.unpack(">8sII", head)
                data = receive(host, length)
                if option == client.STARTTLS:
                    host.sendall(struct.pack(">QIII", 0x3E889045565A9, option, client.UNSUP, 0))
                    continue
                server.sendall(head + data)
                answer = receive(server, 20)
                answer += receive(server, struct.unpack_from(">I", answer, 16)[0])
                self.passed += answer
                host.sendall(answer)

    def close(self) -> None:
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_stripped_starttls_gives_nothing_away(served: NbdServed, certificates: Path) -> None:
    for level in (nbd.TLS_REQUIRE, nbd.TLS_ALLOW):
        stripper = Stripper(served.port)
        handle = nbd.NBD()
        handle.set_tls(level)
        handle.set_tls_certificates(str(certificates))
        handle.set_export_name("vol")
        with pytest.raises(nbd.Error):
            handle.connect_tcp("localhost", str(stripper.port))
        del handle
        stripper.close()
        assert b"for tests" not in stripper.passed
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_options_injected_behind_starttls_do_not_count(served: NbdServed) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.sendall(struct.pack(">I", 3) + client.option(client.STARTTLS) + client.go("vol"))
        receive(sock, 18)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1000) == b""
    wait_for(lambda: "without waiting" in served.events())
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require", "--handshake-timeout", "1.5"]], indirect=True)
def test_tls_that_stalls_is_ended_and_leaves_nothing(served: NbdServed, certificates: Path) -> None:
    files = served.open_files()
    with contextlib.ExitStack() as stack:
        for sent in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            sock.sendall(struct.pack(">I", 3) + client.option(client.STARTTLS))
            receive(sock, 38)
            sock.sendall(sent)
        wait_for(lambda: served.events().count("handshake took too long") == 3)
        wait_for(lambda: served.open_files() == files)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
            sock.sendall(struct.pack(">I", 3) + client.option(client.STARTTLS))
            receive(sock, 38)
    wait_for(lambda: served.open_files() == files)
    secure(served, certificates).shutdown()
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_connections_over_tls_leave_nothing_behind(served: NbdServed, certificates: Path) -> None:
    first = 0
    for turn in range(3):
        for _ in range(30):
            handle = secure(served, certificates)
            handle.aio_pread(nbd.Buffer(MIB), 0)
            del handle  # without a word, and with an answer under way
        wait_for(lambda turn=turn: served.events().count("nbd-session-closed") == 30 * (turn + 1))  # type: ignore[misc]
        if turn == 0:
            first = served.resident()
    assert served.resident() - first < 8 * MIB
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require", "--client-certificates", "required"]], indirect=True)
def test_new_files_are_taken_into_use_without_a_restart(served: NbdServed, certificates: Path, tmp_path: Path) -> None:
    before = secure(served, certificates)
    renewed = tmp_path / "renewed"
    renewed.mkdir()
    make_certificates(renewed)
    with pytest.raises(nbd.Error):
        secure(served, renewed)
    key = (served.directory / "server-key.pem").read_bytes()
    (served.directory / "server-key.pem").write_bytes(b"half a file")
    served.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "nbd-tls-reload-failed" in served.events())
    secure(served, certificates).shutdown()  # what was there goes on
    (served.directory / "server-key.pem").write_bytes(key)
    for name in ("ca-cert", "server-cert", "server-key"):
        (served.directory / f"{name}.pem").write_bytes((renewed / f"{name}.pem").read_bytes())
    served.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "nbd-tls-reloaded" in served.events())
    secure(served, renewed).shutdown()
    with pytest.raises(nbd.Error):
        secure(served, certificates)
    assert before.pread(512, 0) == bytes(512)
    before.shutdown()
    served.stop()


def raw_tls(served: NbdServed) -> ssl.SSLSocket:
    """Return a TLS client without libnbd, with ``vol`` open."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    sock.sendall(struct.pack(">I", 3) + client.option(client.STARTTLS))
    receive(sock, 38)
    context = ssl.create_default_context(cafile=served.directory / "ca-cert.pem")
    secured = context.wrap_socket(sock, server_hostname="localhost")
    secured.sendall(client.option(client.EXPORT_NAME, b"vol"))
    receive(secured, 10)
    return secured


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_stuck_client_over_tls_takes_bounded_memory(served: NbdServed, certificates: Path) -> None:
    handle = secure(served, certificates)
    before = served.resident()
    with raw_tls(served) as stuck:
        stuck.sendall(b"".join(request(client.READ, n, 0, 32 * MIB) for n in range(1000)))
        for _ in range(20):
            assert handle.pread(4096, 0) == bytes(4096)
            time.sleep(0.05)
        assert served.resident() - before < 128 * MIB
    handle.shutdown()
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require"]], indirect=True)
def test_memory_of_stuck_clients_over_tls_comes_back(served: NbdServed, certificates: Path) -> None:
    before = served.resident()
    for turn in range(1, 7):
        for _ in range(2):
            with raw_tls(served) as stuck:
                stuck.sendall(b"".join(request(client.READ, n, 0, 32 * MIB) for n in range(10)))
                assert len(receive(stuck, 16)) == 16
        wait_for(lambda turn=turn: served.events().count("nbd-session-closed") == 2 * turn)  # type: ignore[misc]
    assert served.resident() - before < 200 * MIB
    secure(served, certificates).shutdown()
    served.stop()


@pytest.mark.parametrize("served", [["--tls", "require", "--idle-timeout", "1"]], indirect=True)
def test_idle_clients_over_tls_are_closed(served: NbdServed, certificates: Path) -> None:
    idle = secure(served, certificates)
    with raw_tls(served) as stuck, raw_tls(served) as silent:
        stuck.sendall(b"".join(request(client.READ, n, 0, 32 * MIB) for n in range(10)))
        wait_for(lambda: served.events().count("idle for 1 s") == 3)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert silent.recv(1) == b""
    with pytest.raises(nbd.Error):
        idle.pread(1, 0)
    served.stop()
