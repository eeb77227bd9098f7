"""The sizes of the fault matrix: a sample for the suite, the whole for `make faults`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Final

WHOLE: Final = os.environ.get("REMOTECOPY_FAULTS") == "all"
WHOLE_LIMIT_S: Final = 4 * 3600 if WHOLE else 300


def every_step(attempt: Callable[[int], int], sample: tuple[int, ...]) -> None:
    """Hit the 1st, 2nd, ... call until no more are made, or only the ``sample``: where there are fewer, the last one.

    ``attempt`` tries one k and says how many calls were made: fewer than k if none was hit.
    """
    for k in itertools.count(1) if WHOLE else sample:
        made = attempt(k)
        assert made, "no call was made at all"
        if made < k:
            if WHOLE:
                print(f"{k - 1} calls hit, one after the other")
            else:
                attempt(made)
            return
