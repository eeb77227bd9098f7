"""A data directory with any damage: the controller starts on it or refuses, and shows nothing that was never there.

Files of journals, the catalogue, the disk: bits flipped, cut, zeroed, swapped, doubled, lost, or from an older copy of
the directory or from another controller's. A start ends, or it is refused with one line (what `daemon.run` catches).
Then a group is held and gives errors, or its volumes are as they were behind one of its writes, all of them behind the
same one. Nothing that a checkpoint knew is missing, unless the catalogue was touched; one bit costs the last write at
most; a group whose files are sound has everything (I8, I10). Disks carry no checksums, so with a changed one only the
start counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controllerd.model.errors import RemoteCopyError
from controllerd.replication.pairs import PairManager
from controllerd.replication.settings import ReplicationSettings
from controllerd.storage.io import SystemFiles
from controllerd.storage.settings import StorageSettings
from controllerd.storage.system import StorageSystem
from tests.fuzz.source import Source
from tests.simulation.world import small_pieces

_BLOCK: Final = 4096
_SIZE: Final = 8 * _BLOCK
_VOLUMES: Final = {"g1": ("a", "b"), "g2": ("c",)}
_OWNER: Final = "A (serial 1)"
_FRAME_BYTES: Final = 8 << 10
_BOOT: Final = "this run of the machine"
_CATALOGUE: Final = "catalogue.sqlite"
_DISK: Final = "disk.img"

Image = tuple[bytes, ...]
"""What all volumes of a group show."""


@dataclass(frozen=True)
class _Copy:
    """A directory as a kill left it. ``images``: of each group, behind each of its writes.

    ``destaged``: how many of them the last checkpoint knew; ``folders``: where the groups' journals are.
    """

    files: dict[str, bytes]
    images: dict[str, list[Image]]
    destaged: dict[str, int]
    folders: dict[str, str]


@dataclass(frozen=True)
class _Damage:
    """``touched``: files that are not as they were; ``bit``: in one bit only. ``boot``: in which run of the machine."""

    touched: set[str]
    bit: bool
    boot: str


def run(data: bytes) -> None:
    """Start on what ``data`` makes of the directory."""
    place = Path(_scratch().name) / "data"
    with small_pieces(_FRAME_BYTES):
        older, newer, foreign = _copies(place)
        files, damage = _damaged(Source(data), older, newer, foreign)
        _put(place, files)
        asyncio.run(_run(place, newer, damage))


async def _run(place: Path, newer: _Copy, damage: _Damage) -> None:
    shown: dict[str, Image | None] = {}
    try:
        async with _system(place, _OWNER, 1, damage.boot) as system:
            for name in _VOLUMES:
                shown[name] = await _image(system, name)
                _judge(name, shown[name], newer, damage)
            await _write_on(system, shown)
    except (RemoteCopyError, OSError) as error:
        text = str(error)
        if text and "\n" not in text and damage.touched:
            return
        raise
    # What was shown once, and written since, is there again (I20).
    async with _system(place, _OWNER, 2, damage.boot) as system:
        for name, image in shown.items():
            assert await _image(system, name) == image, f"{name} is not the same after another start"


def _judge(name: str, image: Image | None, newer: _Copy, damage: _Damage) -> None:
    touched = damage.touched
    if _DISK in touched:
        return
    if image is None:
        assert touched, f"{name} is held, and nothing was touched"
        return
    known = newer.images[name]
    assert image in known, f"{name} shows what never was; {touched}"
    if any(path.startswith(_CATALOGUE) for path in touched):
        return
    assert image in known[newer.destaged[name] :], f"{name} shows less than the last checkpoint had; {touched}"
    if damage.bit and damage.boot == _BOOT:
        assert image in known[-2:], f"{name} lost more than the last write; {touched}"
    if not any(path.startswith(newer.folders[name]) for path in touched):
        assert image == known[-1], f"{name} lost something, and its files are sound; {touched}"


async def _image(system: StorageSystem, name: str) -> Image | None:
    """None: the group is held."""
    if name not in system.groups:
        return None
    found = []
    for volume in _VOLUMES[name]:
        buffer = bytearray(_SIZE)
        if volume not in system.volumes:
            return None
        try:
            await system.volumes[volume].read(memoryview(buffer), 0)
        except RemoteCopyError:
            return None
        found.append(bytes(buffer))
    return tuple(found)


async def _write_on(system: StorageSystem, shown: dict[str, Image | None]) -> None:
    for name, image in shown.items():
        if image is None:
            continue
        group, volume = system.groups[name], system.volumes[_VOLUMES[name][0]]
        data = b"new " * (_BLOCK // 4)
        try:
            group.stage_write(volume, _BLOCK, memoryview(data), None)
            group.commit()
            await group.make_durable()
        except RemoteCopyError:  # it may say that it takes no writes, but not lose one
            shown[name] = await _image(system, name)
            continue
        first = image[0]
        shown[name] = (first[:_BLOCK] + data + first[2 * _BLOCK :], *image[1:])


# ---- damage -----------------------------------------------------------------------------


def _damaged(source: Source, older: _Copy, newer: _Copy, foreign: _Copy) -> tuple[dict[str, bytes], _Damage]:
    """The newer copy's files, changed, and what became of them."""
    files = dict(newer.files)
    count, boot = source.number(1) % 5, source.pick((_BOOT, "another"))
    for _ in range(count):
        paths = sorted(files)
        # Journals are what most of the checks are about.
        journals = [path for path in paths if path.startswith("journals/")]
        path = source.pick(source.pick((paths, journals, journals)) or paths)
        _damage(source, files, path, source.pick((older, older, foreign)))
    touched = {path for path in {*files, *newer.files} if files.get(path) != newer.files.get(path)}
    bit = count == 1 and len(touched) == 1 and _one_bit(newer.files, files, *touched)
    return files, _Damage(touched, bit, boot)


def _one_bit(before: dict[str, bytes], after: dict[str, bytes], path: str) -> bool:
    if path not in before or path not in after or len(before[path]) != len(after[path]):
        return False
    changed = int.from_bytes(before[path], "big") ^ int.from_bytes(after[path], "big")
    return changed.bit_count() == 1


def _damage(source: Source, files: dict[str, bytes], path: str, other: _Copy) -> None:
    content = bytearray(files[path])
    place = source.number(3) % (len(content) + 1)
    match source.number(1) % 10:
        case 0 | 1:
            if content:
                content[place % len(content)] ^= 1 << source.number(1) % 8
            files[path] = bytes(content)
        case 2:
            files[path] = bytes(content[:place])
        case 3:
            begin, size = place & ~511, source.pick((512, 4096, 65536))
            end = min(begin + size, len(content))
            content[begin:end] = bytes(end - begin)
            files[path] = bytes(content)
        case 4:
            source_place = source.number(3) % (len(content) + 1) & ~511  # as a write that went elsewhere
            piece = content[source_place : source_place + 4096]
            content[place & ~511 : (place & ~511) + len(piece)] = piece
            files[path] = bytes(content)
        case 5:
            second = source.pick(sorted(files))
            files[path], files[second] = files[second], files[path]
        case 6:
            folder, _, name = path.rpartition("/")
            files[f"{folder}/{source.pick(('00000001.seg', '00000099.seg', 'x' + name, name + '~'))}"] = files[path]
        case 7:
            del files[path]
        case 8:
            if path in other.files:
                files[path] = other.files[path]
        case _:
            folder = path.rpartition("/")[0] + "/"
            for name in [name for name in files if name.startswith(folder)]:
                del files[name]
            files.update({name: found for name, found in other.files.items() if name.startswith(folder)})


# ---- directories ---------------------------------------------------------------------------


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rc-fuzz-")


@functools.cache
def _copies(place: Path) -> tuple[_Copy, _Copy, _Copy]:
    """An older and a newer copy of a controller's directory, and one of another controller's."""
    older, newer = asyncio.run(_make(place, _OWNER, 1))
    return older, newer, asyncio.run(_make(place, "B (serial 2)", 2))[1]


async def _make(place: Path, owner: str, seed: int) -> tuple[_Copy, _Copy]:
    rng = random.Random(seed)
    _put(place, {})
    async with _system(place, owner, seed, _BOOT, kill=True) as system:
        system.create_disk("d", str(place / _DISK), 512 << 10)
        system.create_pool("p", ["d"])
        images: dict[str, list[Image]] = {}
        for name, volumes in _VOLUMES.items():
            system.create_group(name)
            images[name] = [tuple(bytes(_SIZE) for _ in volumes)]
            for volume in volumes:
                system.create_volume(volume, _SIZE, pool="p", group=name)
        folders = {name: f"journals/{group.facts.group_id:06d}/" for name, group in system.groups.items()}
        await _write(system, rng, images, 40)
        await system.checkpointer.checkpoint()
        await _write(system, rng, images, 20)
        older = _Copy(_get(place), {}, {}, folders)
        await system.checkpointer.checkpoint()
        destaged = {name: len(known) - 1 for name, known in images.items()}
        await _write(system, rng, images, 50)
        return older, _Copy(_get(place), images, destaged, folders)


async def _write(system: StorageSystem, rng: random.Random, images: dict[str, list[Image]], count: int) -> None:
    for _ in range(count):
        name = rng.choice(sorted(_VOLUMES))
        number = rng.randrange(len(_VOLUMES[name]))
        volume, group = system.volumes[_VOLUMES[name][number]], system.groups[name]
        offset, data = _BLOCK * rng.randrange(_SIZE // _BLOCK), rng.randbytes(_BLOCK)
        image = [bytearray(each) for each in images[name][-1]]
        if rng.random() < 0.15:
            group.stage_zeroes(volume, offset, _BLOCK, trim=True, carried=None)
            data = bytes(_BLOCK)
        else:
            group.stage_write(volume, offset, memoryview(data), None)
        group.commit()
        image[number][offset : offset + _BLOCK] = data
        images[name].append(tuple(bytes(each) for each in image))
    for group in system.groups.values():
        await group.make_durable()


@contextlib.asynccontextmanager
async def _system(place: Path, owner: str, seed: int, boot: str, *, kill: bool = False) -> AsyncIterator[StorageSystem]:
    """The controller's storage and pairs on the directory, as the daemon starts them; to be stopped, or killed."""
    files = SystemFiles(threads=1)
    settings = StorageSettings(
        str(place), owner=owner, boot=boot, cache_bytes=1 << 20, journal_bytes=6 * (96 << 10), segment_bytes=96 << 10,
        tail_bytes=64 << 10, pending_bytes=64 << 10, region_bytes=8 << 10, max_request_bytes=16 << 10,
        checkpoint_interval_s=3600.0, destage_age_s=3600.0,
    )  # fmt: skip
    system: StorageSystem | None = None
    try:
        system = StorageSystem(
            settings, files, clock=lambda: 1_700_000_000_000_000_000, report=lambda *_: None, rng=random.Random(seed)
        )
        await system.start()
        pairs = PairManager(
            system, ReplicationSettings(owner, 1), clock=system.clock, rng=random.Random(seed), report=lambda *_: None
        )
        pairs.load()
        await pairs.start()
        try:
            yield system
        finally:
            await pairs.stop()
            if kill:
                await system.checkpointer.stop()
                for name in system.groups:
                    await system.stop_background(name)
            else:
                await system.stop()
                system = None
    finally:
        if system is not None:
            system.close()
        files.close()


def _put(place: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _get(place: Path) -> dict[str, bytes]:
    """All files, as a kill would leave them."""
    found = sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in found}
