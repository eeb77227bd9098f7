"""How many connections there may be, and from where."""

from __future__ import annotations

from controllerd.model.access import address_of
from controllerd.targets.nbd.admission import Admission

ONE, TWO = address_of("10.0.0.1"), address_of("10.0.0.2")


def test_places_come_back() -> None:
    admission = Admission(2, 0)
    assert [admission.admit(ONE), admission.admit(None), admission.admit(TWO)] == ["", "", "limit"]
    admission.leave(None)
    assert admission.admit(TWO) == ""
    assert admission.connections == 2


def test_one_address_cannot_take_all_places() -> None:
    admission = Admission(10, 2)
    assert [admission.admit(ONE) for _ in range(4)] == ["", "", "address-limit", "address-limit"]
    assert [admission.admit(TWO) for _ in range(3)] == ["", "", "address-limit"]
    assert [admission.admit(None) for _ in range(6)] == [""] * 6
    assert admission.admit(None) == "limit"
    admission.leave(ONE)
    assert [admission.admit(ONE), admission.admit(ONE)] == ["", "limit"]


def test_addresses_are_forgotten() -> None:
    admission = Admission(10, 2)
    for number in range(1000):
        address = address_of(f"10.1.{number >> 8}.{number & 255}")
        assert admission.admit(address) == ""
        admission.leave(address)
    assert admission.connections == 0
    assert not admission._by_address
