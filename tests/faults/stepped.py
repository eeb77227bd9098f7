"""A controller daemon that kills itself (SIGKILL) at the k-th pass of a named step: `python -m tests.faults.stepped`.

    python -m tests.faults.stepped BOARD --config c.toml

Owns: wrapping the functions that `tests.faults.steps` names, and the board: a small file, mapped by the daemon and by
the test, with the counters of all steps and the step to die at, which the test may choose while the daemon runs.
Never: changes anything else; behind it is `controllerd.__main__.main`.

What a reader would get wrong: a kill is one shot, so that a daemon that is started again with the same board lives.
"Before" is before the function's first instruction, "after" is when it has returned without an error.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

from tests.faults.steps import NAMES

PACKAGE: Final = "controllerd"
_STEP, _THRESHOLD, _COUNTERS = 0, 1, 2
_SIZE: Final = 4 * (_COUNTERS + 2 * len(NAMES))


class Step(NamedTuple):
    """The moment ``when`` at the function ``name`` of `tests.faults.steps`."""

    name: str
    when: Literal["before", "after"]

    def __str__(self) -> str:
        return f"{self.when} {self.name}"

    @property
    def slot(self) -> int:
        """Its number on the board, from 1 on."""
        return 1 + 2 * NAMES.index(self.name) + (self.when == "after")


class Board:
    """What test and daemon tell each other: u32 words in the machine's byte order: armed step, threshold, counters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._words = memoryview(mmap.mmap(file.fileno(), _SIZE)).cast("I")

    def arm(self, step: Step, k: int) -> None:
        """Let the daemon die at the k-th pass of ``step`` from now on."""
        self._words[_STEP] = 0
        self._words[_THRESHOLD] = self.passes(step) + k
        self._words[_STEP] = step.slot

    def disarm(self) -> None:
        """Let it live."""
        self._words[_STEP] = 0

    @property
    def armed(self) -> bool:
        """Whether the kill is still to come."""
        return self._words[_STEP] != 0

    def passes(self, step: Step) -> int:
        """How often all daemons on this board have passed ``step``."""
        return self._words[_COUNTERS + step.slot - 1]

    def passed(self, slot: int) -> None:
        """The daemon: count a pass, and die of it if that is wanted."""
        words = self._words
        index = _COUNTERS + slot - 1
        words[index] += 1
        if words[_STEP] == slot and words[index] >= words[_THRESHOLD]:
            words[_STEP] = 0
            os.kill(os.getpid(), signal.SIGKILL)


def find(name: str) -> tuple[Any, str, Callable[..., Any]]:
    """Where the function ``name`` ("storage.journal:Journal.append") is: its owner, attribute and the function itself.

    Raises:
        LookupError: there is no such function in the product.
    """
    module_name, _, path = name.partition(":")
    owner: Any = importlib.import_module(f"{PACKAGE}.{module_name}")
    *classes, attribute = path.split(".")
    for part in classes:
        if not hasattr(owner, part):
            raise LookupError(f"{name}: there is no {part}")
        owner = getattr(owner, part)
    function = vars(owner).get(attribute)
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        raise LookupError(f"{name}: there is no such function")
    return owner, attribute, function


def _wrapped(function: Callable[..., Any], passed: Callable[[int], None], slot: int) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def stepping(*arguments: Any, **options: Any) -> Any:
            passed(slot)
            result = await function(*arguments, **options)
            passed(slot + 1)
            return result

    else:

        @functools.wraps(function)
        def stepping(*arguments: Any, **options: Any) -> Any:
            passed(slot)
            result = function(*arguments, **options)
            passed(slot + 1)
            return result

    return stepping


def _install(board: Board) -> None:
    """Wrap every step, and what other modules have imported of it."""
    importlib.import_module(f"{PACKAGE}.daemon")
    lock = threading.Lock()

    def passed(slot: int) -> None:
        with lock:
            board.passed(slot)

    loaded = [module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE]
    for name in NAMES:
        owner, attribute, function = find(name)
        wrapper = _wrapped(function, passed, Step(name, "before").slot)
        setattr(owner, attribute, wrapper)
        if isinstance(owner, ModuleType):
            for module in loaded:
                for known, value in list(vars(module).items()):
                    if value is function:
                        setattr(module, known, wrapper)


def main() -> int:
    """Run the daemon with the arguments behind the board's path."""
    board, *arguments = sys.argv[1:]
    _install(Board(Path(board)))
    from controllerd.__main__ import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
