"""``--check-config`` says what a start would meet in the data directory and at the addresses, and leaves no trace."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controllerd.config import parse
from controllerd.config.trial import attempt
from controllerd.daemon import lock_directory
from controllerd.storage.catalogue import Catalogue
from tests.unit.config.test_config_errors import document

FREE = {"nbd.listen": ["127.0.0.1:0"], "management.listen": "127.0.0.1:0"}


def tried(base: Path, **changes: Any) -> tuple[list[str], list[str]]:
    """The problems and notes for the smallest good configuration with ``section__key`` set."""
    keys = FREE | {key.replace("__", "."): value for key, value in changes.items()}
    problems, notes = attempt(parse(document(keys), file="c.toml", base=base), "c.toml")
    return [str(problem) for problem in problems], notes


def trace(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_nothing_is_wrong_with_a_directory_to_be_made(tmp_path: Path) -> None:
    assert tried(tmp_path, controller__data_directory="not/there/yet") == ([], [])
    assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    problems, _ = tried(tmp_path, controller__data_directory="file/data")
    assert len(problems) == 1
    assert "cannot be made" in problems[0]
    refused = {tmp_path}
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **options: path not in refused and allowed(path, mode, **options)
    )  # whoever runs the tests may be root
    assert "data cannot be made: " in tried(tmp_path)[0][0]
    (tmp_path / "data").mkdir()
    refused.add(tmp_path / "data")
    assert "data cannot be written by this user" in tried(tmp_path)[0][0]
    refused.remove(tmp_path / "data")
    (tmp_path / "data/journals").mkdir()
    refused.add(tmp_path / "data/journals")
    assert "journals cannot be read and written by this user" in tried(tmp_path)[0][0]


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("running", [True, False])
def test_directory_of_another_controller(tmp_path: Path, closed: bool, running: bool) -> None:
    (tmp_path / "data").mkdir()
    catalogue = Catalogue(str(tmp_path / "data/catalogue.sqlite"))
    catalogue.put_fact("owner", "B (serial 2)")
    if closed:
        catalogue.close()
    lock = lock_directory(tmp_path / "data")
    if not running:
        os.close(lock)
    before = {} if running else trace(tmp_path)
    problems, notes = tried(tmp_path)
    assert len(problems) == 1
    assert "data belongs to controller B (serial 2), this is A (serial 1); choose another directory" in problems[0]
    assert notes == ([f"a controller is running on {tmp_path}/data"] if running else [])
    if running:
        os.close(lock)
    else:
        assert trace(tmp_path) == before
    if not closed:
        catalogue.put_fact("owner", "A (serial 1)")
        assert tried(tmp_path) == ([], [])
        catalogue.close()


def test_catalogue_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/catalogue.sqlite").write_bytes(b"something else" * 100)
    assert "not a usable catalogue" in tried(tmp_path)[0][0]


def test_addresses_in_use_or_not_of_this_machine(tmp_path: Path, taken: int) -> None:
    problems, notes = tried(
        tmp_path, nbd__listen=[f"127.0.0.1:{taken}", "192.0.2.1:0"], management__listen="no.such.host.invalid:9711"
    )
    assert not notes
    assert f"nbd.listen: 127.0.0.1:{taken} is in use by another process" in problems[0]
    assert "nbd.listen: 192.0.2.1:0 is not an address of this machine" in problems[1]
    assert "management.listen: no.such.host.invalid:9711: " in problems[2]
    assert len(problems) == 3


def test_unix_sockets_in_use_left_behind_or_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as served, socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "old.sock"))
        left_behind.close()
        served.bind(str(tmp_path / "m.sock"))
        served.listen()
        served.setblocking(False)
        problems, _ = tried(tmp_path, nbd__listen=["unix:old.sock", "unix:file"], management__listen="unix:m.sock")
        with pytest.raises(BlockingIOError):
            served.accept()  # nobody came
    assert len(problems) == 2
    assert "file exists and is not a socket" in problems[0]
    assert "management.listen: unix:" in problems[1]
    assert "m.sock is in use by another process" in problems[1]


def test_addresses_of_a_controller_that_runs_are_a_note(tmp_path: Path, taken: int) -> None:
    lock = lock_directory(tmp_path / "data")
    problems, notes = tried(tmp_path, nbd__listen=[f"127.0.0.1:{taken}", "192.0.2.1:0"])
    os.close(lock)
    assert len(problems) == 1
    assert "192.0.2.1:0 is not an address" in problems[0]
    assert notes[0] == f"a controller is running on {tmp_path}/data"
    assert f"nbd.listen: 127.0.0.1:{taken} is in use, as it should be" in notes[1]
