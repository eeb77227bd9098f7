"""Nothing that a user can order, set, read or meet as an error is without its documentation, and none is invented.

Both sides come from the running code (parsers, models, error classes, a served API), so that a new order, key, metric
or error without its line fails here.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command
from typer.testing import CliRunner

import controllerd.__main__
import controllerd.daemon
import hostsim.cli
import mgmtctl.main
from controllerd.config import parse
from controllerd.config.model import Config
from controllerd.config.problems import nested_model, title_of
from controllerd.config.reference import reference
from controllerd.management import errors as http
from controllerd.management.app import create_app
from controllerd.management.guard import GuardSettings
from controllerd.model import errors
from controllerd.model.errors import RemoteCopyError
from mgmtctl.errors import ExitCode
from mgmtctl.settings import load_settings
from tests.unit.management.fake_controller import TOKEN, fake_controller

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
WIDE = {"COLUMNS": "400"}
COUNTS = {
    "serial", "max_connections", "max_connections_per_address", "max_in_flight", "connections", "connections_max",
    "slice_records",
}  # fmt: skip
"""Configuration keys that are plain numbers: all others say their unit."""


# ---- the command lines -----------------------------------------------------------


def orders(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every order there is, as words and parser."""
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from orders(child, (*path, name))


MGMTCTL = dict(orders(get_command(mgmtctl.main.app)))
HOSTSIM = dict(orders(get_command(hostsim.cli.app)))
ORDERS = [("mgmtctl", *words) for words in MGMTCTL] + [("hostsim", *words) for words in HOSTSIM]


def parser_of(words: tuple[str, ...]) -> Any:
    return (MGMTCTL if words[0] == "mgmtctl" else HOSTSIM)[words[1:]]


@functools.cache
def help_of(words: tuple[str, ...]) -> str:
    app = mgmtctl.main.app if words[0] == "mgmtctl" else hostsim.cli.app
    result = CliRunner().invoke(app, [*words[1:], "--help"], env=WIDE)
    assert result.exit_code == 0
    return result.output


def understood(text: str) -> None:
    """Parse an order as it is written in a text; nothing is run."""
    program, *words = shlex.split(text, comments=True)
    command: Any = get_command({"mgmtctl": mgmtctl.main.app, "hostsim": hostsim.cli.app}[program])
    while getattr(command, "commands", None):
        command = command.commands[words.pop(0)]
    command.make_context(program, words)


def test_orders_are_all_there() -> None:
    assert {" ".join(words) for words in MGMTCTL} >= {
        "system show", "system config", "disk create", "disk list", "pool create", "pool list", "volume create",
        "volume list", "volume show", "volume resize", "volume delete", "group create", "group list", "group show",
        "group delete", "pair create", "pair list", "pair show", "pair delete", "status", "takeover", "metrics",
    }  # fmt: skip


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_every_order_says_what_it_does_with_an_example_that_can_be_given(words: tuple[str, ...]) -> None:
    text = help_of(words)
    assert parser_of(words).help
    examples = re.findall(r"Example: (.*\S)", text)
    assert examples
    for example in examples:
        assert example.startswith(" ".join(words))
        understood(example.replace("...", ""))


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_every_option_and_argument_has_a_meaning_in_the_help(words: tuple[str, ...]) -> None:
    text = help_of(words)
    for parameter in parser_of(words).params:
        assert parameter.help, parameter.name
        assert parameter.help.split(". ")[0].split("[")[0].strip() in text
        if parameter.param_type_name == "option":
            assert all(option in text for option in parameter.opts)


def test_options_before_the_order_have_a_meaning() -> None:
    text = help_of(("mgmtctl",))
    command: Any = get_command(mgmtctl.main.app)
    for parameter in command.params:
        assert parameter.help
        assert all(option in text for option in parameter.opts)


def test_help_names_every_variable_and_key_of_the_client() -> None:
    text = help_of(("mgmtctl",))
    sources = "".join(path.read_text() for path in (REPOSITORY / "mgmtctl").glob("*.py"))
    for variable in set(re.findall(r'"(MGMTCTL_[A-Z]+)"', sources)):
        assert variable in text
    for key in ("default", "[controllers.A]", *mgmtctl.settings._ENTRY_KEYS):
        assert re.search(rf"{re.escape(key)}\b|{re.escape(key)}", text)


def documented_codes(text: str) -> dict[int, str]:
    listed = text.partition("Exit codes:")[2]
    return {int(code): meaning for code, meaning in re.findall(r"^ +(\d+)  (\S.*?) *$", listed, re.MULTILINE)}


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_exit_codes_of_mgmtctl_are_those_that_it_uses() -> None:
    assert set(documented_codes(help_of(("mgmtctl",)))) == set(ExitCode)
    used = set()
    for path in (REPOSITORY / "mgmtctl").glob("*.py"):
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Dict) and any(isinstance(key, ast.Attribute) for key in node.keys):
                node.keys.clear()  # MEANINGS names them all
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ExitCode":
                used.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Exit", "sys.exit"):
                assert not any(isinstance(argument, ast.Constant) for argument in node.args), ast.unparse(node)
    assert used == set(ExitCode.__members__)
    assert not returned_numbers(REPOSITORY / "mgmtctl" / "main.py", "main"), "an ExitCode says what it means"


def returned_numbers(path: Path, *functions: str) -> set[int]:
    found = [node for node in ast.walk(syntax(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    returns = [node for one in found if one.name in functions for node in ast.walk(one) if isinstance(node, ast.Return)]
    assert returns
    return {
        node.value.value
        for node in returns
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, int)
    }


def test_exit_codes_of_the_daemon_are_those_that_it_uses() -> None:
    used = returned_numbers(Path(controllerd.__main__.__file__), "main")
    used |= returned_numbers(Path(controllerd.daemon.__file__), "_serve", "run") | {controllerd.daemon.EXIT_FAILED}
    assert set(documented_codes(controllerd.__main__.build_parser().format_help())) == used


def test_exit_codes_of_hostsim_are_those_that_it_uses() -> None:
    used = {value for name, value in vars(hostsim.cli).items() if name.startswith("EXIT_")}
    assert set(documented_codes(help_of(("hostsim",)))) == used | {0}


def test_every_argument_of_the_daemon_has_a_meaning() -> None:
    parser = controllerd.__main__.build_parser()
    assert all(action.help for action in parser._actions)


# ---- README ----------------------------------------------------------------------


def test_orders_in_the_readme_can_be_given() -> None:
    written = re.findall(r"^    (mgmtctl [a-z].*)$", README, re.MULTILINE)
    written += [text for text in re.findall(r"`(mgmtctl [a-z][^`]*)`", README) if not text.endswith("--help")]
    assert len(written) > 8
    for text in written:
        understood(text)


def test_files_in_the_readme_are_good(tmp_path: Path) -> None:
    written = dict(re.findall(r"cat > (\S+) <<'EOF'\n(.*?)\n    EOF\n", README, re.DOTALL))
    assert set(written) == {"a.toml", "mgmtctl.toml"}
    (tmp_path / "a.token").write_text(TOKEN)
    parse(tomllib.loads(written["a.toml"]), file="a.toml", base=tmp_path)
    (tmp_path / "mgmtctl.toml").write_text(written["mgmtctl.toml"])
    assert load_settings(tmp_path / "mgmtctl.toml", required=True).default == "A"


# ---- configuration -----------------------------------------------------------------


def sections(model: Any = Config, path: str = "") -> Iterator[tuple[str, str, FieldInfo]]:
    """Every configuration key: section, name, field."""
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested is None:
            yield path, name, field
        else:
            yield from sections(nested, f"{path}.{name}" if path else name)


@pytest.mark.parametrize(("section", "key", "field"), list(sections()), ids=lambda part: str(part)[:40])
def test_every_configuration_key_is_in_the_reference(section: str, key: str, field: FieldInfo) -> None:
    heading = f"### `[[{section}]]`" if section == "peer" else f"### `[{section}]`"
    table = reference().partition(heading + "\n")[2].partition("\n### ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(f"| `{key}` |")]
    assert len(rows) == 1, "one line in the reference"
    _, value, default, meaning = rows[0]
    assert value
    assert default
    assert len(meaning) > 10
    assert (default == "required") == field.is_required()


def test_every_number_says_its_unit_and_limits() -> None:
    for section, key, field in sections():
        word = title_of(field)
        if word == "size":
            assert key.endswith("_bytes"), f"{section}.{key}"
        elif field.annotation in (int, float, int | None):
            assert key.endswith(("_s", "_ms", "_us")) or key in COUNTS, f"{section}.{key} in what unit?"
            limits = {name for item in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
            assert len(limits) >= 2, f"{section}.{key} has no limits"


# ---- the API ---------------------------------------------------------------------------


@pytest.fixture
async def openapi(tmp_path: Path) -> dict[str, Any]:
    async with fake_controller(tmp_path) as controller:
        transport = httpx.ASGITransport(create_app(controller, GuardSettings(TOKEN)))
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as api:
            document: dict[str, Any] = (await api.get("/openapi.json")).json()
    return document


def test_every_path_says_what_it_does_answers_and_fails_with(openapi: dict[str, Any]) -> None:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["description"], where
            for status, response in operation["responses"].items():
                assert response["description"], where
                kind = "text/plain" if (path, status) == ("/metrics", "200") else "application/json"
                assert list(response["content"]) == [kind], f"{where}: {status}"
                failed = {"$ref": "#/components/schemas/ErrorAnswer"}
                assert (response["content"][kind]["schema"] == failed) == (status in ("4XX", "5XX")), where
            assert {"4XX", "5XX"} <= set(operation["responses"]), where


ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RemoteCopyError) and kind is not RemoteCopyError
]


def test_every_error_is_in_the_api_description(openapi: dict[str, Any]) -> None:
    for kind in ERRORS:
        meaning = (kind.__doc__ or "").splitlines()[0]
        assert len(meaning) > 10, kind
        error = errors.Trimmed(1) if kind is errors.Trimmed else kind("")
        row = f"| {http.status_of(error)} | {kind.code} | {meaning} |"
        assert row in openapi["info"]["description"]


def test_every_error_of_http_is_in_the_api_description(openapi: dict[str, Any]) -> None:
    named = {value for value in vars(http).values() if isinstance(value, http.HttpError)}
    for status, code, meaning in named:
        assert f"| {status} | {code} | {meaning} |" in openapi["info"]["description"]
    assert len(named) >= 8
    for path in (REPOSITORY / "controllerd" / "management").glob("*.py"):
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "error_response":
                assert not any(isinstance(argument, ast.Constant) for argument in node.args), ast.unparse(node)
