"""Combinations of configuration values that cannot work together, and files that must be there.

Owns: the rules between keys, and the look at the files that keys name.
Never: changes anything on disk, opens sockets, or judges a single value (model.py does).
"""

from __future__ import annotations

import resource
import ssl
from collections.abc import Generator, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controllerd.config.problems import Problem, shown
from controllerd.units import format_size

if TYPE_CHECKING:
    from controllerd.config.model import Address, Config, NbdTls

TOKEN_LENGTH_MIN: Final = 16
SHARED_KEY_BYTES_MIN: Final = 16
CONNECTION_BYTES_SPARE: Final = 10 << 20
"""What a connection needs beside its longest request."""
_OWN_FILES: Final = 512
"""Files that a controller has open beside hosts' connections: disks, journals, peers, management, libraries."""
_LOCAL: Final = frozenset({"localhost", "::1"})
_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})


def cross_checks(config: Config, file: str) -> list[Problem]:
    """Every problem between keys of ``config``, in the order of the file's sections."""
    rules = (_listeners, _peers, _times, _sizes, _secrets, _files)
    return [Problem(file, *found) for rule in rules for found in rule(config)]


def warnings(config: Config, file: str) -> list[Problem]:
    """What works but is not wise; a start goes on all the same."""
    return [Problem(file, *found) for rule in (_exposed, _skipped, _readable, _descriptors) for found in rule(config)]


def _exposed(config: Config) -> Iterator[_Found]:
    management, replication, hosts = config.management, config.replication, config.nbd
    for address in hosts.listen:
        if (hosts.tls is None or hosts.tls.mode == "off") and not _is_local(address):
            wrong = f"{address} is reached over a network without TLS, where data can be read and changed"
            yield "nbd.listen", wrong, "add a [nbd.tls] section, unless the network is private"
    if management.tls is None and not _is_local(management.listen):
        wrong = f"{management.listen} is reached over a network without TLS, where the token can be read"
        yield "management.listen", wrong, "add a [management.tls] section, or listen on 127.0.0.1"
    if replication.listen is not None and replication.tls is None and not _is_local(replication.listen):
        wrong = f"{replication.listen} is reached over a network without TLS, where data can be read"
        yield "replication.listen", wrong, "add a [replication.tls] section, unless the network is private"


def _skipped(config: Config) -> Iterator[_Found]:
    tls = config.nbd.tls
    if tls is not None and tls.mode == "allow" and tls.client_certificates == "required":
        wrong = '"required" does not bind clients that come without TLS, which mode = "allow" lets them do'
        yield "nbd.tls.client_certificates", wrong, 'write mode = "require"'


def _descriptors(config: Config) -> Iterator[_Found]:
    possible = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if possible != resource.RLIM_INFINITY and config.nbd.max_connections + _OWN_FILES > possible:
        wrong = f"{config.nbd.max_connections} connections do not fit in the {possible} files this process may open"
        yield "nbd.max_connections", wrong, f"raise the limit (LimitNOFILE, ulimit -n) or write at most {possible // 2}"


def _is_local(address: Address) -> bool:
    return address.path is not None or address.host in _LOCAL or address.host.startswith("127.")


def _readable(config: Config) -> Iterator[_Found]:
    secrets = [
        ("management.token_file", config.management.token_file),
        ("replication.shared_key_file", config.replication.shared_key_file),
        ("nbd.tls.key", None if config.nbd.tls is None else config.nbd.tls.key),
    ]
    for key, path in secrets:
        if path is not None and path.stat().st_mode & 0o077:
            yield key, f"{path} can be read by other users", f"chmod 600 {path}"


_Found = tuple[str, str, str]  # key, wrong, right


def _listeners(config: Config) -> Iterator[_Found]:
    listeners: list[tuple[str, Address]] = [("nbd.listen", address) for address in config.nbd.listen]
    listeners.append(("management.listen", config.management.listen))
    if config.replication.listen is not None:
        listeners.append(("replication.listen", config.replication.listen))
    for (first_key, first), (second_key, second) in combinations(listeners, 2):
        if _collide(first, second):
            where = f"is already taken by {first_key}" if first_key != second_key else "is there twice"
            yield second_key, f"{second} {where}", "give every listener its own address"


def _collide(first: Address, second: Address) -> bool:
    if first.path is not None or second.path is not None:
        return first.path == second.path
    if first.port != second.port or first.port == 0:  # 0: the system picks a free port for each
        return False
    return first.host == second.host or bool(_WILDCARDS & {first.host, second.host})


def _peers(config: Config) -> Iterator[_Found]:
    own, replication = config.controller, config.replication
    if config.peer and replication.listen is None:
        yield "replication.listen", "missing although there are peers", 'give listen = "host:port"'
    if (config.peer or replication.listen is not None) and not (replication.shared_key_file or replication.tls):
        reason = "missing although the transfer path is used"
        yield "replication.shared_key_file", reason, "give shared_key_file or a [replication.tls] section"
    names: dict[str, int] = {}
    addresses: dict[str, int] = {}
    for number, peer in enumerate(config.peer, 1):
        key = f"[[peer]] no. {number}"
        if peer.name == own.name:
            yield f"{key}: name", f'"{peer.name}" is this controller\'s own name', "give the other controller's name"
        if peer.serial == own.serial:
            yield (
                f"{key}: serial",
                f"{peer.serial} is this controller's own serial",
                "give the other controller's serial",
            )
        if replication.listen is not None and peer.address == replication.listen and peer.address.port != 0:
            yield (
                f"{key}: address",
                f"{peer.address} is this controller's own replication.listen",
                "give the peer's address",
            )
        if peer.address.path is None and peer.address.port == 0:
            yield f"{key}: address", "port 0 cannot be connected to", "give the port of the peer's replication.listen"
        if (earlier := names.setdefault(peer.name, number)) != number:
            yield f"{key}: name", f'"{peer.name}" is also the name of peer no. {earlier}', "name every peer once"
        if (earlier := addresses.setdefault(str(peer.address), number)) != number:
            yield (
                f"{key}: address",
                f"{peer.address} is also the address of peer no. {earlier}",
                "one address is one peer",
            )


def _times(config: Config) -> Iterator[_Found]:
    replication = config.replication
    beat_s = replication.heartbeat_interval_ms / 1000
    if replication.peer_timeout_s < 2 * beat_s:
        wrong = (
            f"{replication.peer_timeout_s:g} s is less than two heartbeats of {beat_s:g} s: a healthy peer looks lost"
        )
        yield "replication.peer_timeout_s", wrong, f"write at least {2 * beat_s:g}"
    if replication.backoff_min_ms > replication.backoff_max_ms:
        wrong = f"{replication.backoff_min_ms} is more than backoff_max_ms ({replication.backoff_max_ms})"
        yield "replication.backoff_min_ms", wrong, f"write at most {replication.backoff_max_ms}"


def _sizes(config: Config) -> Iterator[_Found]:
    storage = config.storage
    if 2 * storage.segment_bytes > storage.journal_bytes:
        segment, journal = format_size(storage.segment_bytes), format_size(storage.journal_bytes)
        half = format_size(storage.journal_bytes // 2).replace(" ", "")
        wrong = f"{segment} is more than half of journal_bytes ({journal})"
        yield "storage.segment_bytes", wrong, f'write at most "{half}", or more journal_bytes'
    nbd = config.nbd
    if storage.cache_bytes < 2 * nbd.max_request_bytes:
        least = format_size(2 * nbd.max_request_bytes).replace(" ", "")
        wrong = f"{format_size(storage.cache_bytes)} cannot hold two requests of nbd.max_request_bytes"
        yield "storage.cache_bytes", wrong, f'write at least "{least}", or less nbd.max_request_bytes'
    if nbd.max_connection_bytes < nbd.max_request_bytes + CONNECTION_BYTES_SPARE:
        least = format_size(nbd.max_request_bytes + CONNECTION_BYTES_SPARE).replace(" ", "")
        wrong = f"{format_size(nbd.max_connection_bytes)} cannot hold a request of max_request_bytes beside the rest"
        yield "nbd.max_connection_bytes", wrong, f'write at least "{least}", or less max_request_bytes'
    if storage.region_bytes & (storage.region_bytes - 1):
        yield "storage.region_bytes", f"{storage.region_bytes} is not a power of two", 'write for instance "64KiB"'


def _secrets(config: Config) -> Iterator[_Found]:
    management = config.management
    if management.token is not None and management.token_file is not None:
        yield "management.token", "given together with token_file", "keep one of the two"
    elif management.token is not None:
        yield from _token("management.token", management.token.get_secret_value())
    elif management.token_file is not None:
        content = yield from _read("management.token_file", management.token_file)
        if content is not None:
            lines = content.decode("ascii", "replace").splitlines() or [""]
            yield from _token("management.token_file", lines[0].strip())
    else:
        yield (
            "management.token_file",
            "missing",
            'give token_file = "mgmt.token" (or token): nothing answers without a token',
        )
    if config.replication.shared_key_file is not None:
        content = yield from _read("replication.shared_key_file", config.replication.shared_key_file)
        if content is not None and len(content.strip()) < SHARED_KEY_BYTES_MIN:
            wrong = f"{config.replication.shared_key_file} holds fewer than {SHARED_KEY_BYTES_MIN} bytes"
            yield "replication.shared_key_file", wrong, "make one with: openssl rand -hex 32"


def _token(key: str, token: str) -> Iterator[_Found]:
    if len(token) < TOKEN_LENGTH_MIN:
        yield key, f"the token has fewer than {TOKEN_LENGTH_MIN} characters", "make one with: openssl rand -hex 32"
    elif not all("!" <= character <= "~" for character in token):
        yield key, "the token has characters that an HTTP header cannot carry", "use printable ASCII without spaces"


def _read(key: str, path: Path) -> Generator[_Found, None, bytes | None]:
    """Yields the problem with the file, if any; its value (by ``yield from``) is the content or None."""
    try:
        with path.open("rb") as file:
            return file.read(65536)
    except OSError as error:
        yield key, f"{path}: {error.strerror}", "name a file that this user can read"
        return None


def _files(config: Config) -> Iterator[_Found]:
    directory = config.controller.data_directory
    right = "name a directory, or one to be created"
    try:
        if directory.exists() and not directory.is_dir():
            yield "controller.data_directory", f"{directory} is not a directory", right
    except OSError as error:
        yield "controller.data_directory", f"{shown(str(directory))}: {error.strerror}", right
    named: list[tuple[str, Path]] = []
    if config.nbd.tls is not None:
        hosts = config.nbd.tls
        named += [("nbd.tls.certificate", hosts.certificate), ("nbd.tls.key", hosts.key)]
        named += [] if hosts.ca is None else [("nbd.tls.ca", hosts.ca)]
        yield from _host_tls(hosts)
    if config.management.tls is not None:
        named += [("management.tls.certificate", config.management.tls.certificate)]
        named += [("management.tls.key", config.management.tls.key)]
    if config.replication.tls is not None:
        tls = config.replication.tls
        named += [("replication.tls.certificate", tls.certificate), ("replication.tls.key", tls.key)]
        named += [("replication.tls.ca", tls.ca)]
    for key, path in named:
        yield from _read(key, path)
    if config.nbd.tls is not None:
        yield from _certificate("nbd.tls", config.nbd.tls.certificate, config.nbd.tls.key)
        if config.nbd.tls.ca is not None:
            yield from _authorities("nbd.tls.ca", config.nbd.tls.ca)
    if config.management.tls is not None:
        yield from _certificate("management.tls", config.management.tls.certificate, config.management.tls.key)
    if config.replication.tls is not None:
        tls = config.replication.tls
        yield from _certificate("replication.tls", tls.certificate, tls.key)
        yield from _authorities("replication.tls.ca", tls.ca)
    listeners = [("nbd.listen", address) for address in config.nbd.listen]
    listeners.append(("management.listen", config.management.listen))
    if config.replication.listen is not None:
        listeners.append(("replication.listen", config.replication.listen))
    for key, address in listeners:
        if address.path is not None and not address.path.parent.is_dir():
            yield key, f"{address.path.parent} is not a directory", "name a socket in a directory that exists"


def _host_tls(tls: NbdTls) -> Iterator[_Found]:
    if tls.client_certificates != "none" and tls.ca is None:
        wrong = f'missing although client_certificates is "{tls.client_certificates}"'
        yield "nbd.tls.ca", wrong, "name a PEM file with the authorities that sign clients' certificates"
    if tls.psk_file is not None:
        wrong = "pre-shared keys are not possible: the ssl module of Python 3.11 has none"
        yield "nbd.tls.psk_file", wrong, 'use certificates, with client_certificates = "required"'


def _certificate(section: str, certificate: Path, key: Path) -> Iterator[_Found]:
    """Whether the pair can be used at all; a file that cannot be read has been reported already."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        wrong = f"{certificate} and {key} are not a certificate with its unencrypted key ({_reason(error)})"
        yield f"{section}.certificate", wrong, "name two PEM files that belong together"
    except OSError:
        return


def _authorities(key: str, path: Path) -> Iterator[_Found]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        yield key, f"{path} holds no certificate ({_reason(error)})", "name a PEM file"
    except OSError:
        return


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL asks at the terminal


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
