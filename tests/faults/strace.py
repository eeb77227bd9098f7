"""Makes system calls of a running process fail, or kills it at one, with strace.

Owns: attaching, and whether the call was reached.
Never: starts the process or waits for its end; it is left running when this is closed.

What a reader would get wrong: calls are counted from the moment of attaching, for each thread and each kind of call
by itself. A call that is made to fail does not take place.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

DETACH_LIMIT_S = 20.0
_CALL = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)
"""A line of strace's log that begins a call: thread, name."""


class Injection:
    """``what``: strace's words behind the calls, such as ``signal=KILL:when=3`` or ``error=EIO:when=2``."""

    def __init__(self, pid: int, calls: str, what: str, log: Path, paths: tuple[Path, ...] = ()) -> None:
        self._log = log
        log.unlink(missing_ok=True)
        only = [word for path in paths for word in ("-P", str(path))]
        words = ["strace", "-f", "-p", str(pid), "-o", str(log), *only, "-e", f"trace={calls}", "-e", "signal=none"]
        self._strace = subprocess.Popen(
            [*words, "-e", f"inject={calls}:{what}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._strace.stderr is not None
        line = self._strace.stderr.readline()  # "strace: Process N attached ..."
        assert "attached" in line, f"strace cannot attach: {line}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)  # it detaches
        try:
            self._strace.communicate(timeout=DETACH_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._strace.kill()
            self._strace.communicate()

    @property
    def made(self) -> int:
        """How often a thread made the same call so far, of the thread and call with most: `when` counts up to here."""
        return max(Counter(_CALL.findall(self._text())).values(), default=0)

    @property
    def hits(self) -> int:
        """How many calls were made to fail so far."""
        return self._text().count("(INJECTED)")

    def _text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""
