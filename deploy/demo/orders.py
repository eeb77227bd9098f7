"""Orders to controllers, given as an administrator gives them: by running ``mgmtctl``.

Owns: running the program and showing what was run. Never: speaks HTTP, or guesses at what an answer means.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from deploy.demo.processes import run


class Orders:
    """``mgmtctl`` with the client file ``config``, which names the controllers."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def show(self, *words: str) -> None:
        """Carry out an order; print it as it would be typed, and what it answers. Raises ProgramFailed."""
        print(f"  $ mgmtctl {shlex.join(words)}", flush=True)
        for line in self._run(words).splitlines():
            print(f"    {line}", flush=True)

    def ask(self, *words: str) -> Any:
        """Carry out an order silently and return its ``--json`` answer. Raises ProgramFailed."""
        return json.loads(self._run((*words, "--json")))

    def _run(self, words: tuple[str, ...]) -> str:
        return run(sys.executable, "-m", "mgmtctl", "--config", self._config, *words).output
