"""Every error has a stable code of its own and keeps its facts."""

from __future__ import annotations

import re

import pytest

from controllerd.model import errors
from controllerd.model.errors import NoSpace, RemoteCopyError, Trimmed

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RemoteCopyError)]


def test_codes_are_kebab_case_and_unique() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_drawn_in_the_tree(kind: type[RemoteCopyError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


def test_facts_are_kept() -> None:
    error = NoSpace("pool p1 is full", pool="p1", free_bytes=0)
    assert str(error) == error.text == "pool p1 is full"
    assert error.facts == {"pool": "p1", "free_bytes": 0}


def test_trimmed_names_the_first_record_that_is_kept() -> None:
    error = Trimmed(17)
    assert error.first_available == error.facts["first_available"] == 17
    assert "17" in error.text
    assert Trimmed(17, "gone").text == "gone"
