"""What one client sees of the export table."""

from __future__ import annotations

from typing import Any, cast

import pytest

from controllerd.model.access import Client, address_of, rules
from controllerd.targets.nbd.clients import ClientExports
from controllerd.targets.nbd.tls import names_of
from controllerd.targets.nbd.wire import ExportFlag
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import request
from tests.unit.targets.nbd.fake_storage import FakeExports, FakeVolume
from tests.unit.targets.nbd.host import Host
from tests.unit.targets.nbd.test_negotiation import ask, start

DB = Client(address_of("10.0.0.1"), frozenset({"db1"}))


def volume(name: str, *allow: dict[str, Any]) -> FakeVolume:
    made = FakeVolume(name)
    made.allow = rules(allow)
    return made


@pytest.fixture
def exports() -> ClientExports:
    table = FakeExports(
        FakeVolume("open"),
        volume("mine", {"certificate": "db1"}),
        volume("readable", {"network": "10.0.0.0/8", "read_only": True}),
        volume("other", {"certificate": "db2"}, {"network": "192.0.2.0/24"}),
        volume("closed"),
    )
    return ClientExports(table, DB)


def test_only_what_is_granted_is_listed_and_found(exports: ClientExports) -> None:
    assert [item.name for item in exports.names()] == ["open", "mine", "readable"]
    for name in ("other", "closed", "nothing"):
        assert exports.lookup(name) is None
    exports.client = Client(address_of("192.0.2.1"))
    assert [item.name for item in exports.names()] == ["open", "other"]


def test_refused_volume_answers_as_one_that_is_not_there(exports: ClientExports) -> None:
    for option in (client.INFO, client.GO):
        machine = start(table=exports)
        answers = [ask(machine, client.go(name, number=option)) for name in ("other", "other")]
        assert answers[0] == answers[1]
        (kind, text) = answers[0][0]
        assert kind == client.UNKNOWN
        (missing,) = ask(machine, client.go("extra", number=option))
        assert (kind, text.replace(b"other", b"extra")) == missing


def test_reader_is_told_and_refused_and_others_are_not(exports: ClientExports) -> None:
    machine = start(table=exports)
    ask(machine, client.go("readable"))
    assert machine.result is not None
    assert machine.result.flags & ExportFlag.READ_ONLY
    reader = Host(cast(FakeVolume, machine.result.volume))
    for number in (client.WRITE, client.TRIM, client.ZEROES):
        data = b"x" * 100 if number == client.WRITE else b""
        assert reader.one(request(number, 1, 0, 100, data=data)).error == client.EPERM
        assert reader.one(request(number, 1, 0, 100, data=data, flags=client.FUA)).error == client.EPERM
    assert reader.read(0, 100).data == {0: bytes(100)}
    assert reader.one(request(client.FLUSH, 2)).error == 0
    writer = Host(cast(FakeVolume, exports._exports.lookup("readable")))
    assert writer.one(request(client.WRITE, 1, 0, data=b"y" * 100)).error == 0
    assert reader.read(0, 100).data == {0: b"y" * 100}


def test_refused_write_does_not_wait_for_a_full_group(exports: ClientExports) -> None:
    shown = exports.lookup("readable")
    assert shown is not None
    reader = Host(cast(FakeVolume, shown))
    cast(Any, exports._exports.lookup("readable")).group.accepting = False
    assert reader.one(request(client.WRITE, 1, 0, data=b"x")).error == client.EPERM


def test_names_of_a_certificate() -> None:
    certificate = {
        "subject": ((("organizationName", "no name"),), (("commonName", "DB1"),)),
        "subjectAltName": (("DNS", "db1.Example"), ("IP Address", "10.0.0.1"), ("DirName", "no name")),
    }
    assert names_of(certificate) == {"db1", "db1.example", "10.0.0.1"}
    assert names_of({}) == names_of(None) == frozenset()
