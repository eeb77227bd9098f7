"""One run of mgmtctl: what the options said, and clients made from it.

Owns: ``NAME:object`` and which controller an order goes to. Never: talks HTTP itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from controllerd.management.schemas import NAME_PATTERN
from mgmtctl.client import Client
from mgmtctl.errors import usage_error
from mgmtctl.settings import Overrides, Settings, client_file, environment_overrides, load_settings

LONG_ORDER_TIMEOUT_S: Final = 600.0
"""Takeover and deletion of large volumes: nobody wants them given up early."""


@dataclass
class Session:
    """Options that stand before the order."""

    config: Path | None = None
    options: Overrides = field(default_factory=Overrides)
    timeout_s: float | None = None
    wait_s: float = 0.0

    @cached_property
    def settings(self) -> Settings:
        """The client file; read once, and only by orders that need it."""
        path, required = client_file(self.config, os.environ)
        return load_settings(path, required=required)

    @cached_property
    def overrides(self) -> Overrides:
        """Options, and the environment where there is no option."""
        environment = environment_overrides()
        no_token_option = self.options.token is None and self.options.token_file is None
        return Overrides(
            url=self.options.url or environment.url,
            token=self.options.token or (environment.token if no_token_option else None),
            token_file=self.options.token_file,
            controller=self.options.controller or environment.controller,
        )

    def client(self, controller: str | None, *, long: bool = False) -> Client:
        """A client for ``controller`` (None: the default one); ``long`` for orders that take their time."""
        timeout_s = self.timeout_s or (LONG_ORDER_TIMEOUT_S if long else 30.0)
        return Client(self.settings.resolve(controller, self.overrides), timeout_s, self.wait_s)

    def clients(self, controllers: list[str]) -> list[Client]:
        """Clients for those named, or for all that are known; they may or may not answer."""
        timeout_s = self.timeout_s or 5.0
        endpoints = (
            [self.settings.resolve(name, self.overrides) for name in dict.fromkeys(controllers)]
            if controllers
            else self.settings.all(self.overrides)
        )
        return [Client(endpoint, timeout_s, self.wait_s) for endpoint in endpoints]


def split_target(target: str, controller: str | None) -> tuple[str | None, str]:
    """``A:vol1`` as ("A", "vol1"); plain ``vol1`` belongs to ``controller`` (what -c said).

    Raises CliError (usage) when both name a controller and they differ.
    """
    name, colon, thing = target.rpartition(":")
    if re.fullmatch(NAME_PATTERN, thing) is None or (colon and not name):
        right = "write NAME or CONTROLLER:NAME; a name has 1 to 63 letters, digits, '.', '_' or '-'"
        raise usage_error(f'"{target}": {right}')
    if not colon:
        return controller, target
    if controller is not None and controller != name:
        raise usage_error(f'"{target}" names controller {name}, but -c says {controller}; leave one of them out')
    return name, thing
