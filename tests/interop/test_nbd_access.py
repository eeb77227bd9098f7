"""Who may open a volume, as real clients see it: from other addresses, other networks, and with certificates."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.interop.nbd_served import MIB, NbdServed, run_tool, wait_for
from tests.interop.test_nbd_tls import client_directory, make_certificates


def serve(directory: Path, rules: dict[str, list[dict[str, Any]]], *arguments: str) -> NbdServed:
    """Start a server with rules for some volumes."""
    options = [part for name, documents in rules.items() for part in ("--allow", f"{name}={json.dumps(documents)}")]
    return NbdServed(directory, *arguments, *options)


@contextlib.contextmanager
def ended(served: NbdServed) -> Iterator[NbdServed]:
    """End the server, in order if the test was good."""
    try:
        yield served
        served.stop()
    finally:
        if served.process.poll() is None:
            served.kill()


def coming_from(address: str, served: NbdServed) -> Any:
    """Return a client that comes from ``address``, in option mode."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20, source_address=(address, 0))
    sock.settimeout(None)
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_socket(sock.detach())
    return handle


def names(handle: Any) -> list[str]:
    """Return what a client is shown."""
    found: list[str] = []

    def take(name: str, _description: str) -> None:
        found.append(name)

    handle.opt_list(take)
    return sorted(found)


def opened(handle: Any, volume: str) -> Any:
    """Return the client in its transmission phase."""
    handle.set_export_name(volume)
    handle.opt_go()
    return handle


def test_address_decides_what_exists(tmp_path: Path) -> None:
    rules: dict[str, list[dict[str, Any]]] = {
        "vol": [{"network": "127.0.0.2"}, {"network": "127.0.0.64/26", "read_only": True}],
        "small": [{"network": "unix"}],
    }
    with ended(serve(tmp_path, rules)) as served:
        assert names(coming_from("127.0.0.2", served)) == ["fixed", "vol"]
        assert names(coming_from("127.0.0.70", served)) == ["fixed", "vol"]
        stranger = coming_from("127.0.0.3", served)
        assert names(stranger) == ["fixed"]
        refusals = []
        for volume in ("vol", "gone"):
            stranger.set_export_name(volume)
            for ask in (stranger.opt_info, stranger.opt_go):
                with pytest.raises(nbd.Error) as refused:
                    ask()
                refusals.append((refused.value.errnum, str(refused.value).replace(volume, "")))
        assert refusals[:2] == refusals[2:], "a volume that is refused answers as one that is not there"
        writer = opened(coming_from("127.0.0.2", served), "vol")
        writer.pwrite(b"written", 0)
        reader = opened(coming_from("127.0.0.70", served), "vol")
        assert reader.is_read_only()
        assert not writer.is_read_only()
        assert reader.pread(7, 0) == b"written"
        reader.set_strict_mode(0)
        for order, *arguments in ((reader.pwrite, b"x", 0), (reader.trim, 4096, 0), (reader.zero, 4096, 0)):
            with pytest.raises(nbd.Error) as refused:
                order(*arguments)
            assert refused.value.errno == "EPERM"
        assert writer.pread(7, 0) == b"written"
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        handle.connect_unix(str(served.socket))
        assert names(handle) == ["fixed", "small"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of certificates, the client's with the names "client", "localhost" and "127.0.0.1"."""
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


def test_certificate_name_decides_what_exists(tmp_path: Path, certificates: Path) -> None:
    data = client_directory(certificates, tmp_path / "data", "ca-cert", "server-cert", "server-key")
    bare = client_directory(certificates, tmp_path / "bare", "ca-cert")
    rules = {
        "vol": [{"certificate": "CLIENT"}],
        "small": [{"certificate": "localhost", "network": "unix"}],
        "fixed": [{"certificate": "somebody else"}],
    }
    with ended(serve(data, rules, "--tls", "allow", "--client-certificates", "optional")) as served:
        for directory, volumes in ((certificates, ["vol"]), (bare, [])):
            listed = run_tool(
                "nbdinfo", "--list", "--json", f"nbds://localhost:{served.port}?tls-certificates={directory}"
            )
            assert [export["export-name"] for export in json.loads(listed)["exports"]] == volumes
        assert names(coming_from("127.0.0.1", served)) == []
        with pytest.raises(nbd.Error):
            opened(coming_from("127.0.0.1", served), "vol")
        events = served.events()
    assert events.count("nbd-session-opened") == 0


_WRITE_AND_WAIT = "import nbd, sys, time; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b'x', 0); time.sleep(100)"


class Namespace:
    """A network of its own, with a way to this one."""

    def __init__(self, number: int) -> None:
        self.name = f"rc{os.getpid()}-{number}"
        base = (os.getpid() * 4 + number) % 8192 * 8
        self.here, self.there = (f"198.18.{base >> 8 & 255}.{(base & 255) + last}" for last in (1, 2))
        host, guest = f"v{os.getpid()}a{number}", f"v{os.getpid()}b{number}"
        self._ip("netns", "add", self.name)
        self._ip("link", "add", host, "type", "veth", "peer", "name", guest, "netns", self.name)
        self._ip("address", "add", f"{self.here}/30", "dev", host)
        self._ip("link", "set", host, "up")
        self._ip("-netns", self.name, "address", "add", f"{self.there}/30", "dev", guest)
        self._ip("-netns", self.name, "link", "set", guest, "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        run_tool("ip", *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a client there."""
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    def close(self) -> None:
        """Forget it, with its way here."""
        self._ip("netns", "delete", self.name)


@pytest.mark.skipif(os.geteuid() != 0, reason="networks are made by root only")
def test_tools_in_other_networks(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        near, far = Namespace(0), Namespace(1)
        for namespace in (near, far):
            stack.callback(namespace.close)
        rules = {"vol": [{"network": near.there}], "small": [{"network": "unix"}]}
        served = stack.enter_context(ended(serve(tmp_path, rules, "--host", "0.0.0.0")))
        source = tmp_path / "source"
        source.write_bytes(os.urandom(4 * MIB) + bytes(60 * MIB))
        uris = {one: f"nbd://{one.here}:{served.port}/vol" for one in (near, far)}
        for arguments in (
            ("nbdcopy", "--flush", str(source), uris[near]),
            ("nbdinfo", uris[near]),
            ("qemu-img", "compare", str(source), "-f", "raw", "-F", "raw", uris[near]),
        ):
            done = near.run(*arguments)
            assert done.returncode == 0, done.stderr
        for tool, *words in (("nbdcopy", str(source)), ("nbdinfo",), ("qemu-img", "info")):
            assert far.run(tool, *words, uris[far]).returncode != 0, tool
        listed = json.loads(far.run("nbdinfo", "--list", "--json", f"nbd://{far.here}:{served.port}").stdout)
        assert [export["export-name"] for export in listed["exports"]] == ["fixed"]


@pytest.mark.skipif(os.geteuid() != 0, reason="networks are made by root only")
def test_host_whose_network_fails_does_not_keep_its_place_for_ever(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        namespace = Namespace(2)
        served = stack.enter_context(ended(serve(tmp_path, {}, "--host", "0.0.0.0", "--idle-timeout", "2")))
        try:
            host = subprocess.Popen(
                ["ip", "netns", "exec", namespace.name, sys.executable, "-c", _WRITE_AND_WAIT,
                 f"nbd://{namespace.here}:{served.port}/vol"],
            )  # fmt: skip
            stack.callback(host.wait)
            stack.callback(host.kill)
            wait_for(lambda: "nbd-session-opened" in served.events())
        finally:
            namespace.close()  # the host still lives there; nothing it sends arrives
        wait_for(lambda: "idle for 2 s" in served.events())
