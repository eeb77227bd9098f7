"""Public NBD servers to compare with, each as its own documentation says it is fast: files in the page cache.

Owns: their command lines.
Never: measures, or favours one side: same volume size, UNIX sockets, no TLS, no cache bypass.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from deploy.demo.processes import Process, ProgramFailed
from tests.bench.qmp import Qmp
from tests.bench.subject import LOOPBACK, Endpoint, Subject, copy_image, unix_uri

_MIRROR_READY_LIMIT_S = 300.0


def _qemu_nbd(image: Path, where: Endpoint, log: Path) -> Process:
    listen = [f"--socket={where.path}"] if where.port is None else [f"--bind={LOOPBACK}", f"--port={where.port}"]
    process = Process(
        ["qemu-nbd", "--format=raw", "--cache=writeback", "--aio=threads", "--persistent", "--shared=16",
         *listen, image],
        log,
    )  # fmt: skip
    process.wait_until_it_listens(where.address)
    return process


class QemuNbd(Subject):
    """qemu-nbd on a raw file."""

    name = "qemu-nbd"

    def start(self, directory: Path, image: Path) -> str:
        where = Endpoint(directory, tcp=self.tcp)
        copy = copy_image(image, directory / "image")
        self.processes.append(_qemu_nbd(copy, where, directory / "log"))
        return where.uri()


class NbdkitFile(Subject):
    """nbdkit's file plugin."""

    name = "nbdkit file"

    def start(self, directory: Path, image: Path) -> str:
        where = Endpoint(directory, tcp=self.tcp)
        copy = copy_image(image, directory / "image")
        listen = ["--unix", where.path] if where.port is None else [f"--ipaddr={LOOPBACK}", f"--port={where.port}"]
        process = Process(["nbdkit", "--foreground", *listen, "file", copy], directory / "log")
        self.processes.append(process)
        process.wait_until_it_listens(where.address)
        return where.uri()


class QemuMirror(Subject):
    """qemu-storage-daemon with a ``blockdev-mirror`` job to a second NBD server (qemu-nbd).

    copy_mode: ``background`` acknowledges before the copy is written, ``write-blocking`` after it.
    """

    copies = True

    def __init__(self, copy_mode: Literal["background", "write-blocking"]) -> None:
        super().__init__()
        self.name = f"qemu mirror, {copy_mode}"
        self._copy_mode = copy_mode
        self._qmp: Qmp | None = None

    def start(self, directory: Path, image: Path) -> str:
        source = copy_image(image, directory / "source")
        target = directory / "target"
        with target.open("wb") as file:
            file.truncate(source.stat().st_size)
        (directory / "target.d").mkdir()
        copied_to = Endpoint(directory / "target.d", tcp=False)
        socket_path, control = directory / "nbd.sock", directory / "qmp.sock"
        self.processes.append(_qemu_nbd(target, copied_to, directory / "target.log"))
        process = Process(
            [
                "qemu-storage-daemon",
                f"--blockdev=driver=file,node-name=source,filename={source}",
                f"--blockdev=driver=nbd,node-name=target,server.type=unix,server.path={copied_to.path}",
                f"--chardev=socket,id=control,path={control},server=on,wait=off",
                "--monitor=chardev=control",
                f"--nbd-server=addr.type=unix,addr.path={socket_path},max-connections=16",
                "--export=type=nbd,id=export,node-name=source,name=,writable=on",
            ],
            directory / "source.log",
        )
        self.processes.append(process)
        process.wait_until_it_listens(socket_path)
        process.wait_until_it_listens(control)
        self._qmp = Qmp(control)
        # The target is written in full first, like the other servers' images, so that all of them have all blocks.
        self._qmp.order(
            "blockdev-mirror", job_id="mirror", device="source", target="target", sync="full", copy_mode=self._copy_mode
        )
        deadline = time.monotonic() + _MIRROR_READY_LIMIT_S
        while not self._job()["ready"]:
            process.check()
            if time.monotonic() > deadline:
                raise ProgramFailed(f"the mirror job is not ready after {_MIRROR_READY_LIMIT_S:.0f} s")
            time.sleep(0.1)
        return unix_uri(socket_path)

    def settle(self) -> None:
        """Wait until the copy has caught up: ``len`` grows with what is to be copied, ``offset`` with what was."""
        deadline = time.monotonic() + _MIRROR_READY_LIMIT_S
        while (job := self._job())["offset"] < job["len"]:
            if time.monotonic() > deadline:
                raise ProgramFailed(f"the mirror job did not catch up in {_MIRROR_READY_LIMIT_S:.0f} s")
            time.sleep(0.1)

    def stop(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        super().stop()

    def _job(self) -> dict[str, int]:
        assert self._qmp is not None
        jobs: list[dict[str, int]] = self._qmp.order("query-block-jobs")
        if not jobs:
            raise ProgramFailed("the mirror job has ended")
        return jobs[0]
