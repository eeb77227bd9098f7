"""Which files may be disks (F27), and what a refused order leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from controllerd.model.errors import BadOrder, Conflict, NoSpace
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem

_SIZE = 1 << 20


def make_system(directory: Path) -> StorageSystem:
    settings = StorageSettings(
        str(directory),
        journal_bytes=16 << 20,
        segment_bytes=8 << 20,
        max_request_bytes=1 << 20,
        checkpoint_interval_s=3600,
    )
    return StorageSystem(
        settings, SystemFiles(), clock=lambda: 1, report=lambda _event, _facts: None, rng=random.Random(1)
    )


@pytest.fixture
def system(tmp_path: Path) -> StorageSystem:
    made = make_system(tmp_path / "c")
    made.create_disk("d", f"{tmp_path}/c/disks/d", _SIZE)
    return made


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("name", ["c/disks/d", "c/../c/./disks//d", "symbolic", "hard"])
def test_file_is_never_two_disks_whatever_its_name(
    tmp_path: Path, system: StorageSystem, name: str, erase: bool
) -> None:
    (tmp_path / "symbolic").symlink_to(tmp_path / "c/disks/d")
    os.link(tmp_path / "c/disks/d", tmp_path / "hard")
    (tmp_path / "c/disks/d").write_bytes(b"x" * _SIZE)
    with pytest.raises(Conflict, match="is in use as a disk"):
        system.create_disk("other", f"{tmp_path}/{name}", erase=erase)
    assert list(system.disks) == ["d"]
    assert (tmp_path / "c/disks/d").read_bytes() == b"x" * _SIZE


def test_disk_of_another_controller_is_not_taken(tmp_path: Path, system: StorageSystem) -> None:
    other = make_system(tmp_path / "other")
    with pytest.raises(Conflict, match="of another one"):
        other.create_disk("mine", f"{tmp_path}/c/disks/d", erase=True)
    system.close()
    assert other.create_disk("mine", f"{tmp_path}/c/disks/d").size == _SIZE

    async def start_again() -> None:
        again = make_system(tmp_path / "c")
        await again.start()
        assert "is in use as a disk" in (again.disks["d"].failed or "")
        await again.stop()

    asyncio.run(start_again())
    other.close()


@pytest.mark.parametrize(
    "name", ["journals/000001/00000001.seg", "catalogue.sqlite", "catalogue.sqlite-wal", "journals/new"]
)
def test_own_files_of_the_controller_are_no_disks(tmp_path: Path, system: StorageSystem, name: str) -> None:
    path = tmp_path / "c" / name
    (tmp_path / "c/journals/000001").mkdir(parents=True)
    (tmp_path / "c/journals/000001/00000001.seg").write_bytes(b"records")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(Conflict, match="is the controller's own"):
        system.create_disk("other", str(path), _SIZE, erase=True)
    assert (path.read_bytes() if path.exists() else None) == before


def test_disk_larger_than_the_file_system_leaves_nothing_behind(tmp_path: Path, system: StorageSystem) -> None:
    free = os.statvfs(tmp_path).f_bavail
    with pytest.raises(NoSpace, match="the file system has"):
        system.create_disk("huge", f"{tmp_path}/huge", 1 << 50)
    assert not (tmp_path / "huge").exists()
    assert os.statvfs(tmp_path).f_bavail > free // 2


def test_refused_disk_keeps_no_file_open(
    tmp_path: Path, system: StorageSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").write_bytes(b"x" * _SIZE)
    before = _open_below(tmp_path)
    with pytest.raises(Conflict, match="holds data"):
        system.create_disk("other", f"{tmp_path}/full")
    with pytest.raises(BadOrder, match="Is a directory"):
        system.create_disk("other", str(tmp_path))
    with pytest.raises(BadOrder, match="fewer than"):
        system.create_disk("other", f"{tmp_path}/full", 2 * _SIZE)

    def fail(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(NoSpace):
        system.create_disk("other", f"{tmp_path}/new", _SIZE)
    assert not (tmp_path / "new").exists()
    assert _open_below(tmp_path) == before


def _open_below(directory: Path) -> list[str]:
    paths = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            paths.append(str(descriptor.readlink()))
    return sorted(path for path in paths if path.startswith(str(directory)))


def test_directories_are_made_in_the_data_directory_only(tmp_path: Path, system: StorageSystem) -> None:
    with pytest.raises(BadOrder, match=f"{tmp_path}/mnt/data does not exist"):
        system.create_disk("e", f"{tmp_path}/mnt/data/e", _SIZE)
    assert not (tmp_path / "mnt").exists()
    assert system.create_disk("e", f"{tmp_path}/c/fast/disks/e", _SIZE).size == _SIZE
