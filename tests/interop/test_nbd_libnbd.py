"""libnbd's Python module against the host port: every command, and the write-time context."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.interop.nbd_served import MIB, NbdServed

Connect = Callable[..., Any]
ALL_CHECKS_OFF = 0


@pytest.fixture
def connect(nbd_shared: NbdServed) -> Iterator[Connect]:
    """Return a function that opens a client; all are closed at the end."""
    handles: list[Any] = []

    def open_client(
        volume: str = "vol", *contexts: str, tcp: bool = False, strict: bool = True, structured: bool = True
    ) -> Any:
        handle = nbd.NBD()
        handle.set_request_structured_replies(structured)
        for context in contexts:
            handle.add_meta_context(context)
        if not strict:
            handle.set_strict_mode(ALL_CHECKS_OFF)
        handle.connect_uri(nbd_shared.tcp_uri(volume) if tcp else nbd_shared.uri(volume))
        handles.append(handle)
        return handle

    yield open_client
    for handle in handles:
        if not handle.aio_is_dead() and not handle.aio_is_closed():
            handle.shutdown()


def errno_of(call: Callable[[], object]) -> str:
    """Return the error name that a call fails with."""
    with pytest.raises(nbd.Error) as caught:
        call()
    return str(caught.value.errno)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_data_comes_back(connect: Connect, tcp: bool, structured: bool) -> None:
    handle = connect(tcp=tcp, structured=structured)
    for offset, length in ((0, 1), (4095, 2), (10_000, 123_457), (16 * MIB, 3 * MIB + 1), (64 * MIB - 512, 512)):
        data = os.urandom(length)
        handle.pwrite(data, offset)
        assert handle.pread(length, offset) == data


def test_largest_request_passes_and_a_larger_one_is_refused(connect: Connect) -> None:
    handle = connect(strict=False)
    data = os.urandom(MIB) * 32
    handle.pwrite(data, 5)
    assert handle.pread(len(data), 5) == data
    assert errno_of(lambda: handle.pwrite(data + b"x", 0)) == "EINVAL"
    assert handle.pread(10, 5) == data[:10]


def test_export_says_what_it_can(connect: Connect) -> None:
    handle = connect()
    for ability in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "df", "multi_conn"):
        assert getattr(handle, f"can_{ability}")(), ability
    assert not handle.is_read_only()
    assert not handle.is_rotational()
    sizes = [handle.get_block_size(kind) for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
    assert sizes == [1, 4096, 32 * MIB]
    assert connect("fixed").is_read_only()


def test_list_info_and_unknown_export(nbd_shared: NbdServed) -> None:
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_full_info(True)
    handle.connect_unix(str(nbd_shared.socket))
    found: dict[str, str] = {}
    handle.opt_list(found.__setitem__)
    assert found == {"vol": "for tests", "small": "", "fixed": ""}
    handle.set_export_name("vol")
    handle.opt_info()
    assert handle.get_size() == 64 * MIB
    assert handle.get_export_description() == "for tests"
    handle.set_export_name("nothing")
    assert errno_of(handle.opt_go) == "ENOENT"
    assert errno_of(handle.opt_info) == "ENOENT"
    handle.set_export_name("small")
    handle.opt_go()
    assert handle.get_size() == MIB
    handle.shutdown()


def test_zero_trim_cache_and_flags(connect: Connect) -> None:
    handle = connect()
    handle.pwrite(b"\xaa" * MIB, 0)
    handle.zero(100_000, 4096)
    handle.zero(65_536, 300_000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    handle.zero(65_536, 400_000, nbd.CMD_FLAG_FAST_ZERO)
    handle.trim(65_536, 600_000, nbd.CMD_FLAG_FUA)
    handle.cache(MIB, 0)
    handle.pwrite(b"f", 0, nbd.CMD_FLAG_FUA)
    handle.flush()
    expected = bytearray(b"\xaa" * MIB)
    expected[0] = ord("f")
    for offset, length in ((4096, 100_000), (300_000, 65_536), (400_000, 65_536), (600_000, 65_536)):
        expected[offset : offset + length] = bytes(length)
    assert handle.pread(MIB, 0) == expected


def test_errors_are_those_of_the_protocol(connect: Connect) -> None:
    handle = connect(strict=False)
    end = 64 * MIB
    assert errno_of(lambda: handle.pwrite(b"xx", end - 1)) == "ENOSPC"
    assert errno_of(lambda: handle.zero(2, end - 1)) == "ENOSPC"
    assert errno_of(lambda: handle.pread(2, end - 1)) == "EINVAL"
    assert errno_of(lambda: handle.trim(2, end - 1)) == "EINVAL"
    assert errno_of(lambda: handle.cache(2, end - 1)) == "EINVAL"
    assert errno_of(lambda: handle.block_status(512, 0, lambda *_: 0)) == "EINVAL"
    fixed = connect("fixed", strict=False)
    for call in (lambda: fixed.pwrite(b"x", 0), lambda: fixed.zero(1, 0), lambda: fixed.trim(1, 0)):
        assert errno_of(call) == "EPERM"
    assert fixed.pread(512, 0) == bytes(512)


def test_structured_read_and_unfragmented_read(connect: Connect) -> None:
    handle = connect()
    data = os.urandom(3 * MIB)
    handle.pwrite(data, 7)
    for flags, most in ((0, 100), (nbd.CMD_FLAG_DF, 1)):
        chunks: list[tuple[int, bytes]] = []

        def keep(chunk: Any, offset: int, status: int, error: object, into: list[tuple[int, bytes]] = chunks) -> None:
            assert status == nbd.READ_DATA
            into.append((offset, bytes(chunk)))

        assert handle.pread_structured(3 * MIB, 7, keep, flags) == data
        assert len(chunks) <= most
        assert b"".join(chunk for _, chunk in sorted(chunks)) == data


def test_allocation_follows_writes_and_trims(connect: Connect) -> None:
    handle = connect("small", "base:allocation")
    handle.trim(MIB, 0)
    handle.pwrite(b"x", 200_000)
    found: list[int] = []

    def keep(context: str, offset: int, entries: list[int], error: object) -> None:
        assert context == "base:allocation"
        assert offset == 0
        found.extend(entries)

    handle.block_status(MIB, 0, keep)
    assert sum(found[::2]) == MIB
    assert found == [196_608, 3, 65_536, 0, MIB - 262_144, 3]
    found.clear()
    handle.block_status(MIB, 0, keep, nbd.CMD_FLAG_REQ_ONE)
    assert found == [196_608, 3]


# ---- write times ------------------------------------------------------------------------------


def test_write_time_context_changes_the_payload(connect: Connect) -> None:
    timed = connect("vol", "remotecopy:write-time", strict=False)
    assert timed.can_meta_context("remotecopy:write-time")
    now = time.time_ns()
    timed.pwrite(struct.pack(">Q", now) + b"data of a mainframe host", 4096)
    timed.pwrite(struct.pack(">Q", now + 1) + b"m" * (3 * MIB), 8192, nbd.CMD_FLAG_FUA)
    timed.pwrite(struct.pack(">Q", now + 2) + b"last", 64 * MIB - 4)
    assert errno_of(lambda: timed.pwrite(struct.pack(">Q", now), 0)) == "EINVAL"
    assert errno_of(lambda: timed.pwrite(b"short", 0)) == "EINVAL"
    assert errno_of(lambda: timed.pwrite(struct.pack(">Q", now) + b"12345", 64 * MIB - 4)) == "ENOSPC"
    plain = connect()
    assert not plain.can_meta_context("remotecopy:write-time")
    assert plain.pread(24, 4096) == b"data of a mainframe host"
    assert plain.pread(3 * MIB, 8192) == b"m" * (3 * MIB)
    assert plain.pread(4, 64 * MIB - 4) == b"last"


def test_write_time_context_reports_nothing_about_blocks(connect: Connect) -> None:
    handle = connect("small", "remotecopy:write-time", "base:allocation")
    found: dict[str, list[int]] = {}
    handle.block_status(MIB, 0, lambda context, _offset, entries, _error: found.__setitem__(context, entries))
    assert found["remotecopy:write-time"] == [MIB, 0]
    assert sum(found["base:allocation"][::2]) == MIB


# ---- sizes ---------------------------------------------------------------------------------------


def test_requests_are_as_long_as_configured(tmp_path: Path) -> None:
    served = NbdServed(tmp_path, "--max-request-mib", "64", "--cache-mib", "32")
    handle = nbd.NBD()
    handle.set_strict_mode(ALL_CHECKS_OFF)
    handle.connect_uri(served.uri())
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 64 * MIB
    data = os.urandom(MIB) * 64
    handle.pwrite(data, 0, nbd.CMD_FLAG_FUA)
    assert handle.pread(len(data), 0) == data
    assert handle.pread(len(data) - 1, 1, nbd.CMD_FLAG_DF) == data[1:]
    handle.shutdown()
    served.stop()


def test_new_connections_see_the_new_size_of_a_volume(nbd_own: NbdServed) -> None:
    def connect() -> Any:
        handle = nbd.NBD()
        handle.set_strict_mode(ALL_CHECKS_OFF)
        handle.connect_uri(nbd_own.uri("small"))
        return handle

    before = connect()
    assert before.get_size() == MIB
    nbd_own.grow_small()
    deadline = time.monotonic() + 20
    while (after := connect()).get_size() == MIB:
        after.shutdown()
        assert time.monotonic() < deadline
    assert after.get_size() == 2 * MIB
    after.pwrite(b"new part", 2 * MIB - 8)
    before.pwrite(b"old part", MIB - 8)
    assert errno_of(lambda: before.pwrite(b"x", MIB)) == "ENOSPC"
    assert errno_of(lambda: before.pread(1, MIB)) == "EINVAL"
    assert after.pread(16, MIB - 8) == b"old part" + bytes(8)
    after.flush()
    nbd_own.kill()
    nbd_own.restart()
    again = connect()
    assert again.get_size() == 2 * MIB
    assert again.pread(8, 2 * MIB - 8) == b"new part"
    again.shutdown()


# ---- many at once ------------------------------------------------------------------------------------


def test_a_thousand_requests_in_flight(connect: Connect) -> None:
    handle = connect()
    blocks = [bytes([n % 255 + 1]) * 4096 for n in range(1000)]
    cookies = [
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)), n * 4096) for n, block in enumerate(blocks)
    ]
    while handle.aio_in_flight():
        handle.poll(-1)
    for cookie in cookies:
        assert handle.aio_command_completed(cookie)
    buffers = [nbd.Buffer(4096) for _ in blocks]
    cookies = [handle.aio_pread(buffer, n * 4096) for n, buffer in enumerate(buffers)]
    while handle.aio_in_flight():
        handle.poll(-1)
    for cookie in cookies:
        assert handle.aio_command_completed(cookie)
    assert [bytes(buffer.to_bytearray()) for buffer in buffers] == blocks


def test_connections_share_one_volume_and_flush_covers_all(connect: Connect) -> None:
    clients = [connect(tcp=bool(n % 2)) for n in range(4)]
    for n, handle in enumerate(clients):
        handle.pwrite(bytes([n + 1]) * 4096, n * 4096)
    clients[0].flush()
    for handle in clients:
        assert handle.pread(4 * 4096, 0) == b"".join(bytes([n + 1]) * 4096 for n in range(4))


def test_flushed_writes_survive_a_crash_and_the_client_reconnects(nbd_own: NbdServed) -> None:
    handle = nbd.NBD()
    handle.connect_uri(nbd_own.uri())
    data = os.urandom(2 * MIB)
    handle.pwrite(data, 12_345)
    handle.pwrite(b"fua", 0, nbd.CMD_FLAG_FUA)
    handle.flush()
    nbd_own.kill()
    nbd_own.restart()
    again = nbd.NBD()
    again.connect_uri(nbd_own.uri())
    assert again.pread(len(data), 12_345) == data
    assert again.pread(3, 0) == b"fua"
    again.shutdown()


def test_stop_with_a_client_connected_is_orderly(nbd_own: NbdServed) -> None:
    handle = nbd.NBD()
    handle.connect_uri(nbd_own.uri())
    handle.pwrite(b"x" * 4096, 0)
    nbd_own.stop()
    with pytest.raises(nbd.Error):
        handle.pread(10, 0)
