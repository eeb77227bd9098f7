"""HTTPS on the management port: mgmtctl and curl get answers, and tell nothing to a server that proves nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgmtctl.errors import ExitCode
from mgmtctl.main import main
from tests.certificates import Authority
from tests.unit.management.api_thread import served
from tests.unit.management.fake_controller import TOKEN


@dataclass
class Secure:
    """A controller A over HTTPS; ``authority`` has signed its certificate, ``stranger`` has not."""

    url: str
    authority: Authority
    stranger: Authority
    client_file: Path

    def mgmtctl(self, words: str, *, ca: Path | None, url: str = "") -> int:
        trusted = f'ca = "{ca}"' if ca is not None else ""
        self.client_file.write_text(f'[controllers.A]\nurl = "{url or self.url}"\ntoken = "{TOKEN}"\n{trusted}\n')
        return main(["--config", str(self.client_file), *words.split()])

    def curl(self, *options: str, url: str = "") -> subprocess.CompletedProcess[str]:
        command = ["curl", "--silent", "--show-error", "--max-time", "30", "--header", f"Authorization: Bearer {TOKEN}"]
        command += [*options, f"{url or self.url}/v1/system"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Secure]:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    certificate, key = authority.issue("A", "DNS:localhost,IP:127.0.0.1")
    with served(tmp_path, {"name": "A"}, certificate=certificate, key=key) as controllers:
        yield Secure(controllers.urls["A"], authority, stranger, tmp_path / "m.toml")


def test_mgmtctl_gives_orders_over_https(secure: Secure, capsys: pytest.CaptureFixture[str]) -> None:
    assert secure.url.startswith("https://127.0.0.1:")
    assert secure.mgmtctl("group create g1", ca=secure.authority.certificate) == 0
    assert secure.mgmtctl("group list --json", ca=secure.authority.certificate) == 0
    assert '"name": "g1"' in capsys.readouterr().out


@pytest.mark.parametrize("ca", ["stranger", "system"])
def test_mgmtctl_says_nothing_to_a_server_it_cannot_trust(
    secure: Secure, ca: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = secure.stranger.certificate if ca == "stranger" else None
    assert secure.mgmtctl("group create g1", ca=trusted) == ExitCode.UNREACHABLE
    assert "certificate" in capsys.readouterr().err.lower()
    assert secure.mgmtctl("group list --json", ca=secure.authority.certificate) == 0
    assert json.loads(capsys.readouterr().out) == [], "the order was not given"


def test_mgmtctl_looks_at_the_name_in_the_certificate(secure: Secure, capsys: pytest.CaptureFixture[str]) -> None:
    url = secure.url.replace("127.0.0.1", "127.0.0.2")
    assert secure.mgmtctl("system show", ca=secure.authority.certificate, url=url) == ExitCode.UNREACHABLE
    assert secure.mgmtctl("system show", ca=secure.authority.certificate) == 0
    capsys.readouterr()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authority_file_that_cannot_be_used_is_a_usage_error(
    secure: Secure, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing.pem"
    if content is not None:
        path.write_text(content)
    assert secure.mgmtctl("system show", ca=path) == ExitCode.USAGE
    assert "missing.pem" in capsys.readouterr().err


def test_http_to_an_https_port_is_an_error_not_a_wait(secure: Secure, capsys: pytest.CaptureFixture[str]) -> None:
    url = secure.url.replace("https:", "http:")
    assert secure.mgmtctl("system show", ca=None, url=url) == ExitCode.UNREACHABLE
    assert "does not answer" in capsys.readouterr().err
    assert secure.curl(url=url).returncode != 0


def test_curl_gets_an_answer_with_the_right_authority_only(secure: Secure) -> None:
    good = secure.curl("--cacert", str(secure.authority.certificate))
    assert json.loads(good.stdout)["name"] == "A", good.stderr
    wrong = secure.curl("--cacert", str(secure.stranger.certificate))
    assert (wrong.returncode, wrong.stdout) == (60, "")
    old = secure.curl("--cacert", str(secure.authority.certificate), "--tls-max", "1.1")
    assert (old.returncode, old.stdout) == (35, "")
