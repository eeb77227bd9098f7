"""Every command, every error."""

from __future__ import annotations

import struct

import pytest

from controllerd.model.errors import (
    BadOrder,
    DiskFailed,
    JournalFailed,
    NoSpace,
    ReadOnly,
    RemoteCopyError,
)
from controllerd.targets.nbd.contexts import ALLOCATION, WRITE_TIME
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.settings import MIB
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.fake_storage import FakeVolume
from tests.unit.targets.nbd.host import PATTERN, Host

# ---- errors ------------------------------------------------------------


def test_writes_beyond_the_end_have_no_space(host: Host) -> None:
    size = host.volume.size
    assert host.one(request(client.WRITE, 1, size - 10, data=b"x" * 11)).error == client.ENOSPC
    assert host.one(request(client.ZEROES, 1, size, 1)).error == client.ENOSPC
    assert host.one(request(client.TRIM, 1, size, 1)).error == client.EINVAL
    assert host.one(request(client.CACHE, 1, size, 1)).error == client.EINVAL
    assert host.group.last_seq == 0
    assert host.one(request(client.WRITE, 2, size - 10, data=b"x" * 10)).error == 0


@pytest.mark.parametrize("beyond", [0, 1 << 30])
def test_read_only_volume_refuses_changes_wherever_they_are(host: Host, beyond: int) -> None:
    host.volume.writable = False
    for command, data in ((client.WRITE, b"x" * 512), (client.ZEROES, b""), (client.TRIM, b"")):
        reply = host.one(request(command, 1, beyond, data=data) if data else request(command, 1, beyond, 512))
        assert reply.error == client.EPERM
    assert host.read(0, 512).error == 0


def test_volume_can_become_writable_during_a_session(host: Host) -> None:
    host.volume.writable = False
    assert host.one(request(client.WRITE, 1, data=b"x")).error == client.EPERM
    host.volume.writable = True
    assert host.one(request(client.WRITE, 1, data=b"x")).error == 0


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (NoSpace("pool is full"), client.ENOSPC),
        (ReadOnly("secondary"), client.EPERM),
        (JournalFailed("gone"), client.EIO),
        (BadOrder("bad"), client.EINVAL),
        (RemoteCopyError("any"), client.EIO),
    ],
)
def test_errors_of_storage_become_nbd_errors(host: Host, error: RemoteCopyError, errno: int) -> None:
    host.group.stage_error = error
    replies = host.send(
        request(client.WRITE, 1, 0, data=b"x" * 512),
        request(client.WRITE, 2, 0, data=b"x" * 512, flags=client.FUA),
        request(client.TRIM, 3, 0, 512),
        request(client.WRITE, 4, 0, data=b"x" * 100_000),
    )
    assert {cookie: reply.error for cookie, reply in replies.items()} == dict.fromkeys((1, 2, 3, 4), errno)
    if host.replies.structured:
        assert replies[1].text == str(error)


def test_failed_commit_fails_all_writes_of_the_pass_and_no_reads(host: Host) -> None:
    host.group.commit_error = JournalFailed("gone")
    host.replies.reads = {3: 10}
    replies = host.send(
        request(client.WRITE, 1, 0, data=b"x"),
        request(client.WRITE, 2, 0, data=b"x", flags=client.FUA),
        request(client.READ, 3, 0, 10),
        request(client.FLUSH, 4),
        request(client.ZEROES, 5, 0, 10),
    )
    errors = {cookie: reply.error for cookie, reply in replies.items()}
    assert errors == {1: client.EIO, 2: client.EIO, 3: 0, 4: client.EIO, 5: client.EIO}
    assert host.volume.image[:1] == b"\0"


def test_failed_read_is_an_error_and_the_next_request_is_served(host: Host) -> None:
    host.volume.read_error = DiskFailed("bad sector")
    assert host.read(0, 4096).error == client.EIO
    host.volume.read_error = None
    assert host.read(0, 4096).error == 0


def test_unknown_commands_and_flags_are_invalid(host: Host) -> None:
    assert host.one(request(8, 1)).error == client.EINVAL
    assert host.one(request(0xFFFF, 1)).error == client.EINVAL
    assert host.counters.unknown == 2
    for command in (client.FLUSH, client.TRIM, client.CACHE, client.ZEROES, client.STATUS):
        assert host.one(request(command, 1, 0, 0 if command == client.FLUSH else 512, 1 << 5)).error == client.EINVAL
    assert host.read(0, 512, client.NO_HOLE).error == client.EINVAL
    assert host.one(request(client.TRIM, 1, 0, 512, client.NO_HOLE)).error == client.EINVAL
    assert host.one(request(client.FLUSH, 1, 512, 0)).error == client.EINVAL


def test_write_with_unknown_flags_is_refused_and_its_payload_is_not_taken_for_requests(host: Host) -> None:
    payload = request(client.WRITE, 666, 0, data=b"evil" * 10)
    replies = host.send(request(client.WRITE, 1, 0, data=payload, flags=1 << 7), request(client.FLUSH, 2))
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}


def test_wrong_magic_ends_the_session(host: Host) -> None:
    replies = host.send(request(client.WRITE, 1, 0, data=b"x"), b"\x25\x60\x95\x12" + bytes(24))
    assert set(replies) == {1}
    assert host.stopped(Stop.END)
    assert host.machine.fault
    assert host.machine.advance() is Stop.END


# ---- trim, zeroes, cache, block status ------------------------------------------------------------


def test_zeroes_and_trim_reach_the_group_with_their_flags(host: Host) -> None:
    host.send(request(client.WRITE, 1, 0, data=b"x" * 4096))
    host.send(
        request(client.TRIM, 1, 0, 512),
        request(client.ZEROES, 2, 512, 512),
        request(client.ZEROES, 3, 1024, 512, client.NO_HOLE | client.FAST_ZERO),
    )
    assert host.group.zeroed == [(0, 512, True, False), (512, 512, False, False), (1024, 512, False, True)]
    assert host.volume.image[:4096] == bytes(1536) + b"x" * 2560


def test_zeroes_longer_than_the_payload_limit_are_fine() -> None:
    host = Host(FakeVolume(size=4 * MIB))
    assert host.one(request(client.ZEROES, 1, 0, 4 * MIB)).error == 0


def test_cache_is_accepted(host: Host) -> None:
    assert host.one(request(client.CACHE, 1, 0, 4096)).error == 0


def test_block_status_answers_every_context() -> None:
    volume = FakeVolume()
    volume.holes = [(4096, True), (8192, False)]
    host = Host(volume, contexts=(ALLOCATION, WRITE_TIME))
    reply = host.one(request(client.STATUS, 1, 0, 12_288))
    assert reply.status == {1: [(4096, 3), (8192, 0)], 2: [(12_288, 0)]}
    assert host.one(request(client.STATUS, 1, 0, 12_288, client.REQ_ONE)).status == {1: [(4096, 3)], 2: [(12_288, 0)]}


def test_block_status_of_a_long_range_is_cut_at_a_boundary() -> None:
    volume = FakeVolume()
    volume.size = 1 << 40
    reply = Host(volume, contexts=(ALLOCATION,)).one(request(client.STATUS, 1, 1000, 0xFFFF_0000))
    ((length, state),) = reply.status[1]
    assert state == 0
    assert length <= 1 << 30
    assert (1000 + length) % 65_536 == 0


def test_block_status_without_context_or_range_is_invalid() -> None:
    assert Host().one(request(client.STATUS, 1, 0, 512)).error == client.EINVAL
    host = Host(contexts=(ALLOCATION,))
    assert host.one(request(client.STATUS, 1, 0, 0)).error == client.EINVAL
    assert host.one(request(client.STATUS, 1, host.volume.size, 1)).error == client.EINVAL


# ---- write times ------------------------------------------------------------


def timed(cookie: int, offset: int, time: int, data: bytes, flags: int = 0) -> bytes:
    return request(client.WRITE, cookie, offset, data=struct.pack(">Q", time) + data, flags=flags)


def test_write_time_is_taken_from_the_payload_and_not_written() -> None:
    host = Host(contexts=(WRITE_TIME,))
    replies = host.send(
        timed(1, 512, 1_000_000_007, b"abc"), timed(2, 600, (1 << 64) - 1, PATTERN[:9999], flags=client.FUA)
    )
    assert not any(reply.error for reply in replies.values())
    assert host.group.carried == [1_000_000_007, (1 << 64) - 1]
    assert host.volume.image[512:516] == b"abc\0"
    assert host.volume.image[600:10_600] == PATTERN[:9999] + b"\0"


@pytest.mark.parametrize("length", [65_536, 65_537, 200_000, 262_144])
def test_write_time_of_a_long_write_holds_for_all_of_it(length: int) -> None:
    host = Host(contexts=(WRITE_TIME,))
    data = (PATTERN * 5)[:length]
    assert host.one(timed(1, 4096, 42, data)).error == 0
    assert host.volume.image[4096 : 4096 + length] == data
    assert set(host.group.carried) == {42}


@pytest.mark.parametrize("length", [1, 7, 8])
def test_payload_without_room_for_time_and_data_is_invalid(length: int) -> None:
    host = Host(contexts=(WRITE_TIME,))
    replies = host.send(request(client.WRITE, 1, 0, data=bytes(length)), timed(2, 0, 5, b"x"))
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}


def test_range_of_a_timed_write_excludes_the_time() -> None:
    host = Host(contexts=(WRITE_TIME,))
    size = host.volume.size
    assert host.one(timed(1, size - 3, 5, b"abc")).error == 0
    assert host.one(timed(1, size - 3, 5, b"abcd")).error == client.ENOSPC


def test_zeroes_of_a_timed_connection_carry_no_time() -> None:
    host = Host(contexts=(WRITE_TIME,))
    assert host.one(request(client.ZEROES, 1, 0, 512)).error == 0
    assert host.group.zeroed == [(0, 512, False, False)]
