"""The sizes of the fault matrix: a sample for the suite, much more for `make faults`, everything for its EVERY=1."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Final

_SIZE: Final = os.environ.get("REMOTECOPY_FAULTS", "sample")
WHOLE: Final = _SIZE in ("all", "every")
EVERY: Final = _SIZE == "every"
WHOLE_LIMIT_S: Final = 4 * 3600 if WHOLE else 300
FIRST: Final = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300, 450)
"""Which calls the matrix hits, each about half again as far as the one before: early ones differ most."""


def every_step(attempt: Callable[[int], int], sample: tuple[int, ...], *, whole: tuple[int, ...] = FIRST) -> None:
    """Hit the calls of ``whole`` in turn (every one with EVERY) until no more are made, or those of ``sample``.

    ``attempt`` tries one k and says how many calls were made: fewer than k if none was hit. In a sample, the last one
    that is made stands for those that are not.
    """
    steps: Iterable[int] = itertools.count(1) if EVERY else whole if WHOLE else sample
    hit = []
    for k in steps:
        made = attempt(k)
        assert made, "no call was made at all"
        if made < k:
            if not WHOLE:
                attempt(made)
            break
        hit.append(k)
    print(f"calls hit: {hit}")
