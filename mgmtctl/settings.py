"""Which controllers there are and how to reach them: client file, environment, options.

Owns: reading the client file, and the order of precedence (options, then environment, then file).
Never: connects to anything, or prints a token.

    default = "A"
    [controllers.A]
    url = "http://127.0.0.1:9712"        # or https://..., or unix:/path
    token_file = "a.token"               # relative to this file; or token = "..."
    ca = "ca.pem"                        # for https with an own authority
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mgmtctl.errors import usage_error

DEFAULT_FILE: Final = "~/.config/remotecopy/mgmtctl.toml"
_FILE_BYTES_MAX: Final = 1 << 20
_ENTRY_KEYS: Final = ("url", "token", "token_file", "ca")
_EXAMPLE: Final = '[controllers.A] with url = "http://127.0.0.1:9711"'


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One controller as the client knows it; ``ca`` is the path of a certificate file."""

    name: str
    url: str
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """What options and environment say."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    controller: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """The client file's content."""

    file: Path
    endpoints: Mapping[str, Endpoint]
    default: str | None = None

    def resolve(self, named: str | None, overrides: Overrides) -> Endpoint:
        """The controller to talk to. ``named`` is what the order itself says (-c or NAME:object).

        An address from options or environment is used unless the order names a controller of the file.
        Raises CliError (usage) when nothing or something unknown is named.
        """
        wanted = named or overrides.controller
        if wanted is not None and wanted in self.endpoints and (named is not None or overrides.url is None):
            endpoint = self.endpoints[wanted]
        elif overrides.url is not None:
            endpoint = Endpoint(wanted or overrides.url, check_url(overrides.url, "--url or MGMTCTL_URL"))
        elif wanted is not None:
            raise usage_error(self._unknown(wanted))
        else:
            endpoint = self._default()
        if overrides.token_file is not None:
            endpoint = replace(endpoint, token="", token_file=overrides.token_file)
        elif overrides.token is not None:
            endpoint = replace(endpoint, token=overrides.token, token_file=None)
        return endpoint

    def all(self, overrides: Overrides) -> list[Endpoint]:
        """Every controller of the file, or the one that options or environment name."""
        if overrides.url is not None or overrides.controller is not None or not self.endpoints:
            return [self.resolve(None, overrides)]
        return [self.resolve(name, overrides) for name in self.endpoints]

    def _default(self) -> Endpoint:
        if self.default is not None:
            return self.endpoints[self.default]
        if len(self.endpoints) == 1:
            return next(iter(self.endpoints.values()))
        if not self.endpoints:
            raise usage_error(f"no controller is known: give --url and --token-file, or write {self.file} ({_EXAMPLE})")
        names = ", ".join(self.endpoints)
        raise usage_error(f'which controller? give -c NAME ({names}), or default = "NAME" in {self.file}')

    def _unknown(self, wanted: str) -> str:
        close = difflib.get_close_matches(wanted, self.endpoints, n=1)
        known = f"did you mean {close[0]}?" if close else f"known: {', '.join(self.endpoints) or 'none'}"
        return f'no controller "{wanted}" in {self.file}; {known}'


def client_file(option: Path | None, environment: Mapping[str, str]) -> tuple[Path, bool]:
    """Path of the client file, and whether it must exist because somebody named it."""
    if option is not None:
        return option.expanduser(), True
    named = environment.get("MGMTCTL_CONFIG")
    if named:
        return Path(named).expanduser(), True
    return Path(DEFAULT_FILE).expanduser(), False


def load_settings(path: Path, *, required: bool) -> Settings:
    """Read the client file; raises CliError (usage) with file, key and what would be right."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        if required:
            raise usage_error(f"{path}: no such file; write one with {_EXAMPLE}") from None
        return Settings(path, {})
    except OSError as error:
        raise usage_error(f"{path}: cannot be read: {error.strerror}") from None
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise usage_error(f"{path}: is not valid TOML: {reason}") from None
    return _check(document, path)


def _check(document: dict[str, Any], path: Path) -> Settings:
    _check_keys(document, ("default", "controllers"), f"{path}: ")
    entries = document.get("controllers", {})
    if not isinstance(entries, dict):
        raise usage_error(f"{path}: controllers: write sections, for instance {_EXAMPLE}")
    endpoints = {name: _endpoint(name, entry, path) for name, entry in entries.items()}
    default = document.get("default")
    if default is not None and default not in endpoints:
        names = ", ".join(endpoints) or "there is none"
        raise usage_error(f'{path}: default: "{default}" is no controller of this file; write one of: {names}')
    return Settings(path, endpoints, default)


def _endpoint(name: str, entry: object, path: Path) -> Endpoint:
    place = f"{path}: controllers.{name}"
    if not isinstance(entry, dict):
        raise usage_error(f"{place}: write a section, for instance {_EXAMPLE}")
    _check_keys(entry, _ENTRY_KEYS, f"{place}.")
    for key, value in entry.items():
        if not isinstance(value, str) or not value:
            raise usage_error(f"{place}.{key}: write text in quotes")
    if "url" not in entry:
        raise usage_error(f'{place}.url: missing; write url = "http://127.0.0.1:9711"')
    if "token" in entry and "token_file" in entry:
        raise usage_error(f"{place}.token: given together with token_file; keep one of the two")
    base = path.absolute().parent
    return Endpoint(
        name,
        check_url(entry["url"], f"{place}.url", base),
        entry.get("token", ""),
        base / Path(entry["token_file"]).expanduser() if "token_file" in entry else None,
        base / Path(entry["ca"]).expanduser() if "ca" in entry else None,
    )


def _check_keys(section: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for key in section:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            right = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise usage_error(f"{place}{key}: unknown key; {right}")


def check_url(url: str, place: str, base: Path | None = None) -> str:
    """``url`` in the form the client takes; a relative socket path starts at ``base``."""
    if url.startswith("unix:") and len(url) > len("unix:"):
        return f"unix:{(base or Path()).absolute() / Path(url.removeprefix('unix:')).expanduser()}"
    if url.startswith(("http://", "https://")) and url.split("//", 1)[1].strip("/"):
        return url.rstrip("/")
    raise usage_error(
        f'{place}: "{url}" is not an address; write "http://127.0.0.1:9711", "https://..." or "unix:/path"'
    )


def read_token(endpoint: Endpoint) -> str:
    """The token; raises CliError (usage) when its file cannot be read or holds none."""
    if endpoint.token_file is None:
        return endpoint.token.strip()
    try:
        with endpoint.token_file.open("rb") as file:
            lines = file.read(65536).decode("ascii", "replace").splitlines()
    except OSError as error:
        raise usage_error(
            f"token file of controller {endpoint.name}: {endpoint.token_file}: {error.strerror}"
        ) from None
    token = lines[0].strip() if lines else ""
    if not token:
        raise usage_error(f"token file of controller {endpoint.name}: {endpoint.token_file}: is empty")
    return token


def environment_overrides(environment: Mapping[str, str] | None = None) -> Overrides:
    """What MGMTCTL_URL, MGMTCTL_TOKEN and MGMTCTL_CONTROLLER say; empty is as good as unset."""
    values = os.environ if environment is None else environment
    return Overrides(
        url=values.get("MGMTCTL_URL") or None,
        token=values.get("MGMTCTL_TOKEN") or None,
        controller=values.get("MGMTCTL_CONTROLLER") or None,
    )
