"""Extended headers: 64-bit lengths, the rules of payloads, and replies that repeat the offset."""

from __future__ import annotations

import struct

import pytest

from controllerd.targets.nbd.contexts import ALLOCATION, DIRTY, WRITE_TIME
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.framing import EXTENDED
from controllerd.targets.nbd.settings import MIB
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import extended_request
from tests.unit.targets.nbd.fake_storage import FakeVolume, vast_volume
from tests.unit.targets.nbd.host import PATTERN, Host


@pytest.fixture
def wide() -> Host:
    volume = FakeVolume()
    volume.holes = [(4096, True), (8192, False)]
    return Host(volume, framing=EXTENDED, contexts=(ALLOCATION, WRITE_TIME))


def status(*numbers: int, length: int = 12_288, offset: int = 0, flags: int = 0) -> bytes:
    payload = struct.pack(f">Q{len(numbers)}I", length, *numbers)
    return extended_request(client.STATUS, 1, offset, flags=flags, data=payload)


def test_write_that_does_not_say_whether_data_follows_ends_the_session() -> None:
    """libnbd and qemu send and take the data then, the document says that there is none: either reading is a danger."""
    host = Host(framing=EXTENDED)
    bare = struct.pack(">IHHQQQ", 0x21E41C71, 0, client.WRITE, 1, 0, 512)
    assert host.send(bare, host.request(client.WRITE, 2, 0, data=b"x" * 512)) == {}
    assert host.stopped(Stop.END)
    assert "PAYLOAD_LEN" in host.machine.fault
    assert host.group.last_seq == 0


@pytest.mark.parametrize("command", [client.READ, client.FLUSH, client.TRIM, client.CACHE, client.ZEROES, 99])
@pytest.mark.parametrize("length", [0, 1, 512, 300_000])
def test_payload_that_a_command_does_not_take_is_thrown_away(command: int, length: int) -> None:
    host = Host(framing=EXTENDED)
    evil = (host.request(client.WRITE, 666, 0, data=b"evil") * 10_000)[:length]
    replies = host.send(extended_request(command, 1, 0, data=evil), host.request(client.FLUSH, 2))
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}
    assert host.volume.image[:4] == bytes(4)


@pytest.mark.parametrize("command", [client.READ, client.WRITE, client.STATUS, 99])
def test_payload_beyond_every_limit_ends_the_session(command: int) -> None:
    host = Host(framing=EXTENDED)
    host.send(struct.pack(">IHHQQQ", 0x21E41C71, client.PAYLOAD_LEN, command, 1, 0, 1 << 40))
    assert host.stopped(Stop.END)
    assert host.machine.fault


def test_lengths_have_64_bits() -> None:
    beyond = 1 << 50
    wide = Host(vast_volume(beyond), framing=EXTENDED, contexts=(ALLOCATION,))
    replies = wide.send(
        wide.request(client.CACHE, 1, 4096, beyond - 4096),
        wide.request(client.READ, 2, 0, 1 << 33),
        wide.request(client.STATUS, 3, 0, beyond),
        wide.request(client.CACHE, 4, 4096, beyond),
        wide.request(client.TRIM, 5, 1, (1 << 64) - 1),
        wide.request(client.ZEROES, 6, 1, (1 << 64) - 1),
        wide.request(client.STATUS, 7, (1 << 64) - 1, (1 << 64) - 1),
        wide.request(client.TRIM, 8, beyond - (5 << 30), 5 << 30),
    )
    while wide.stopped(Stop.TURN):
        wide.go_on()
        replies.update(wide.take())
    errors = {cookie: reply.error for cookie, reply in replies.items()}
    assert errors == {
        1: 0,
        2: client.EOVERFLOW,
        3: 0,
        4: client.EINVAL,
        5: client.EINVAL,
        6: client.ENOSPC,
        7: client.EINVAL,
        8: 0,
    }
    assert sum(length for _, length, _, _ in wide.group.zeroed) == 5 << 30


def test_block_status_has_64_bit_descriptors(wide: Host) -> None:
    reply = wide.one(wide.request(client.STATUS, 1, 0, 12_288))
    assert reply.status == {1: [(4096, 3), (8192, 0)], 2: [(12_288, 0)]}


def test_block_status_can_be_limited_to_contexts(wide: Host) -> None:
    assert wide.one(status(1)).status == {1: [(4096, 3), (8192, 0)]}
    assert wide.one(status(2, 1)).status == {1: [(4096, 3), (8192, 0)], 2: [(12_288, 0)]}
    assert wide.one(status(1, flags=client.REQ_ONE | client.FUA)).status == {1: [(4096, 3)]}


def test_block_status_of_differences_only_when_they_are_named() -> None:
    host = Host(framing=EXTENDED, contexts=(ALLOCATION, DIRTY))
    host.volume.differences_known = False
    assert host.one(status(1)).status == {1: [(12_288, 0)]}
    assert not host.send(status(1, 3))
    host.volume.changed = [(8192, True), (4096, False)]
    host.serve_slow_statuses()
    assert host.take()[1].status == {1: [(12_288, 0)], 3: [(8192, 1), (4096, 0)]}
    host.go_on()
    assert host.one(status(3, flags=client.REQ_ONE)).status == {3: [(8192, 1)]}
    assert host.one(status(2)).error == client.EINVAL


@pytest.mark.parametrize(
    "data",
    [
        status(),
        status(1, 1),
        status(3),
        status(1, 2, 3),
        status(1, length=0),
        status(1, length=1 << 63),
        status(1, flags=client.DF),
        status(1, offset=MIB),
        extended_request(client.STATUS, 1, data=bytes(7)),
        extended_request(client.STATUS, 1, data=bytes(13)),
        extended_request(client.STATUS, 1, data=bytes(70_000)),
        extended_request(client.STATUS, 1, data=b""),
    ],
)
@pytest.mark.parametrize("split", [1, 40, 100_000])
def test_bad_lists_of_contexts_are_invalid_and_thrown_away(wide: Host, data: bytes, split: int) -> None:
    if len(data) > 1000 and split == 1:
        split = 999
    stream = data + wide.request(client.FLUSH, 2)
    replies = {}
    for position in range(0, len(stream), split):
        replies.update(wide.send(stream[position : position + split]))
    assert {cookie: reply.error for cookie, reply in replies.items()} == {1: client.EINVAL, 2: 0}


def test_list_of_contexts_without_any_negotiated_is_invalid() -> None:
    assert Host(framing=EXTENDED).one(status(1)).error == client.EINVAL


def test_data_and_errors_repeat_the_offset_of_the_request() -> None:
    host = Host(framing=EXTENDED)
    assert host.one(host.request(client.WRITE, 1, 12_345, data=PATTERN[:60_000])).error == 0
    assert host.one(host.request(client.WRITE, 1, 12_345, data=PATTERN[:60_000], flags=client.FUA)).error == 0
    for flags in (0, client.DF):
        reply = host.send(host.request(client.READ, 77, 12_345, 60_000, flags))
        host.serve_slow_reads()
        reply.update(host.take())
        assert reply[77].content() == PATTERN[:60_000]
    assert host.one(host.request(client.TRIM, 1, 1 << 60, 1)).error == client.EINVAL


def test_disconnect_is_taken_with_or_without_a_payload() -> None:
    for data in (None, b"bye"):
        host = Host(framing=EXTENDED)
        host.send(extended_request(client.DISC, 1, data=data))
        assert host.stopped(Stop.END)
        assert not host.machine.fault
