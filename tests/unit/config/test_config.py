"""What a good configuration becomes, the reference, and the daemon's own command line."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from controllerd.__main__ import main
from controllerd.config import Address, ConfigError, load, parse
from controllerd.config.reference import reference
from controllerd.daemon import nbd_settings
from controllerd.management.schemas import VERSION
from controllerd.storage.buffers import BufferPool
from controllerd.targets.nbd.settings import Tls
from tests.unit.config.certificates import make_certificate
from tests.unit.config.test_config_errors import GOOD

REPOSITORY = Path(__file__).parents[3]
MIB = 1 << 20


def test_smallest_configuration_has_sensible_defaults(tmp_path: Path) -> None:
    config = parse(tomllib.loads(GOOD), file="a.toml", base=tmp_path)
    assert config.controller.data_directory == tmp_path / "data"
    assert config.nbd.listen == (Address("127.0.0.1", 10809),)
    assert config.storage.segment_bytes == 64 * MIB
    assert config.token() == "0123456789abcdef"
    assert config.shared_key() is None
    assert config.peer == ()


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "etc"
    directory.mkdir()
    (directory / "t").write_text("0123456789abcdef\nsecond line\n")
    (directory / "key").write_bytes(b"k" * 32 + b"\n")
    (directory / "a.toml").write_text(
        GOOD.replace('token = "0123456789abcdef"', 'token_file = "t"\nlisten = "unix:m.sock"')
        + '[nbd]\nlisten = ["[::1]:1", "unix:/tmp/n.sock", "h.example:0"]\n'
        + '[replication]\nlisten = "127.0.0.1:0"\nshared_key_file = "key"\n'
        + '[[peer]]\nname = "B"\naddress = "10.0.0.1:9"\n[storage]\ncache_bytes = "0.5GiB"\njournal_bytes = 268435456\n'
    )
    monkeypatch.chdir(tmp_path)
    config = load("etc/a.toml")
    assert config.controller.data_directory == directory / "data"
    assert config.management.listen == Address(path=directory / "m.sock")
    assert [str(address) for address in config.nbd.listen] == ["[::1]:1", "unix:/tmp/n.sock", "h.example:0"]
    assert config.token() == "0123456789abcdef"
    assert config.shared_key() == b"k" * 32
    assert config.peer[0].address == Address("10.0.0.1", 9)
    assert (config.storage.cache_bytes, config.storage.journal_bytes) == (512 * MIB, 256 * MIB)


def test_host_port_is_told_everything(tmp_path: Path) -> None:
    make_certificate(tmp_path, "c")
    text = GOOD + (
        "[nbd]\nmax_connections = 9\nmax_connections_per_address = 3\nidle_timeout_s = 60.0\nmax_in_flight = 50\n"
        'max_option_bytes = "16KiB"\nmax_request_bytes = "2MiB"\nmax_connection_bytes = "20MiB"\n'
        '[nbd.tls]\ncertificate = "c.pem"\nkey = "c.key"\nca = "c.pem"\nclient_certificates = "optional"\n'
    )
    settings = nbd_settings(parse(tomllib.loads(text), file="a.toml", base=tmp_path), BufferPool(0))
    assert (settings.max_connections, settings.max_connections_per_address, settings.idle_timeout_s) == (9, 3, 60.0)
    limits = settings.limits
    assert (limits.option_max, limits.payload_max, limits.in_flight_max) == (16 << 10, 2 * MIB, 50)
    assert limits.memory_max == 20 * MIB
    assert settings.tls == Tls("require", f"{tmp_path}/c.pem", f"{tmp_path}/c.key", f"{tmp_path}/c.pem", "optional")
    plain = nbd_settings(parse(tomllib.loads(GOOD), file="a.toml", base=tmp_path), BufferPool(0))
    assert plain.tls.mode == "off"
    assert plain.limits.memory_max == 48 * MIB


def test_configuration_cannot_change(tmp_path: Path) -> None:
    config = parse(tomllib.loads(GOOD), file="a.toml", base=tmp_path)
    with pytest.raises(ValidationError):
        config.controller.name = "B"  # type: ignore[misc]


def test_secrets_are_hidden_in_every_form(tmp_path: Path) -> None:
    config = parse(tomllib.loads(GOOD), file="a.toml", base=tmp_path)
    assert "0123456789abcdef" not in str(config.public()) + repr(config)
    assert config.public()["nbd"]["listen"] == ["127.0.0.1:10809"]


def test_secret_that_vanished_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("0123456789abcdef")
    config = parse(
        tomllib.loads(GOOD.replace('token = "0123456789abcdef"', 'token_file = "t"')), file="a.toml", base=tmp_path
    )
    (tmp_path / "t").unlink()
    with pytest.raises(ConfigError, match=r"management\.token_file: No such file"):
        config.token()


@pytest.mark.parametrize("name", ["c", "a", "b"])
def test_example_is_good(tmp_path: Path, name: str) -> None:
    for secret in (f"{name}.token", "transfer.key"):
        (tmp_path / secret).write_text("0123456789abcdef" * 2)
    path = tmp_path / f"{name}.toml"
    path.write_text((REPOSITORY / "deploy" / f"{name}.toml").read_text())
    config = load(path)
    assert config.controller.name == name.upper()
    assert config.controller.data_directory.parent == tmp_path


def test_version_is_the_projects() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


FREE = GOOD.replace("[management]", '[nbd]\nlisten = ["127.0.0.1:0"]\n[management]\nlisten = "127.0.0.1:0"')
"""A configuration whose addresses are free wherever the tests run."""


def test_check_config_says_good_or_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.toml"
    path.write_text(FREE)
    assert main(["--config", str(path), "--check-config"]) == 0
    assert "good (controller A" in capsys.readouterr().out
    path.write_text(GOOD + "[storag]\n")
    assert main(["--config", str(path), "--check-config"]) == 2
    assert capsys.readouterr().err == f"{path}: storag: unknown section; did you mean storage?\n"
    assert not (tmp_path / "data").exists(), "a check touches nothing"


def test_what_is_not_wise_is_said_and_does_not_stop_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t").write_text("0123456789abcdef")
    (tmp_path / "t").chmod(0o644)
    path = tmp_path / "a.toml"
    text = GOOD.replace('token = "0123456789abcdef"', 'token_file = "t"\nlisten = "0.0.0.0:0"')
    path.write_text(text + '[nbd]\nlisten = "0.0.0.0:0"\n')
    assert main(["--config", str(path), "--check-config"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["warning"] * 3
    assert "nbd.listen: 0.0.0.0:0 is reached over a network without TLS" in lines[0]
    assert "management.listen: 0.0.0.0:0 is reached over a network without TLS" in lines[1]
    assert f"chmod 600 {tmp_path}/t" in lines[2]


def test_certificates_that_clients_can_do_without_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_certificate(tmp_path, "c")
    path = tmp_path / "a.toml"
    tls = 'certificate = "c.pem"\nkey = "c.key"\nca = "c.pem"\nclient_certificates = "required"\n'
    for mode, warned in (("allow", 1), ("require", 0)):
        path.write_text(f'{FREE}[nbd.tls]\nmode = "{mode}"\n{tls}')
        assert main(["--config", str(path), "--check-config"]) == 0
        assert capsys.readouterr().err.count("does not bind clients that come without TLS") == warned


def test_daemon_needs_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--config FILE is needed" in capsys.readouterr().err


def test_reference_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-reference"]) == 0
    assert capsys.readouterr().out == reference()


def test_certificates_are_tried(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_certificate(tmp_path, name)
    files = ["-in", f"{tmp_path}/one.key", "-out", f"{tmp_path}/enc.key"]
    subprocess.run(["openssl", "ec", "-aes128", "-passout", "pass:x", *files], check=True, capture_output=True)

    def check(certificate: str, key: str, ca: str) -> list[str]:
        tls = (
            f'[replication]\nlisten = "127.0.0.1:0"\n[replication.tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
        )
        try:
            parse(tomllib.loads(f'{GOOD}{tls}ca = "{ca}"\n'), file="a.toml", base=tmp_path)
        except ConfigError as error:
            return [problem.key for problem in error.problems]
        return []

    assert check("one.pem", "one.key", "two.pem") == []
    assert check("one.pem", "two.key", "two.pem") == ["replication.tls.certificate"]
    assert check("one.pem", "enc.key", "two.pem") == ["replication.tls.certificate"]
    assert check("one.pem", "one.key", "one.key") == ["replication.tls.ca"]
