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
from controllerd.targets.nbd.contexts import ALLOCATION, DIRTY, WRITE_TIME
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import SIMPLE
from controllerd.targets.nbd.settings import MIB
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.fake_storage import FakeVolume, vast_volume
from tests.unit.targets.nbd.host import PATTERN, Host

# ---- errors ------------------------------------------------------------


def test_writes_beyond_the_end_have_no_space(host: Host) -> None:
    size = host.volume.size
    assert host.one(host.request(client.WRITE, 1, size - 10, data=b"x" * 11)).error == client.ENOSPC
    assert host.one(host.request(client.ZEROES, 1, size, 1)).error == client.ENOSPC
    assert host.one(host.request(client.TRIM, 1, size, 1)).error == client.EINVAL
    assert host.one(host.request(client.CACHE, 1, size, 1)).error == client.EINVAL
    assert host.group.last_seq == 0
    assert host.one(host.request(client.WRITE, 2, size - 10, data=b"x" * 10)).error == 0


@pytest.mark.parametrize("beyond", [0, 1 << 30])
def test_read_only_volume_refuses_changes_wherever_they_are(host: Host, beyond: int) -> None:
    host.volume.writable = False
    for command, data in ((client.WRITE, b"x" * 512), (client.ZEROES, b""), (client.TRIM, b"")):
        reply = host.one(host.request(command, 1, beyond, data=data) if data else host.request(command, 1, beyond, 512))
        assert reply.error == client.EPERM
    assert host.read(0, 512).error == 0


def test_volume_can_become_writable_during_a_session(host: Host) -> None:
    host.volume.writable = False
    assert host.one(host.request(client.WRITE, 1, data=b"x")).error == client.EPERM
    host.volume.writable = True
    assert host.one(host.request(client.WRITE, 1, data=b"x")).error == 0


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
        host.request(client.WRITE, 1, 0, data=b"x" * 512),
        host.request(client.WRITE, 2, 0, data=b"x" * 512, flags=client.FUA),
        host.request(client.TRIM, 3, 0, 512),
        host.request(client.WRITE, 4, 0, data=b"x" * 100_000),
    )
    assert {cookie: reply.error for cookie, reply in replies.items()} == dict.fromkeys((1, 2, 3, 4), errno)
    if host.replies.structured:
        assert replies[1].text == str(error)


def test_failed_commit_fails_all_writes_of_the_pass_and_no_reads(host: Host) -> None:
    host.group.commit_error = JournalFailed("gone")
    host.replies.reads = {3: 10}
    replies = host.send(
        host.request(client.WRITE, 1, 0, data=b"x"),
        host.request(client.WRITE, 2, 0, data=b"x", flags=client.FUA),
        host.request(client.READ, 3, 0, 10),
        host.request(client.FLUSH, 4),
        host.request(client.ZEROES, 5, 0, 10),
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
    assert host.one(host.request(8, 1)).error == client.EINVAL
    assert host.one(host.request(0xFFFF, 1)).error == client.EINVAL
    assert host.counters.unknown == 2
    for command in (client.FLUSH, client.TRIM, client.CACHE, client.ZEROES, client.STATUS):
        assert (
            host.one(host.request(command, 1, 0, 0 if command == client.FLUSH else 512, 1 << 6)).error == client.EINVAL
        )
    assert host.read(0, 512, client.NO_HOLE).error == client.EINVAL
    assert host.one(host.request(client.TRIM, 1, 0, 512, client.NO_HOLE)).error == client.EINVAL
    assert host.one(host.request(client.FLUSH, 1, 512, 0)).error == client.EINVAL


def test_write_with_unknown_flags_is_refused_and_its_payload_is_not_taken_for_requests(host: Host) -> None:
    payload = host.request(client.WRITE, 666, 0, data=b"evil" * 10)
    replies = host.send(host.request(client.WRITE, 1, 0, data=payload, flags=1 << 7), host.request(client.FLUSH, 2))
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}


def test_wrong_magic_ends_the_session(host: Host) -> None:
    replies = host.send(host.request(client.WRITE, 1, 0, data=b"x"), b"\x25\x60\x95\x12" + bytes(28))
    assert set(replies) == {1}
    assert host.stopped(Stop.END)
    assert host.machine.fault
    assert host.machine.advance() is Stop.END


# ---- trim, zeroes, cache, block status ------------------------------------------------------------


def test_zeroes_and_trim_reach_the_group_with_their_flags(host: Host) -> None:
    host.send(host.request(client.WRITE, 1, 0, data=b"x" * 4096))
    host.send(
        host.request(client.TRIM, 1, 0, 512),
        host.request(client.ZEROES, 2, 512, 512),
        host.request(client.ZEROES, 3, 1024, 512, client.NO_HOLE),
    )
    assert host.group.zeroed == [(0, 512, True, False), (512, 512, False, False), (1024, 512, False, True)]
    assert host.volume.image[:4096] == bytes(1536) + b"x" * 2560


def test_fast_zeroes_give_their_space_back_or_are_not_supported(host: Host) -> None:
    assert host.one(host.request(client.ZEROES, 1, 0, 512, client.FAST_ZERO)).error == 0
    assert host.one(host.request(client.ZEROES, 1, 0, 512, client.FAST_ZERO | client.NO_HOLE)).error == client.ENOTSUP
    assert host.group.zeroed == [(0, 512, False, False)]


def test_long_range_of_zeroes_is_staged_in_steps_and_answered_once(host: Host) -> None:
    size = 3 << 30
    host = Host(vast_volume(size), framing=host.framing)
    host.send(
        host.request(client.TRIM, 1, 1000, size - 1000, client.FUA),
        host.request(client.ZEROES, 2, 512, 100_000, client.NO_HOLE),
        host.request(client.FLUSH, 3),
    )
    turns = 0
    while host.stopped(Stop.TURN):
        turns += 1
        host.go_on()
    assert turns == 12
    assert {cookie: reply.error for cookie, reply in host.take().items()} == {1: 0, 2: 0, 3: 0}
    position = 1000
    for offset, length, trim, no_hole in host.group.zeroed[:12]:
        assert (offset, trim, no_hole) == (position, True, False)
        assert length <= 256 * MIB
        position += length
    assert position == size
    assert host.group.zeroed[12:] == [(512, 65_024, False, True), (65_536, 34_976, False, True)]
    assert host.counters.requests[client.TRIM] == host.counters.requests[client.ZEROES] == 1
    assert host.counters.byte_counts[client.TRIM] == size - 1000


def test_long_range_of_zeroes_stops_at_an_error_and_while_the_group_takes_none(host: Host) -> None:
    host = Host(vast_volume(2 << 30), framing=host.framing)
    assert host.send(host.request(client.TRIM, 1, 0, 1 << 30), host.request(client.FLUSH, 2)) == {}
    host.group.accepting = False
    host.go_on()
    assert host.stopped(Stop.GROUP)
    host.group.accepting = True
    host.group.stage_error = NoSpace("pool is full")
    host.go_on()
    assert {cookie: reply.error for cookie, reply in host.take().items()} == {1: client.ENOSPC, 2: 0}
    assert len(host.group.zeroed) == 1


def test_failed_commit_fails_a_long_range_of_zeroes(host: Host) -> None:
    host = Host(vast_volume(2 << 30), framing=host.framing)
    host.group.commit_error = JournalFailed("gone")
    host.send(host.request(client.TRIM, 1, 0, 1 << 30))
    host.go_on()
    assert host.take()[1].error == client.EIO


def test_cache_is_accepted(host: Host) -> None:
    assert host.one(host.request(client.CACHE, 1, 0, 4096)).error == 0


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


def test_block_status_tells_what_differs() -> None:
    host = Host(contexts=(ALLOCATION, DIRTY))
    host.volume.changed = [(4096, False), (8192, True)]
    assert host.one(request(client.STATUS, 1, 0, 12_288)).status == {
        1: [(12_288, 0)],
        3: [(4096, 0), (8192, 1)],
    }
    reply = host.one(request(client.STATUS, 1, 0, 12_288, client.REQ_ONE))
    assert reply.status == {1: [(12_288, 0)], 3: [(4096, 0)]}
    assert host.one(request(client.STATUS, 1, 0, 0)).error == client.EINVAL
    assert host.one(request(client.STATUS, 1, host.volume.size, 512)).error == client.EINVAL
    assert host.one(request(client.STATUS, 1, 0, 512, client.DF)).error == client.EINVAL


def test_block_status_waits_until_differences_are_known() -> None:
    host = Host(contexts=(ALLOCATION, DIRTY))
    host.volume.differences_known = False
    assert not host.send(request(client.STATUS, 1, 0, 4096), request(client.STATUS, 2, 0, 512))
    assert host.stopped(Stop.PENDING)
    host.volume.changed = [(4096, True)]
    host.serve_slow_statuses()
    assert host.wakes == 1
    assert host.take()[1].status == {1: [(4096, 0)], 3: [(4096, 1)]}
    host.go_on()
    assert set(host.take()) == {2}
    assert not host.machine.in_flight


def test_block_status_of_other_contexts_waits_for_nothing() -> None:
    host = Host(contexts=(ALLOCATION,))
    host.volume.differences_known = False
    assert host.one(request(client.STATUS, 1, 0, 4096)).status == {1: [(4096, 0)]}


def test_hole_is_sent_as_such() -> None:
    host = Host()
    host.volume.sparse = True
    host.send(request(client.WRITE, 1, 300_000, data=b"x" * 9))
    hole = host.read(5, 40_000)
    assert hole.holes == [(5, 40_000)]
    assert not hole.data
    assert host.read(5, 40_000, client.DF).holes == [(5, 40_000)]
    assert host.read(5, 512).content() == bytes(512)
    mixed = host.read(100_000, 250_000)
    assert mixed.holes == [(100_000, 65_536), (165_536, 65_536), (231_072, 65_536)]
    assert mixed.content() == bytes(200_000) + b"x" * 9 + bytes(49_991)
    unfragmented = host.read(100_000, 250_000, client.DF)
    assert unfragmented.chunks == 1
    assert unfragmented.content() == mixed.content()
    assert host.counters.requests[client.READ] == 5
    assert host.counters.byte_counts[client.READ] == 2 * 40_000 + 512 + 2 * 250_000
    simple = Host(framing=SIMPLE)
    simple.volume.sparse = True
    assert simple.read(0, 250_000).content() == bytes(250_000)


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
