"""The small virtual machine with a real kernel's block clients, and the places in its scripts where a test acts.

Owns: finding and running the program ``guestvm``, and handing control to the test at a script's marks.
Never: knows what is served to the guest.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]


def find_guestvm() -> Path:
    """Path of guestvm: ``$GUESTVM``, or in ``shared`` beside the repository.

    A test that calls this is skipped where there is none, or where it says that packages are missing; in CI that is a
    failure, because there everything is to be installed.
    """
    program = Path(os.environ.get("GUESTVM") or _REPOSITORY.parent / "shared/tools/guestvm/guestvm")
    if not program.is_file():
        _cannot_run(f"there is no guestvm at {program}; name it in the environment variable GUESTVM")
    check = subprocess.run([program, "deps", "--check"], capture_output=True, text=True, check=False)
    if check.returncode != 0:
        _cannot_run(check.stderr.strip())
    return program


def _cannot_run(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class GuestResult:
    """status: the script's exit status, or guestvm's own 124 (time limit) and 125 (no status); -9 after a power cut.

    console: all output.
    """

    status: int
    console: str


async def run_in_guest(
    script: Path,
    directory: Path,
    variables: Mapping[str, str],
    marks: Mapping[str, Callable[[], Awaitable[None]]],
    limit_s: int = 240,
    files: Sequence[Path] = (),
    power_cut: Callable[[str], bool] = lambda _: False,
) -> GuestResult:
    """Run ``script`` in a guest; where it says ``guest-mark NAME``, await ``marks[NAME]()`` while it waits.

    A function that raises makes guest-mark fail in the script, and its exception is raised here once the guest has
    ended. ``directory`` takes the pipes for that. ``variables`` are set in the script's environment; ``files`` lie in
    the guest's /guest. The machine is killed as soon as ``power_cut`` is true of what the console has shown so far.
    """
    arguments = ["run", "--timeout", str(limit_s)]
    for name, value in variables.items():
        arguments += ["-e", f"{name}={value}"]
    for file in files:
        arguments += ["--file", str(file)]
    servers = []
    failures: list[Exception] = []
    for name, act in marks.items():
        path = directory / f"mark-{name}"
        servers.append(await asyncio.start_unix_server(_answer_with(act, failures), path))
        ask = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.exit(s.recv(1) != b'1')"
        )
        arguments += ["--on", f"{name}={shlex.join(['/usr/bin/python3', '-c', ask, str(path)])}"]
    guest = await asyncio.create_subprocess_exec(
        find_guestvm(),
        *arguments,
        script,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert guest.stdout is not None
        output = b""
        while piece := await guest.stdout.read(1 << 16):
            output += piece
            if guest.returncode is None and power_cut(output.decode(errors="replace")):
                guest.kill()  # and with it the virtual machine
        await guest.wait()
    finally:
        if guest.returncode is None:
            guest.terminate()
            await guest.wait()
        for server in servers:
            server.close()
            await server.wait_closed()
    if failures:
        raise failures[0]
    assert guest.returncode is not None
    return GuestResult(guest.returncode, output.decode(errors="replace"))


def _answer_with(
    act: Callable[[], Awaitable[None]], failures: list[Exception]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await act()
        except Exception as error:  # reported by the test itself, once the guest has ended
            failures.append(error)
        else:
            writer.write(b"1")
        finally:
            writer.close()
            await writer.wait_closed()

    return answer
