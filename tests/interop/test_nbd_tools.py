"""The command line clients that people use: nbdinfo, nbdcopy, nbdfuse, qemu-img, qemu-io, fio."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.interop.nbd_served import MIB, NbdServed, run_tool


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a 64 MiB image with data, and holes between it."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        for offset, length in ((0, MIB), (5 * MIB + 100, 777_777), (40 * MIB, 8 * MIB), (64 * MIB - 4096, 4096)):
            file.seek(offset)
            file.write(os.urandom(length))
    return path


def test_nbdinfo_shows_the_volume(nbd_shared: NbdServed) -> None:
    for uri in (nbd_shared.uri(), nbd_shared.tcp_uri(), nbd_shared.uri("")):
        shown = json.loads(run_tool("nbdinfo", "--json", uri))
        assert shown["protocol"] == "newstyle-fixed"
        (export,) = shown["exports"]
        assert export["export-size"] == 64 * MIB
        assert export["contexts"] == ["base:allocation", "remotecopy:write-time"]
        assert export["can_multi_conn"]
    listed = json.loads(run_tool("nbdinfo", "--json", "--list", nbd_shared.uri("")))
    assert [export["export-name"] for export in listed["exports"]] == ["vol", "small", "fixed"]
    assert subprocess.run(["nbdinfo", nbd_shared.uri("nothing")], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("connections", ["1", "4"])
def test_nbdcopy_both_ways(nbd_shared: NbdServed, image: Path, tmp_path: Path, connections: str) -> None:
    back = tmp_path / "back"
    run_tool("nbdcopy", "--flush", f"--connections={connections}", str(image), nbd_shared.uri())
    run_tool("nbdcopy", f"--connections={connections}", nbd_shared.tcp_uri(), str(back))
    assert back.read_bytes() == image.read_bytes()


def test_qemu_img_converts_compares_and_maps(nbd_shared: NbdServed, image: Path, tmp_path: Path) -> None:
    run_tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", str(image), nbd_shared.uri())
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), nbd_shared.uri())
    back = tmp_path / "back.qcow2"
    run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", nbd_shared.tcp_uri(), str(back))
    run_tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(image), str(back))
    run_tool("qemu-img", "check", str(back))
    run_tool("qemu-io", "-f", "raw", "-c", "discard 10M 10M", nbd_shared.uri())
    extents = json.loads(run_tool("qemu-img", "map", "--output=json", "-f", "raw", nbd_shared.uri()))
    assert sum(extent["length"] for extent in extents) == 64 * MIB
    assert any(extent["zero"] and not extent["data"] and extent["length"] >= 8 * MIB for extent in extents)


def test_qcow2_inside_a_volume(nbd_shared: NbdServed) -> None:
    uri = nbd_shared.uri()
    run_tool("qemu-img", "create", "-f", "qcow2", uri, "32M")
    run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 3M", "-c", "flush", "-c", "discard 2M 64k", uri)
    run_tool("qemu-io", "-f", "qcow2", "-c", "read -P 5 1M 1M", "-c", "read -P 0 10M 1M", uri)
    run_tool("qemu-img", "check", "-f", "qcow2", uri)


def test_qemu_io_patterns(nbd_shared: NbdServed) -> None:
    orders = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 512 512",
        "write -z 8192 4096",
        "write -z -u 65536 65536",
        "flush",
        "discard 262144 65536",
        "read -P 0x22 512 512",
        "read -P 0 8192 4096",
        "read -P 0 65536 65536",
        "read -P 0x11 131072 131072",
        "aio_write -P 0x33 2M 4M",
        "aio_write -P 0x44 8M 64k",
        "aio_flush",
        "read -P 0x33 2M 4M",
        "read -P 0x44 8M 64k",
    ]
    arguments = [part for order in orders for part in ("-c", order)]
    shown = run_tool("qemu-io", "-f", "raw", *arguments, nbd_shared.uri())
    assert "Pattern verification failed" not in shown
    assert "error" not in shown


def test_qemu_io_is_refused_on_a_read_only_volume(nbd_shared: NbdServed) -> None:
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", nbd_shared.uri("fixed")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    run_tool("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", nbd_shared.uri("fixed"))


@pytest.mark.parametrize("bs", ["4k", "700-9000"])
def test_fio_verifies_what_it_wrote(nbd_shared: NbdServed, tmp_path: Path, bs: str) -> None:
    """Random writes at depth with checksums, read back in the same run; `destage` goes on meanwhile."""
    size_option = f"--bsrange={bs}" if "-" in bs else f"--bs={bs}"
    run_tool(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={nbd_shared.uri()}", "--rw=randwrite", size_option,
        "--bs_unaligned", "--iodepth=16", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
        "--verify_state_save=0", f"--aux-path={tmp_path}", "--randseed=3",
    )  # fmt: skip


def test_nbdfuse_gives_a_file(nbd_shared: NbdServed, tmp_path: Path) -> None:
    mountpoint = tmp_path / "volume"
    mountpoint.touch()
    data = os.urandom(3 * MIB)
    with subprocess.Popen(["nbdfuse", str(mountpoint), nbd_shared.uri()]) as fuse:
        try:
            deadline = time.monotonic() + 30
            while not mountpoint.stat().st_size:
                assert fuse.poll() is None, "nbdfuse ended"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with mountpoint.open("r+b", buffering=0) as file:
                file.seek(10_000)
                assert file.write(data) == len(data)
                os.fsync(file.fileno())
            with mountpoint.open("rb") as file:
                file.seek(10_000)
                assert file.read(len(data)) == data
        finally:
            fuse.terminate()  # it unmounts
