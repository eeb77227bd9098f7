"""Which controller an order goes to: client file, environment, options."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmtctl.errors import CliError, ExitCode
from mgmtctl.session import Session, split_target
from mgmtctl.settings import (
    Endpoint,
    Overrides,
    Settings,
    check_url,
    client_file,
    environment_overrides,
    load_settings,
    read_token,
)

TWO = """
default = "A"
[controllers.A]
url = "http://127.0.0.1:1/"
token_file = "a.token"
[controllers.B]
url = "unix:b.sock"
token = "bbb"
"""


@pytest.fixture
def two(tmp_path: Path) -> Settings:
    path = tmp_path / "mgmtctl.toml"
    path.write_text(TWO)
    (tmp_path / "a.token").write_text("aaa\nmore\n")
    return load_settings(path, required=True)


def test_file_names_controllers(two: Settings, tmp_path: Path) -> None:
    assert two.resolve(None, Overrides()).url == "http://127.0.0.1:1"
    assert read_token(two.resolve("A", Overrides())) == "aaa"
    assert two.resolve("B", Overrides()).url == f"unix:{tmp_path}/b.sock"
    assert read_token(two.resolve("B", Overrides())) == "bbb"
    assert [endpoint.name for endpoint in two.all(Overrides())] == ["A", "B"]


def test_options_and_environment_come_before_the_file(two: Settings) -> None:
    assert two.resolve(None, Overrides(controller="B")).name == "B"
    assert two.resolve("A", Overrides(controller="B")).name == "A"
    assert two.resolve(None, Overrides(url="http://h:9")).url == "http://h:9"
    assert two.resolve("A", Overrides(url="http://h:9")).url == "http://127.0.0.1:1", "the order names one of the file"
    assert two.resolve("X", Overrides(url="http://h:9")).name == "X"
    assert read_token(two.resolve("A", Overrides(token="t"))) == "t"
    assert two.resolve("B", Overrides(token_file=Path("f"))).token_file == Path("f")
    assert [endpoint.name for endpoint in two.all(Overrides(controller="B"))] == ["B"]
    assert [endpoint.url for endpoint in two.all(Overrides(url="http://h:9"))] == ["http://h:9"]


def test_options_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MGMTCTL_URL": "http://env:1", "MGMTCTL_TOKEN": "env", "MGMTCTL_CONTROLLER": "E"}.items():
        monkeypatch.setenv(name, value)
    assert Session().overrides == Overrides("http://env:1", "env", None, "E")
    options = Overrides(url="http://opt:1", token_file=Path("f"), controller="O")
    assert Session(options=options).overrides == options
    assert environment_overrides({"MGMTCTL_URL": ""}) == Overrides()


def test_client_file_is_chosen_by_option_then_environment_then_default() -> None:
    assert client_file(Path("x"), {"MGMTCTL_CONFIG": "y"}) == (Path("x"), True)
    assert client_file(None, {"MGMTCTL_CONFIG": "y"}) == (Path("y"), True)
    assert client_file(None, {})[1] is False


def test_default_file_may_be_missing(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "none", required=False)
    with pytest.raises(CliError, match="no controller is known: give --url"):
        settings.resolve(None, Overrides())


def test_several_controllers_without_default_ask_which(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(TWO.replace('default = "A"', ""))
    with pytest.raises(CliError, match=r"which controller\? give -c NAME \(A, B\)"):
        load_settings(path, required=True).resolve(None, Overrides())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[controllers", "is not valid TOML"),
        ("a = " + "9" * 5000, "is not valid TOML"),
        ("defalt = 1", "defalt: unknown key; did you mean default?"),
        ("controllers = 1", "controllers: write sections"),
        ('default = "X"', 'default: "X" is no controller of this file'),
        ("[controllers]\nA = 1", "controllers.A: write a section"),
        ("[controllers.A]", "controllers.A.url: missing"),
        ('[controllers.A]\nurl = "ftp://x"', 'controllers.A.url: "ftp://x" is not an address'),
        ('[controllers.A]\nurl = "http://"', "is not an address"),
        ('[controllers.A]\nurl = "unix:"', "is not an address"),
        ('[controllers.A]\nurl = "http://x"\ntokn = "a"', "controllers.A.tokn: unknown key; did you mean token?"),
        ('[controllers.A]\nurl = "http://x"\ntoken = 1', "controllers.A.token: write text in quotes"),
        ('[controllers.A]\nurl = "http://x"\ntoken = "a"\ntoken_file = "b"', "keep one of the two"),
    ],
)
def test_mistake_in_the_client_file_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(content)
    with pytest.raises(CliError) as caught:
        load_settings(path, required=True)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.message.startswith(f"{path}: ")
    assert expected in caught.value.message


def test_token_file_problems_are_clear(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="No such file"):
        read_token(Endpoint("A", "http://x", token_file=tmp_path / "none"))
    (tmp_path / "empty").touch()
    with pytest.raises(CliError, match="is empty"):
        read_token(Endpoint("A", "http://x", token_file=tmp_path / "empty"))


def test_tokens_are_not_in_representations(two: Settings) -> None:
    assert "bbb" not in repr(two)
    assert "secret" not in repr(Overrides(token="secret"))


@pytest.mark.parametrize(
    ("target", "controller", "expected"),
    [("v", None, (None, "v")), ("v", "A", ("A", "v")), ("A:v", None, ("A", "v")), ("A:v", "A", ("A", "v"))],
)
def test_target_names_controller_and_object(
    target: str, controller: str | None, expected: tuple[str | None, str]
) -> None:
    assert split_target(target, controller) == expected


@pytest.mark.parametrize("target", ["", ":", "A:", ":v", "A:..", "a/b", "A:v?x", "v w", "A:" + "x" * 64])
def test_target_that_is_none_is_a_usage_error(target: str) -> None:
    with pytest.raises(CliError) as caught:
        split_target(target, None)
    assert caught.value.exit_code == ExitCode.USAGE


def test_target_and_option_must_agree() -> None:
    with pytest.raises(CliError, match="names controller A, but -c says B"):
        split_target("A:v", "B")


def test_unix_socket_url_is_absolute(tmp_path: Path) -> None:
    assert check_url("unix:s", "x", tmp_path) == f"unix:{tmp_path}/s"
