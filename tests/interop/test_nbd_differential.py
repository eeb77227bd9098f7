"""The same random requests to this server and to others: equal bytes and equal errors, but for what is listed here.

Owns: what others do differently (`excused`).
Never: compares what the protocol leaves open: contents after a TRIM (so each is followed by zeroes), and the extents of
a BLOCK_STATUS, which are checked against the contents instead.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.interop.nbd_served import MIB, NbdServed
from tests.interop.raw_client import RawClient, Style
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.client import Reply

SIZE = MIB


class Sent(NamedTuple):
    """One request, with ``data`` for a WRITE."""

    command: int
    offset: int
    length: int
    flags: int
    data: bytes | None


def random_request(rng: random.Random) -> Sent:
    """Return any request: mostly sound ones, at any alignment."""
    offset = rng.choice(
        [rng.randrange(SIZE), rng.randrange(256) * 4096, rng.randrange(2048) * 512, SIZE - rng.randrange(9000), SIZE, 0]
    )
    length = rng.choice([1, 7, 511, 512, 513, 4096, 4097, 10_000, 65_536, 65_537, 200_000, rng.randrange(1, 300_000)])
    if rng.random() < 0.7:
        length = min(length, max(1, SIZE - offset))
    elif rng.random() < 0.2:
        offset = rng.choice([1 << 40, (1 << 63) - 512, SIZE + 1])
    command = rng.choice(
        [client.READ] * 4 + [client.WRITE] * 4 + [client.FLUSH, client.TRIM, client.ZEROES, client.ZEROES]
        + [client.STATUS, client.CACHE, rng.choice([9, 77, 0xFFFF])]
    )  # fmt: skip
    if command == client.FLUSH:
        offset = length = 0
    flags = rng.choice([0, 0, 0, client.FUA, 1 << rng.randrange(5), 1 << rng.choice([6, 9, 15]), rng.randrange(32)])
    data = rng.randbytes(length) if command == client.WRITE else None
    return Sent(command, offset, length, flags, data)


def excused(server: str, sent: Sent, ours: int, theirs: int) -> bool:
    """Whether another server may answer otherwise.

    Only changes beyond the end differ, where the document wants ENOSPC (and EINVAL for unknown flags): qemu-nbd answers
    EINVAL, and nbdkit looks at the range before the flags.
    """
    if sent.command not in (client.WRITE, client.ZEROES) or sent.offset + sent.length <= SIZE:
        return False
    errors = (client.ENOSPC, client.EINVAL) if server == "qemu-nbd" else (client.EINVAL, client.ENOSPC)
    return (ours, theirs) == errors


class Party:
    """One server in the comparison."""

    def __init__(self, name: str, raw: RawClient) -> None:
        self.name = name
        self.raw = raw

    def ask(self, sent: Sent) -> Reply:
        """Ask, and check what can be checked without the others."""
        reply = self.raw.ask(*sent)
        if sent.command == client.ZEROES and reply.error == client.ENOTSUP:
            assert sent.flags & client.FAST_ZERO, "only a fast zero may be refused as slow"
            reply = self.raw.ask(*sent._replace(flags=sent.flags & ~client.FAST_ZERO))
        if sent.command == client.TRIM and not reply.error:
            assert not self.raw.ask(client.ZEROES, sent.offset, sent.length).error
        if sent.command == client.STATUS and not reply.error:
            self._check_status(sent, reply)
        return reply

    def _check_status(self, sent: Sent, reply: Reply) -> None:
        (extents,) = reply.status.values()
        assert all(length > 0 for length, _ in extents)
        assert sum(length for length, _ in extents[:-1]) < sent.length
        if sent.flags & client.REQ_ONE:
            ((length, _),) = extents
            assert length <= sent.length
        position = sent.offset
        for length, state in extents:
            assert position + length <= SIZE
            if state & 2:
                zeros = self.raw.ask(client.READ, position, length)
                assert zeros.content() == bytes(length), "an extent that reads as zeros does not"
            position += length


@contextlib.contextmanager
def another(path: Path, *command: str) -> Iterator[None]:
    """Run a server until its socket at ``path`` takes connections, and end it at last."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while not _listens(path):
                assert process.poll() is None
                time.sleep(0.01)
            yield
        finally:
            process.kill()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture(params=["nbdkit", "qemu-nbd"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Name and socket of another server, on zeros."""
    path = tmp_path / "other.sock"
    command = ["nbdkit", "--foreground", "--unix", str(path), "memory", str(SIZE)]
    if request.param == "qemu-nbd":
        image = tmp_path / "image"
        image.write_bytes(b"")
        with image.open("r+b") as file:
            file.truncate(SIZE)
        command = ["qemu-nbd", "--persistent", "--format=raw", "--shared=4", f"--socket={path}", str(image)]
    with another(path, *command):
        yield request.param, path


@pytest.mark.parametrize("style", ["simple", "structured", "extended"])
@pytest.mark.parametrize("seed", [1, 2])
def test_bytes_and_errors_are_those_of_other_servers(
    nbd_shared: NbdServed, reference: tuple[str, Path], style: Style, seed: int
) -> None:
    name, path = reference
    contexts = () if style == "simple" else ("base:allocation",)
    rng = random.Random(seed)
    seen = set()
    # Others do not know extended headers; what they do with structured replies is what counts.
    with (
        RawClient(nbd_shared.socket, "small", style, *contexts) as raw,
        RawClient(path, "", "structured" if contexts else "simple", *contexts) as other_raw,
    ):
        ours, other = Party("ours", raw), Party(name, other_raw)
        assert raw.size == other_raw.size == SIZE
        assert not ours.ask(Sent(client.ZEROES, 0, SIZE, 0, None)).error
        for number in range(600):
            sent = random_request(rng)
            mine, theirs = ours.ask(sent), other.ask(sent)
            seen.add((sent.command, mine.error))
            shown = (number, sent[:4], mine.error, mine.text, theirs.error, theirs.text)
            assert mine.error == theirs.error or excused(name, sent, mine.error, theirs.error), shown
            if sent.command == client.READ and not mine.error:
                assert mine.content() == theirs.content(), shown
        everything = Sent(client.READ, 0, SIZE, 0, None)
        assert ours.ask(everything).content() == other.ask(everything).content()
    served = set(client.EVERY) - (set() if contexts else {client.STATUS})
    assert seen >= {(command, 0) for command in served} | {(command, client.EINVAL) for command in client.EVERY}
    assert seen >= {(client.WRITE, client.ENOSPC), (client.ZEROES, client.ENOSPC), (77, client.EINVAL)}
