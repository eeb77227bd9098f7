"""The sizes of the fault matrix: a sample for the suite, the whole for `make faults`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Final

WHOLE: Final = os.environ.get("REMOTECOPY_FAULTS") == "all"
WHOLE_LIMIT_S: Final = 3600 if WHOLE else 300


def every_step(attempt: Callable[[int], bool], sample: tuple[int, ...]) -> None:
    """Hit the 1st, 2nd, ... call until none is hit, or only the ``sample``, which must all be reached.

    ``attempt`` tries one k and says whether the call was reached.
    """
    numbers: Iterator[int] = itertools.count(1) if WHOLE else iter(sample)
    for k in numbers:
        if not attempt(k):
            assert k > max(sample), f"call {k} was never made"
            print(f"{k - 1} calls hit, one after the other")
            return
