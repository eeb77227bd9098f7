"""What happens when files of the data directory are damaged while the controller is not running (I8, I10, F15, F16)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from crc32c import crc32c

from controllerd.model.errors import Conflict, Corrupt, DiskFailed
from controllerd.model.pair_state import Role
from controllerd.model.records import HEADER_SIZE, MAGIC_BYTES, Kind, encode_header
from controllerd.storage.group import Group
from controllerd.storage.io import SystemFiles
from controllerd.storage.pending import Entry
from controllerd.storage.role_changes import restart
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.unit.storage.helpers import content, put

_SIZE = 4 << 20
_SEGMENT = 8 << 20
_WRITES = 40
_LENGTH = 8192


def _image() -> bytes:
    return b"".join(bytes([number + 1]) * _LENGTH for number in range(_WRITES)).ljust(_SIZE, b"\0")


def _life(
    directory: Path,
    scenario: Callable[[StorageSystem], Awaitable[None]],
    *,
    owner: str = "C (serial 1)",
    boot: str = "this one",
    kill: bool = True,
) -> None:
    """Start, run ``scenario`` and end without another write, as ``kill -9`` does, or in order."""

    async def run() -> None:
        settings = StorageSettings(
            str(directory),
            owner=owner,
            boot=boot,
            journal_bytes=4 * _SEGMENT,
            segment_bytes=_SEGMENT,
            max_request_bytes=1 << 20,
            checkpoint_interval_s=3600,
        )
        system = StorageSystem(
            settings, SystemFiles(), clock=lambda: 1, report=lambda _event, _facts: None, rng=random.Random(1)
        )
        try:
            await system.start()
            await scenario(system)
        finally:
            if kill:
                await system.checkpointer.stop()
                for destager in system.destagers.values():
                    await destager.stop()
                system.close()
            else:
                await system.stop()

    asyncio.run(run())


async def _create(system: StorageSystem) -> None:
    system.create_disk("d", f"{system.settings.data_directory}/disks/d.img", 2 * _SIZE)
    system.create_pool("p", ["d"])
    system.create_group("g")
    system.create_volume("v", _SIZE, pool="p", group="g")


async def _fill(system: StorageSystem) -> None:
    await _create(system)
    for number in range(_WRITES):
        put(system, "v", number * _LENGTH, bytes([number + 1]) * _LENGTH)
    await system.groups["g"].make_durable()


async def _is_whole(system: StorageSystem) -> None:
    assert system.groups["g"].describe_fault() is None
    assert await content(system, "v") == _image()


def _segment(directory: Path) -> Path:
    """The segment with the records."""
    return max((directory / "journals").rglob("*.seg"), key=lambda path: path.read_bytes().count(MAGIC_BYTES))


@pytest.mark.parametrize("wanted", [1, _WRITES // 2, _WRITES - 1])
def test_flipped_bit_in_a_record_holds_the_group_when_only_the_process_died(tmp_path: Path, wanted: int) -> None:
    _life(tmp_path, _fill)
    segment = _segment(tmp_path)
    data = bytearray(segment.read_bytes())
    position = -1
    for _ in range(wanted):
        position = data.index(MAGIC_BYTES, position + 1)
    data[position + HEADER_SIZE + 5] ^= 4
    segment.write_bytes(data)

    async def is_held(system: StorageSystem) -> None:
        fault = system.groups["g"].describe_fault()
        assert fault is not None
        assert f"record {wanted} is damaged" in fault

    _life(tmp_path, is_held)
    data[position + HEADER_SIZE + 5] ^= 4
    segment.write_bytes(data)
    _life(tmp_path, _is_whole)


@pytest.mark.parametrize("boot", ["this one", "another one"])
def test_flipped_bit_in_a_record_holds_a_secondary_too(tmp_path: Path, boot: str) -> None:
    async def receive(system: StorageSystem) -> None:
        await _create(system)
        group, volume = system.groups["g"], system.volume("v")

        def become_secondary() -> list[Group]:
            restart(
                group, role=Role.SECONDARY, generation=77, last_seq=0, last_origin=0, last_time=0, numbered_here=False
            )
            return [group]

        await system.checkpointer.checkpoint(become_secondary)
        for number in range(1, _WRITES + 1):
            data = memoryview(bytes([number]) * _LENGTH)
            header = encode_header(
                Kind.WRITE,
                sequence=number,
                time=number,
                generation=77,
                incarnation=5,
                volume=volume.key,
                offset=(number - 1) * _LENGTH,
                length=_LENGTH,
                data_crc=crc32c(data),
            )
            entry = Entry(number, number, int(Kind.WRITE), volume.key, (number - 1) * _LENGTH, _LENGTH, 0, data)
            group.append_received(header + data, [entry])
            await group.make_durable()

    async def is_held(system: StorageSystem) -> None:
        assert "record 20 is damaged" in (system.groups["g"].describe_fault() or "")

    async def is_sound(system: StorageSystem) -> None:
        assert system.groups["g"].describe_fault() is None
        assert system.groups["g"].last_seq == _WRITES

    _life(tmp_path, receive)
    segment = _segment(tmp_path)
    data = bytearray(segment.read_bytes())
    position = data.index(bytes([20]) * _LENGTH)
    data[position] ^= 1
    segment.write_bytes(data)
    _life(tmp_path, is_held, boot=boot)
    data[position] ^= 1
    segment.write_bytes(data)
    _life(tmp_path, is_sound, boot=boot)


def test_segment_cut_short_holds_the_group(tmp_path: Path) -> None:
    _life(tmp_path, _fill)
    segment = _segment(tmp_path)
    data = segment.read_bytes()
    segment.write_bytes(data[: 128 << 10])

    async def is_held(system: StorageSystem) -> None:
        assert "131072 bytes, it had" in (system.groups["g"].describe_fault() or "")

    _life(tmp_path, is_held)
    segment.write_bytes(data)
    _life(tmp_path, _is_whole)


def test_records_behind_the_end_are_normal_after_a_power_cut(tmp_path: Path) -> None:
    _life(tmp_path, _create)

    async def fill_unsynced(system: StorageSystem) -> None:
        for number in range(_WRITES):
            put(system, "v", number * _LENGTH, bytes([number + 1]) * _LENGTH)

    _life(tmp_path, fill_unsynced)
    segment = _segment(tmp_path)
    data = bytearray(segment.read_bytes())
    position = [at for at in range(0, len(data), 16) if data[at : at + 4] == MAGIC_BYTES][20]
    data[position : position + HEADER_SIZE] = bytes(HEADER_SIZE)
    segment.write_bytes(data)

    async def is_cut(system: StorageSystem) -> None:
        assert system.groups["g"].describe_fault() is None
        assert (await content(system, "v"))[: 20 * _LENGTH] == _image()[: 20 * _LENGTH]

    _life(tmp_path, is_cut, boot="another one")


def test_disk_that_shrinks_while_in_use_gives_an_error_and_not_zeros(tmp_path: Path) -> None:
    async def shrink(system: StorageSystem) -> None:
        await _fill(system)
        await system.checkpointer.checkpoint()
        (tmp_path / "disks/d.img").write_bytes(b"")
        with pytest.raises(DiskFailed, match="the file ends at byte 0"):
            await content(system, "v")

    _life(tmp_path, shrink)


def _flip_in(directory: Path, table: str, column: str) -> None:
    """Change one byte of the first row's ``column``."""
    with sqlite3.connect(directory / "catalogue.sqlite") as database:
        row, value = database.execute(f"SELECT rowid, {column} FROM {table}").fetchone()
        data = bytearray(value.encode() if isinstance(value, str) else value)
        data[len(data) // 2] ^= 1
        changed = data.decode() if isinstance(value, str) else bytes(data)
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, row))
    database.close()


async def _nothing(system: StorageSystem) -> None:
    return


@pytest.mark.parametrize(("table", "column"), [("map_pages", "entries"), ("documents", "document"), ("facts", "value")])
def test_changed_byte_in_the_catalogue_is_found(tmp_path: Path, table: str, column: str) -> None:
    _life(tmp_path, _fill, kill=False)
    _flip_in(tmp_path, table, column)
    with pytest.raises(Corrupt, match="checksum is wrong"):
        _life(tmp_path, _nothing)


@pytest.mark.parametrize("value", [7, 1.5, b"[]", "[]"], ids=["integer", "real", "blob", "text"])
@pytest.mark.parametrize(("table", "column"), [("map_pages", "entries"), ("documents", "document"), ("facts", "value")])
def test_value_of_another_type_in_the_catalogue_is_damage(
    tmp_path: Path, table: str, column: str, value: float | bytes | str
) -> None:
    _life(tmp_path, _fill, kill=False)
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as database:
        database.execute(f"UPDATE {table} SET {column} = ?", (value,))
    database.close()
    with pytest.raises(Corrupt):
        _life(tmp_path, _nothing)


def test_damage_in_the_catalogue_that_its_own_error_cannot_name_is_damage(tmp_path: Path) -> None:
    _life(tmp_path, _fill, kill=False)
    path = tmp_path / "catalogue.sqlite"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tabledocumentsdocuments", b"table\x88ocumentsdocuments"))
    with pytest.raises(Corrupt, match="not a usable catalogue"):
        _life(tmp_path, _nothing)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_to_the_catalogue_file_ends_in_one_clear_error_or_in_nothing(tmp_path: Path, seed: int) -> None:
    _life(tmp_path, _fill, kill=False)
    rng = random.Random(seed)
    path = tmp_path / "catalogue.sqlite"
    data = bytearray(path.read_bytes())
    for _ in range(4):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(Corrupt, DiskFailed):
        _life(tmp_path, _is_whole)


@pytest.mark.parametrize("how", ["deleted", "without its log"])
def test_lost_catalogue_is_not_taken_for_a_new_controller(tmp_path: Path, how: str) -> None:
    data = tmp_path / "data"
    data.mkdir()

    async def fill_and_copy(system: StorageSystem) -> None:
        await _fill(system)
        shutil.copytree(data, tmp_path / "copy")

    _life(data, fill_and_copy)
    copy = tmp_path / "copy"
    for path in copy.glob("catalogue.sqlite*"):
        if how == "deleted" or path.suffix != ".sqlite":
            path.unlink()
    for _ in range(2):
        with pytest.raises(Corrupt, match="catalogue is missing or empty"):
            _life(copy, _nothing)


def test_data_directory_of_another_controller_is_not_touched(tmp_path: Path) -> None:
    _life(tmp_path, _fill)
    with pytest.raises(Conflict, match=r"belongs to controller C \(serial 1\), this is A \(serial 2\)"):
        _life(tmp_path, _nothing, owner="A (serial 2)")
    _life(tmp_path, _is_whole)
