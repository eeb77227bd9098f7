"""Every mistake in a configuration is one line: file, key, what is wrong, what would be right."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from controllerd.config import ConfigError, load, parse
from tests.unit.config.certificates import make_certificate

GOOD = """
[controller]
name = "A"
serial = 1
data_directory = "data"
[management]
token = "0123456789abcdef"
"""


def document(changes: dict[str, Any]) -> dict[str, Any]:
    """The smallest good document with dotted keys set (None: removed)."""
    result: dict[str, Any] = tomllib.loads(GOOD)
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
        if value is None:
            place.pop(name)
        else:
            place[name] = value
    return result


def lines(changes: dict[str, Any], base: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(document(changes), file="a.toml", base=base)
    return str(caught.value).splitlines()


PEER = {"name": "B", "address": "127.0.0.1:9813"}
TLS = {"certificate": "cert.pem", "key": "cert.key"}
LINK = {"replication.listen": "127.0.0.1:9811", "replication.shared_key_file": "key"}

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    # what is changed, key in the message, what is wrong, what would be right
    ({"controller": None}, "controller", "missing", "give a [controller] section"),
    ({"controller.name": None}, "controller.name", "missing", "it is required"),
    ({"controller.name": "a:b"}, "controller.name", '"a:b" is not a name', "use 1 to 63 letters"),
    ({"controller.name": 7}, "controller.name", "7 is not a name", "use 1 to 63 letters"),
    ({"controller.serial": "1"}, "controller.serial", '"1" has the wrong type', "whole number without quotes"),
    ({"controller.serial": 1.5}, "controller.serial", "1.5 has the wrong type", "whole number"),
    ({"controller.serial": True}, "controller.serial", "true has the wrong type", "whole number"),
    ({"controller.serial": 0}, "controller.serial", "0 is out of range", "at least 1"),
    ({"controller.serial": 1 << 40}, "controller.serial", "is out of range", "at most 4294967295"),
    ({"controller.data_directory": 3}, "controller.data_directory", "3 is not a path", "write text"),
    ({"controller.data_directory": "a\0"}, "controller.data_directory", "a path cannot contain a zero character", ""),
    ({"controller.data_directory": "~no-one/a"}, "controller.data_directory", "of a user that is not known", ""),
    ({"controller.data_directory": "x" * 300}, "controller.data_directory", "File name too long", "name a directory"),
    ({"nbd.listen": "unix:~no-one/a"}, "nbd.listen", "of a user that is not known", ""),
    ({"management.token": None, "management.token_file": "a\0"}, "management.token_file", "a zero character", ""),
    ({"controller.data_directory": "file"}, "controller.data_directory", "is not a directory", "name a directory"),
    ({"controller.data_dir": "x"}, "controller.data_dir", "unknown key", "did you mean data_directory?"),
    ({"controller.cache_bytes": 1}, "controller.cache_bytes", "unknown key", "it belongs in [storage]"),
    ({"controller.xyzzy": 1}, "controller.xyzzy", "unknown key", "known here: name, serial"),
    (
        {"controller.time_source": "host,"},
        "controller.time_source",
        '"host," is not',
        '"host" or "clock" or "sequence"',
    ),
    ({"ndb": {}}, "ndb", "unknown section", "did you mean nbd?"),
    ({"nbd": 3}, "nbd", "3 has the wrong type", "write it as a [section]"),
    ({"nbd.listen": []}, "nbd.listen", "the list is empty; write at least one address", '["127.0.0.1:10809"]'),
    ({"nbd.listen": ["x"]}, "nbd.listen", '"x" is not an address', "unix:"),
    ({"nbd.listen": ["h:99999"]}, "nbd.listen", "port 99999 does not exist", "at most 65535"),
    ({"nbd.listen": ["unix:"]}, "nbd.listen", "names no socket", "unix:/run"),
    ({"nbd.listen": ["unix:/" + "x" * 120]}, "nbd.listen", "longer than the 107 bytes", "shorter"),
    ({"nbd.listen": ["unix:nowhere/s"]}, "nbd.listen", "nowhere is not a directory", "directory that exists"),
    ({"nbd.listen": ["h:1", "h:1"]}, "nbd.listen", "h:1 is there twice", "its own address"),
    ({"nbd.listen": ["127.0.0.1:9711"]}, "management.listen", "is already taken by nbd.listen", "its own address"),
    ({"nbd.listen": ["0.0.0.0:9711"]}, "management.listen", "is already taken by nbd.listen", "its own address"),
    ({"nbd.max_connections": 0}, "nbd.max_connections", "0 is out of range", "at least 1"),
    ({"nbd.max_connections_per_address": -1}, "nbd.max_connections_per_address", "-1 is out of range", "at least 0"),
    ({"nbd.idle_timeout_s": -1}, "nbd.idle_timeout_s", "-1 is out of range", "at least 0"),
    ({"nbd.max_option_bytes": "4KiB"}, "nbd.max_option_bytes", "4 KiB is out of range", 'at least "8KiB"'),
    ({"nbd.max_connection_bytes": "40MiB"}, "nbd.max_connection_bytes", "40 MiB cannot hold", 'at least "42MiB"'),
    ({"nbd.tls": {"key": "cert.key"}}, "nbd.tls.certificate", "missing", "it is required"),
    ({"nbd.tls": TLS | {"mode": "on"}}, "nbd.tls.mode", '"on" is not possible', '"off" or "allow" or "require"'),
    ({"nbd.tls": TLS | {"key": "none"}}, "nbd.tls.key", "No such file", "can read"),
    ({"nbd.tls": TLS | {"ca": "none"}}, "nbd.tls.ca", "No such file", "can read"),
    ({"nbd.tls": TLS | {"ca": "key"}}, "nbd.tls.ca", "holds no certificate", "name a PEM file"),
    ({"nbd.tls": TLS | {"key": "key"}}, "nbd.tls.certificate", "are not a certificate with its", "belong together"),
    ({"nbd.tls": TLS | {"client_certificates": "required"}}, "nbd.tls.ca", "missing although", "name a PEM file"),
    ({"nbd.tls": TLS | {"psk_file": "key"}}, "nbd.tls.psk_file", "Python 3.11 has none", "use certificates"),
    ({"management.token": None}, "management.token_file", "missing", 'token_file = "mgmt.token"'),
    ({"management.token": "short"}, "management.token", "fewer than 16 characters", "openssl rand -hex 32"),
    ({"management.token": "with a space 12345"}, "management.token", "cannot carry", "printable ASCII"),
    ({"management.token_file": "token"}, "management.token", "given together with token_file", "keep one"),
    ({"management.token": None, "management.token_file": "none"}, "management.token_file", "No such file", "can read"),
    ({"management.token": None, "management.token_file": "empty"}, "management.token_file", "fewer than 16", "openssl"),
    ({"management.token": 5}, "management.token", "5 has the wrong type", "text in quotes"),
    ({"management.tls": {"key": "key"}}, "management.tls.certificate", "missing", "it is required"),
    ({"management.tls": {"key": "key", "certificate": "no"}}, "management.tls.certificate", "No such file", "can read"),
    (
        {"management.tls": {"key": "key", "certificate": "key"}},
        "management.tls.certificate",
        "not a certificate",
        "PEM",
    ),
    ({"replication.tick_interval_ms": "50"}, "replication.tick_interval_ms", "wrong type", "whole number"),
    ({"replication.peer_timeout_s": 0.1}, "replication.peer_timeout_s", "two heartbeats", "write at least"),
    ({"replication.backoff_min_ms": 9000}, "replication.backoff_min_ms", "is more than backoff_max_ms", "at most"),
    ({"replication.window_bytes": "1KiB"}, "replication.window_bytes", "out of range", "at least"),
    ({"replication.listen": "h:1"}, "replication.shared_key_file", "missing although", "[replication.tls]"),
    ({**LINK, "replication.shared_key_file": "none"}, "replication.shared_key_file", "No such file", "can read"),
    ({**LINK, "replication.shared_key_file": "empty"}, "replication.shared_key_file", "fewer than 16", "openssl"),
    (
        {"peer": [PEER], "replication.shared_key_file": "key"},
        "replication.listen",
        "although there are peers",
        "listen =",
    ),
    (
        {"peer": [PEER], "replication.listen": "h:1"},
        "replication.shared_key_file",
        "missing although",
        "shared_key_file",
    ),
    ({"peer": PEER}, "peer", "has the wrong type", "[[peer]]"),
    ({**LINK, "peer": [{"name": "B"}]}, "[[peer]] no. 1: address", "missing", "replication.listen is reached"),
    ({**LINK, "peer": [PEER | {"adress": 1}]}, "[[peer]] no. 1: adress", "unknown key", "did you mean address?"),
    ({**LINK, "peer": [PEER | {"name": "A"}]}, "[[peer]] no. 1: name", "own name", "other controller's name"),
    ({**LINK, "peer": [PEER | {"serial": 1}]}, "[[peer]] no. 1: serial", "own serial", "other controller's"),
    ({**LINK, "peer": [PEER, PEER | {"address": "h:2"}]}, "[[peer]] no. 2: name", "peer no. 1", "every peer once"),
    ({**LINK, "peer": [PEER, PEER | {"name": "C"}]}, "[[peer]] no. 2: address", "peer no. 1", "one address"),
    ({**LINK, "peer": [PEER | {"address": "127.0.0.1:9811"}]}, "[[peer]] no. 1: address", "own replication", "peer's"),
    ({**LINK, "peer": [PEER | {"address": "h:0"}]}, "[[peer]] no. 1: address", "port 0", "give the port"),
    ({"storage.cache_bytes": "1MiBx"}, "storage.cache_bytes", '"1MiBx" is not a size', '"64MiB"'),
    ({"storage.cache_bytes": -1}, "storage.cache_bytes", "out of range", "between 0 and 4 EiB"),
    ({"storage.cache_bytes": 1.5}, "storage.cache_bytes", "1.5 is not a size", '"64MiB"'),
    ({"storage.cache_bytes": "1KiB"}, "storage.cache_bytes", "1 KiB is out of range", 'at least "16MiB"'),
    ({"storage.journal_bytes": "64MiB"}, "storage.segment_bytes", "more than half of journal_bytes", 'at most "32MiB"'),
    ({"storage.region_bytes": 5000}, "storage.region_bytes", "not a power of two", "64KiB"),
    ({"storage.destage_age_s": "1"}, "storage.destage_age_s", "wrong type", "number without quotes"),
    ({"storage.checkpoint_interval_s": 0}, "storage.checkpoint_interval_s", "0 is out of range", "greater than 0"),
    ({"storage.checkpoint_interval_s": float("nan")}, "storage.checkpoint_interval_s", "nan is not a number", "of at"),
    ({"defaults.durability": "stble"}, "defaults.durability", '"stble" is not possible', '"cache" or "stable"'),
    ({"apply.order": 1}, "apply.order", "1 is not possible", '"time" or "sequence"'),
    ({"logging.level": "loud"}, "logging.level", '"loud" is not possible', '"debug" or "info"'),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    make_certificate(directory, "cert")
    return directory


@pytest.fixture
def base(tmp_path: Path, certificate: Path) -> Path:
    for name in ("cert.pem", "cert.key"):
        (tmp_path / name).write_bytes((certificate / name).read_bytes())
    (tmp_path / "file").touch()
    (tmp_path / "empty").touch()
    (tmp_path / "key").write_text("k" * 32)
    (tmp_path / "token").write_text("t" * 32)
    return tmp_path


@pytest.mark.parametrize(("changes", "key", "wrong", "right"), CASES)
def test_mistake_is_one_line(base: Path, changes: dict[str, Any], key: str, wrong: str, right: str) -> None:
    found = lines(changes, base)
    assert len(found) == 1, found
    assert found[0].startswith(f"a.toml: {key}: "), found[0]
    assert wrong in found[0]
    assert right in found[0]


def test_all_mistakes_are_told_at_once(base: Path) -> None:
    found = lines({"controller.serial": "x", "nbd.listen": 3, "storage.cach": 1, "logging.level": 2}, base)
    assert len(found) == 4


def test_contents_of_secrets_are_never_shown(base: Path) -> None:
    (base / "token").write_text("geheim\n")
    found = lines({"management.token": None, "management.token_file": "token"}, base)
    assert "geheim" not in found[0]


FILES: list[tuple[bytes, str]] = [
    (b"[controller", "is not valid TOML: Expected ']'"),
    (b"a = 1\na = 2", "is not valid TOML: Cannot overwrite a value"),
    (b"\xff", "is not valid TOML: not UTF-8 text"),
    (b"a = " + b"[" * 5000, "is not valid TOML"),
    (b"a = " + b"9" * 5000, "is not valid TOML: Exceeds the limit"),
    (b"#" * (1 << 21), "is longer than 1 MiB"),
    (b"", "controller: missing"),
]


@pytest.mark.parametrize(("content", "expected"), FILES)
def test_any_file_gets_clear_lines(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    text = str(caught.value)
    assert all(line.startswith(f"{path}: ") for line in text.splitlines())
    assert expected in text


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
