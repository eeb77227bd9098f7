"""The pass over a connection's input: data, sizes, acknowledgement."""

from __future__ import annotations

import pytest

from controllerd.model.errors import (
    JournalFailed,
    MirrorLost,
)
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import SIMPLE
from controllerd.targets.nbd.settings import KIB, MIB, Limits
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.fake_storage import FakeVolume
from tests.unit.targets.nbd.host import PATTERN, SMALL, Host

# ---- the fast paths ------------------------------------------------------------


def test_what_is_written_is_read_back(host: Host) -> None:
    assert host.one(host.request(client.WRITE, 1, 4096, data=PATTERN[:8192])).error == 0
    reply = host.read(4000, 8300)
    assert reply.error == 0
    assert reply.content() == bytes(96) + PATTERN[:8192] + bytes(12)


def test_all_requests_of_a_pass_share_one_commit(host: Host) -> None:
    replies = host.send(*(host.request(client.WRITE, n, n * 512, data=PATTERN[n : n + 512]) for n in range(20)))
    assert sorted(replies) == list(range(20))
    assert host.group.commits == 1
    assert host.group.last_seq == 20


def test_reads_and_writes_in_one_pass(host: Host) -> None:
    host.replies.reads = {2: 4096, 4: 512}
    replies = host.send(
        host.request(client.WRITE, 1, 0, data=PATTERN[:4096]),
        host.request(client.READ, 2, 8192, 4096),
        host.request(client.FLUSH, 3),
        host.request(client.READ, 4, 512 * 100, 512),
        host.request(client.TRIM, 5, 0, 512),
    )
    assert sorted(replies) == [1, 2, 3, 4, 5]
    assert not any(reply.error for reply in replies.values())
    assert replies[2].content() == bytes(4096)


def test_data_is_handed_over_without_a_copy_and_its_memory_is_never_received_into() -> None:
    host = Host()
    written = {}
    for n in range(200):
        data = PATTERN[n : n + 2048]
        host.send(request(client.WRITE, n, n * 2048, data=data))
        written[n * 2048] = data
    for offset, view in host.volume.kept:
        assert view is not None
        assert bytes(view) == written[offset]


def test_requests_that_came_with_the_handshake_are_served() -> None:
    host = Host(initial=request(client.WRITE, 5, 0, data=b"x" * 100) + request(client.READ, 6, 0, 100)[:10])
    host.go_on()
    assert set(host.take()) == {5}
    assert host.send(request(client.READ, 6, 0, 100)[10:])[6].content() == b"x" * 100


def test_volume_is_readable_to_its_last_byte_and_not_beyond(host: Host) -> None:
    size = host.volume.size
    assert host.read(size - 1, 1).content() == b"\0"
    assert host.read(size - 1, 2).error == client.EINVAL
    assert host.read(size, 1).error == client.EINVAL
    assert host.read((1 << 64) - 1, 4096).error == client.EINVAL


def test_single_bytes_are_written_and_read(host: Host) -> None:
    assert host.one(host.request(client.WRITE, 1, 4097, data=b"Q")).error == 0
    assert host.read(4096, 3).content() == b"\0Q\0"


# ---- sizes ------------------------------------------------------------


def test_empty_requests_do_nothing(host: Host) -> None:
    assert host.one(host.request(client.WRITE, 1)).error == 0
    assert host.one(host.request(client.TRIM, 1)).error == 0
    assert host.one(host.request(client.ZEROES, 1)).error == 0
    assert host.read(0, 0).error == 0
    assert host.group.last_seq == 0


@pytest.mark.parametrize("length", [65_536, 65_537, 100_001, 262_144])
@pytest.mark.parametrize("offset", [0, 4095, 12_288])
def test_long_writes_and_reads(host: Host, offset: int, length: int) -> None:
    data = (PATTERN * 5)[:length]
    replies = host.send(
        host.request(client.WRITE, 1, 0, data=b"a"),
        host.request(client.WRITE, 2, offset, data=data),
        host.request(client.WRITE, 3, 1_000_000, data=b"z"),
    )
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: 0, 2: 0, 3: 0}
    assert host.volume.image[offset : offset + length] == data
    assert host.read(offset, length).content() == data


def test_pieces_of_a_long_write_end_at_blocks() -> None:
    host = Host()
    host.send(request(client.WRITE, 1, 5000, data=(PATTERN * 4)[:200_000]))
    ends = [offset + len(view) for offset, view in host.volume.kept if view is not None]
    assert ends[-1] == 205_000
    assert not any(end % 4096 for end in ends[:-1])


def test_long_read_comes_in_pieces_unless_the_client_forbids_it() -> None:
    host = Host()
    assert host.read(0, 200_000).chunks == 4
    assert host.read(0, 200_000, client.DF).chunks == 1
    assert Host(framing=SIMPLE).read(0, 512, client.DF).error == client.EINVAL


def test_read_beyond_the_payload_limit_is_refused() -> None:
    big = FakeVolume(size=4 * MIB)
    assert Host(big).read(0, 256 * KIB + 1).error == client.EOVERFLOW
    assert Host(big, framing=SIMPLE).read(0, 256 * KIB + 1).error == client.EINVAL


def test_oversized_write_is_drained_and_refused(host: Host) -> None:
    replies = host.send(
        host.request(client.WRITE, 1, 0, data=bytes(256 * KIB + 1)), host.request(client.WRITE, 2, 0, data=b"next")
    )
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}


def test_absurd_write_ends_the_session_before_its_payload(host: Host) -> None:
    host.send(host.request(client.WRITE, 1, 0, data=bytes(MIB + 9))[:32])
    assert host.stopped(Stop.END)
    assert f"{MIB + 9} bytes with command 1" in host.machine.fault


def test_memory_of_a_connection_is_bounded_whatever_is_sent() -> None:
    host = Host(FakeVolume(size=8 * MIB))
    for n in range(20):
        host.send(request(client.WRITE, n, n * 100_000, data=bytes(200_000 + n)))
        assert len(host.machine.input.chunk) <= SMALL.chunk_max


# ---- flush, FUA, acknowledgement ------------------------------------------------------------


def test_acknowledgement_waits_for_the_group(host: Host) -> None:
    host.group.hold_complete = True
    assert host.send(*(host.request(client.WRITE, n, 0, data=b"x") for n in range(3))) == {}
    assert host.machine.in_flight == 3
    host.replies.reads = {9: 1}
    assert set(host.send(host.request(client.READ, 9, 5, 1))) == {9}
    host.group.complete(3)
    assert host.wakes == 1
    assert set(host.take()) == {0, 1, 2}
    assert host.machine.in_flight == 0


def test_failed_acknowledgement_is_an_error(host: Host) -> None:
    host.group.hold_complete = True
    host.send(host.request(client.WRITE, 1, 0, data=b"x"))
    host.group.complete(1, MirrorLost("no answer in time"))
    assert host.take()[1].error == client.EIO
    assert host.counters.errors[client.WRITE] == 1


def test_fua_waits_until_the_write_is_durable(host: Host) -> None:
    host.group.hold_flush = True
    replies = host.send(
        host.request(client.WRITE, 1, 0, data=b"x"),
        host.request(client.WRITE, 2, 0, data=b"x", flags=client.FUA),
        host.request(client.TRIM, 3, 0, 512, client.FUA),
        host.request(client.WRITE, 4, 0, data=bytes(100_000), flags=client.FUA),
        host.request(client.WRITE, 5, 0, data=b"x"),
    )
    assert set(replies) == {1, 5}
    host.group.flush(2)
    assert host.take() == {}
    host.group.flush(host.group.last_seq)
    assert set(host.take()) == {2, 3, 4}


def test_flush_covers_writes_of_other_connections() -> None:
    volume = FakeVolume()
    volume.group.hold_flush = True
    writer, flusher = Host(volume), Host(volume)
    writer.send(request(client.WRITE, 1, 0, data=b"x"))
    assert flusher.send(request(client.FLUSH, 2)) == {}
    volume.group.flush(1)
    assert flusher.take()[2].error == 0


def test_flush_with_nothing_to_do_is_answered_at_once(host: Host) -> None:
    host.group.hold_flush = True
    assert host.one(host.request(client.FLUSH, 1)).error == 0


def test_failed_flush_is_an_error(host: Host) -> None:
    host.group.hold_flush = True
    host.send(host.request(client.WRITE, 1, 0, data=b"x"), host.request(client.FLUSH, 2))
    host.group.flush(1, JournalFailed("fsync failed"))
    assert host.take()[2].error == client.EIO


def test_answers_after_the_end_go_nowhere(host: Host) -> None:
    host.group.hold_complete = True
    host.send(host.request(client.WRITE, 1, 0, data=b"x"))
    host.machine.close()
    host.group.complete(1)
    assert host.wakes == 0
    assert host.volume.image[:1] == b"x"


# ---- counters ------------------------------------------------------------


def test_counters_add_up(host: Host) -> None:
    host.send(
        host.request(client.WRITE, 1, 0, data=b"x" * 1000),
        host.request(client.WRITE, 2, 0, data=b"x" * 100_000),
        host.request(client.WRITE, 3, host.volume.size, data=b"x"),
        host.request(client.TRIM, 4, 0, 512),
        host.request(client.FLUSH, 5),
    )
    host.read(0, 4096)
    host.read(0, 100_000)
    counted = host.counters.describe()
    assert counted["write"] == {"requests": 3, "bytes": 101_000, "errors": 1}
    assert counted["read"] == {"requests": 2, "bytes": 104_096, "errors": 0}
    assert counted["trim"] == {"requests": 1, "bytes": 512, "errors": 0}
    assert counted["flush"] == {"requests": 1, "bytes": 0, "errors": 0}


def test_payload_limit_below_a_piece_is_kept() -> None:
    host = Host(limits=Limits(payload_max=8 * KIB))
    assert host.one(request(client.WRITE, 1, 0, data=bytes(8193))).error == client.EINVAL
    assert host.read(0, 8193).error == client.EOVERFLOW
    assert host.one(request(client.WRITE, 1, 0, data=bytes(8192))).error == 0
    assert host.read(0, 8192).error == 0
