"""Configuration of one controller: the TOML file as frozen, checked objects.

Owns: reading the file, and refusing what cannot work before anything is touched.
Never: listens, creates files, or keeps anything; layers take their own settings, mapped in daemon.py.

Every problem is listed at once, one line each: file, key, what is wrong, what would be right (spec §13).
Relative paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from controllerd.config.checks import cross_checks
from controllerd.config.model import Address, Config
from controllerd.config.problems import ConfigError, Problem, explain

__all__ = ["Address", "Config", "ConfigError", "load", "parse"]

CONFIG_BYTES_MAX: Final = 1 << 20


def parse(document: dict[str, Any], *, file: str, base: Path) -> Config:
    """Check ``document``; ``file`` names it in messages, ``base`` is where relative paths start.

    Raises ConfigError listing every problem. Reads key and token files to check them; changes nothing.
    """
    try:
        config = Config.model_validate(document, context={"base": base})
    except ValidationError as error:
        raise ConfigError(explain(error, Config, file)) from None
    problems = cross_checks(config, file)
    if problems:
        raise ConfigError(problems)
    return config


def load(path: str | Path) -> Config:
    """Read and check the configuration file; raises ConfigError with one line per problem."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(str(path), "", reason, "name a TOML file that this user can read")]) from None
    if len(content) > CONFIG_BYTES_MAX:
        raise ConfigError([Problem(str(path), "", "is longer than 1 MiB", "name a configuration file")])
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError([Problem(str(path), "", f"is not valid TOML: {reason}")]) from None
    return parse(document, file=str(path), base=path.absolute().parent)
