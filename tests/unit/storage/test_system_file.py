"""Files of the operating system: what is written is what is read, however it is cut up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controllerd.storage.io import CALL_BYTES, File, SystemFiles


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    files = SystemFiles(threads=1)
    opened = files.open(str(tmp_path / "file"), create=True)
    yield opened
    opened.close()
    files.close()


def _content(file: File) -> bytes:
    return Path(file.path).read_bytes()


_NEAR_CALL = st.integers(CALL_BYTES - 3, CALL_BYTES + 3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 9), st.integers(1, 70_000), _NEAR_CALL), min_size=1, max_size=20),
    offset=st.integers(0, 5000),
)
def test_vector_of_any_size_is_written_whole_and_in_order(file: File, sizes: list[int], offset: int) -> None:
    buffers = [memoryview(os.urandom(size)) for size in sizes]
    Path(file.path).write_bytes(b"")
    file.write_vector(buffers, sum(sizes), offset)
    assert _content(file)[offset:] == b"".join(buffers)


@pytest.mark.parametrize("size", [1, CALL_BYTES, CALL_BYTES + 1, 3 * CALL_BYTES + 5])
def test_one_buffer_of_any_size_is_written_whole(file: File, size: int) -> None:
    data = os.urandom(size)
    file.write(data, 7)
    assert _content(file)[7:] == data


def test_no_call_writes_more_than_the_page_cache_takes_in_small_folios(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    for name in ("pwrite", "pwritev"):
        real = getattr(os, name)

        def counted(fd: int, data: object, offset: int, real=real) -> int:  # type: ignore[no-untyped-def]
            calls.append(real(fd, data, offset))
            return calls[-1]

        monkeypatch.setattr(os, name, counted)
    data = os.urandom(5 * CALL_BYTES + 100)
    file.write(data, 0)
    file.write_vector([data[:1000], data[1000:]], len(data), 0)
    assert max(calls) == CALL_BYTES
    assert sum(calls) == 2 * len(data)


def test_call_that_wrote_in_part_goes_on_where_it_stopped(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [b"".join(buffers)[:1000]], offset))
    data = os.urandom(2 * CALL_BYTES + 9)
    file.write_vector([data[:5000], data[5000:]], len(data), 0)
    assert _content(file) == data
