"""Command line of the daemon: ``controllerd --config c.toml``.

Owns: its arguments and exit codes.
Never: does anything itself; the daemon is put together in daemon.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from controllerd.config import Config, ConfigError, load
from controllerd.config.checks import warnings
from controllerd.management.schemas import VERSION

_EPILOG = """Example: controllerd --config /etc/remotecopy/a.toml

Exit codes:
    0  stopped in order, or nothing wrong was found
    1  failed at the start or while running; the log says why
    2  wrong usage or configuration, or --check-config found that a start would fail
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="controllerd",
        description="Storage controller: gives hosts volumes and keeps copies of them on other controllers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the controller's configuration (TOML)")
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="say what is wrong with the configuration, its files, directory and addresses, and stop; changes nothing",
    )
    parser.add_argument("--config-reference", action="store_true", help="print all configuration keys as markdown")
    parser.add_argument("--version", action="version", version=f"controllerd {VERSION}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.config_reference:
        from controllerd.config.reference import reference

        sys.stdout.write(reference())
        return 0
    if options.config is None:
        parser.error("--config FILE is needed; example: controllerd --config c.toml")
    try:
        config = load(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for warning in warnings(config, str(options.config)):
        print(f"warning: {warning}", file=sys.stderr)
    if options.check_config:
        from controllerd.config.trial import attempt  # a start finds this out by itself

        problems, notes = attempt(config, str(options.config))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if problems:
            print(ConfigError(problems), file=sys.stderr)
            return 2
        print(f"{options.config}: good ({_summary(config)})")
        return 0
    return _run(config)


def _summary(config: Config) -> str:
    hosts = ", ".join(str(address) for address in config.nbd.listen)
    peers = ", ".join(peer.name for peer in config.peer) or "none"
    management = config.management.listen
    return f"controller {config.controller.name}, hosts at {hosts}, management at {management}, peers: {peers}"


def _run(config: Config) -> int:
    from controllerd.daemon import run  # the daemon's libraries are not needed to check a configuration

    return run(config)


if __name__ == "__main__":
    sys.exit(main())
