"""Sizes as people write them: "64MiB" to bytes and back.

Owns: the one syntax for sizes in configuration files, on the command line and in API bodies.
Never: rounds. "1.5GiB" is exact or refused, because a size becomes a volume's capacity.

Units are powers of 1024 with an "i" (KiB) and powers of 1000 without (kB, MB), as in IEC 80000-13;
single letters (64M) mean powers of 1024 here, as in qemu-img and fio.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_BINARY: Final = {letter: 1024 ** (power + 1) for power, letter in enumerate("kmgtp")}
_DECIMAL: Final = {letter: 1000 ** (power + 1) for power, letter in enumerate("kmgtp")}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(ib|b)?|(b|bytes)?)\s*", re.IGNORECASE | re.ASCII)
_LONGEST_TEXT: Final = 40
SIZE_MAX: Final = 1 << 62
"""Largest size in bytes that is accepted anywhere; keeps every sum of two sizes inside 64 bits."""


def parse_size(value: object) -> int:
    """Bytes named by ``value``: an int, or text such as ``64MiB``, ``1.5G`` or ``10GB``.

    Raises ValueError with one line that says what would be right.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        size = _parse_text(value)
    else:
        raise ValueError(f'{value!r} is not a size; write a number of bytes or text like "64MiB"')
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"{size} is out of range; a size lies between 0 and 4 EiB")
    return size


def _parse_text(text: str) -> int:
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(f'"{text[:_LONGEST_TEXT]}" is not a size; write a number of bytes or text like "64MiB"')
    number, letter, suffix, _ = match.groups()
    if letter is None:
        factor = 1
    else:
        factor = (_DECIMAL if (suffix or "").lower() == "b" else _BINARY)[letter.lower()]
    exact = Decimal(number) * factor
    if exact != int(exact):
        raise ValueError(f'"{text}" is not a whole number of bytes')
    return int(exact)


def format_size(size: int) -> str:
    """``size`` in bytes for people: exact where a unit divides it, else with one decimal ("1.4 GiB")."""
    unit, factor = "B", 1
    for letter, power in _BINARY.items():
        if abs(size) < power:
            break
        unit, factor = f"{letter.upper()}iB", power
    if size % factor == 0:
        return f"{size // factor} {unit}"
    return f"{size / factor:.1f} {unit}"
