"""What makes parsing stop, and that it goes on."""

from __future__ import annotations

import pytest

from controllerd.model.errors import (
    DiskFailed,
)
from controllerd.targets.nbd.contexts import ALLOCATION
from controllerd.targets.nbd.events import Stop
from controllerd.targets.nbd.settings import KIB, Limits
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.fake_storage import vast_volume
from tests.unit.targets.nbd.host import PATTERN, SMALL, Host

# ---- what makes parsing stop ------------------------------------------------------------


@pytest.mark.parametrize("command", [client.WRITE, client.TRIM, client.ZEROES])
def test_parsing_stops_at_a_change_while_the_group_takes_none(host: Host, command: int) -> None:
    host.group.accepting = False
    host.replies.reads = {1: 10, 3: 10}
    change = (
        host.request(command, 2, 0, data=b"x" * 512) if command == client.WRITE else host.request(command, 2, 0, 512)
    )
    replies = host.send(host.request(client.READ, 1, 0, 10), change, host.request(client.READ, 3, 0, 10))
    assert set(replies) == {1}
    assert host.stopped(Stop.GROUP)
    host.group.accept()
    host.go_on()
    assert set(host.take()) == {2, 3}
    assert host.stopped(Stop.INPUT)


def test_long_write_stops_in_the_middle_while_the_group_takes_none() -> None:
    host = Host()
    data = (PATTERN * 3)[:150_000]
    message = request(client.WRITE, 1, 0, data=data)
    host.send(message[:70_000])
    assert host.group.last_seq > 0
    host.group.accepting = False
    assert host.send(message[70_000:]) == {}
    assert host.stopped(Stop.GROUP)


def test_slow_reads_leave_the_pass_and_are_bounded(host: Host) -> None:
    host.volume.cold = True
    host.replies.reads = dict.fromkeys(range(8), 32 * KIB)
    host.send(*(host.request(client.READ, n, n * 32 * KIB, 32 * KIB) for n in range(8)))
    assert host.stopped(Stop.PENDING)
    assert host.machine.slow_bytes == 128 * KIB
    assert host.machine.in_flight == 4
    host.serve_slow_reads()
    assert host.wakes == 4
    host.go_on()
    host.serve_slow_reads()
    host.go_on()
    assert set(host.take()) == set(range(8))
    assert host.machine.in_flight == host.machine.slow_bytes == 0


def test_failed_slow_read_is_an_error(host: Host) -> None:
    host.volume.cold = True
    host.replies.reads = {1: 100}
    host.send(host.request(client.READ, 1, 0, 100))
    host.volume.read_error = DiskFailed("bad sector")
    host.serve_slow_reads()
    assert host.take()[1].error == client.EIO
    assert host.machine.in_flight == 0


def test_replies_are_bounded_while_nobody_sends_them() -> None:
    host = Host()
    machine = host.machine
    data = b"".join(request(client.READ, n, 0, 64 * KIB) for n in range(1000))
    machine.receive_buffer()[: len(data)] = data
    machine.received(len(data))
    seen = 0
    for _ in range(1000):
        stop = machine.advance()
        size = sum(map(len, machine.out))
        assert size <= SMALL.output_max + (1 << 19)
        host.collect()
        seen += len(host.replies.take())
        if stop is Stop.INPUT:
            break
        assert stop is Stop.OUTPUT
    assert seen == 1000


def test_many_waiting_requests_stop_parsing() -> None:
    host = Host(limits=Limits(in_flight_max=10))
    host.group.hold_complete = True
    host.send(*(request(client.WRITE, n, 0, data=b"x") for n in range(15)))
    host.go_on()
    assert host.stopped(Stop.PENDING)
    host.group.complete(host.group.last_seq)
    host.go_on()
    assert host.stopped(Stop.INPUT)


def test_disconnect_ends_parsing_and_keeps_what_is_under_way(host: Host) -> None:
    host.group.hold_complete = True
    host.send(
        host.request(client.WRITE, 1, 0, data=b"x"),
        host.request(client.DISC, 2),
        host.request(client.WRITE, 3, 0, data=b"y"),
    )
    assert host.stopped(Stop.END)
    assert host.machine.fault == ""
    assert host.machine.in_flight == 1
    host.group.complete(1)
    assert set(host.take()) == {1}


def test_stopping_server_refuses_everything_new(host: Host) -> None:
    host.machine.stopping = True
    host.replies.reads = {1: 10}
    replies = host.send(
        host.request(client.READ, 1, 0, 10),
        host.request(client.WRITE, 2, 0, data=b"x" * 70_000),
        host.request(client.FLUSH, 3),
        host.request(client.TRIM, 4, 0, 512),
        host.request(client.STATUS, 5, 0, 512),
    )
    assert {reply.error for reply in replies.values()} == {client.ESHUTDOWN}
    assert len(replies) == 5


def test_many_small_requests_leave_turns_to_others(host: Host) -> None:
    count = 2500
    host.replies.reads = dict.fromkeys(range(count), 1)
    replies = host.send(b"".join(host.request(client.READ, n, n, 1) for n in range(count)))
    assert len(replies) == 1024
    turns = 0
    while host.stopped(Stop.TURN):
        turns += 1
        host.go_on()
    assert turns >= 1
    replies.update(host.take())
    assert sorted(replies) == list(range(count))


def test_block_status_of_a_long_range_leaves_a_turn_to_others() -> None:
    host = Host(vast_volume(1 << 40), contexts=(ALLOCATION,))
    replies = host.send(request(client.STATUS, 1, 0, 1 << 30), request(client.FLUSH, 2))
    assert set(replies) == {1}
    assert host.stopped(Stop.TURN)
    host.go_on()
    assert set(host.take()) == {2}
