"""Errors of the controller as hosts see them."""

from __future__ import annotations

import pytest

from controllerd.model import errors
from controllerd.targets.nbd.errors import RequestRefused, errno_of, text_of
from controllerd.targets.nbd.wire import Errno


def every_error() -> list[errors.RemoteCopyError]:
    classes: set[type[errors.RemoteCopyError]] = {errors.RemoteCopyError}
    while more := {sub for cls in classes for sub in cls.__subclasses__()} - classes:
        classes |= more
    return [
        errors.Trimmed(1) if issubclass(cls, errors.Trimmed) else cls("text")
        for cls in sorted(classes, key=lambda cls: cls.code)
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.code)
def test_every_error_has_a_number_that_may_be_sent(error: errors.RemoteCopyError) -> None:
    assert errno_of(error) in Errno


def test_errors_whose_remedy_a_host_knows_are_told_apart() -> None:
    assert errno_of(errors.NoSpace("full")) == Errno.ENOSPC
    assert errno_of(errors.ReadOnly("secondary")) == Errno.EPERM
    assert errno_of(errors.JournalFailed("gone")) == Errno.EIO
    assert errno_of(RequestRefused(Errno.EOVERFLOW, "long")) == Errno.EOVERFLOW


def test_text_is_cut_between_characters() -> None:
    assert text_of(errors.NoSpace("voll")) == b"voll"
    cut = text_of(errors.NoSpace("ä" * 4096 + "x"))
    assert len(cut) == 4096
    assert cut.decode() == "ä" * 2048
    assert len(text_of(errors.NoSpace("x" + "ä" * 4096))) == 4095
