"""Any file: it is a configuration, or what is wrong with it is said, one line for each problem."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from controllerd.config import ConfigError, load
from controllerd.config.model import Config
from controllerd.config.problems import nested_model
from tests.fuzz.source import Source


def _keys() -> dict[str, tuple[str, ...]]:
    keys: dict[str, tuple[str, ...]] = {}
    for name, field in Config.model_fields.items():
        model = nested_model(field.annotation)
        assert model is not None
        keys[field.alias or name] = tuple(inner.alias or key for key, inner in model.model_fields.items())
    return keys


_KEYS: Final = _keys()
_SECTIONS: Final = (*_KEYS, "nothing", "nbd.tls", "")
_VALUES: Final = (
    "1", "0", "-1", "true", '"A"', '"4MiB"', '"127.0.0.1:10809"', '["unix:nbd.sock"]', '"key"', "[]", "{}", "1.5",
    "inf", "nan", '"time"', "1979-05-27T07:32:00Z", "9" * 4400, "1e999", '"\\u0000"', '"' + "x" * 5000 + '"',
    '"[::1]:1"', '["0.0.0.0:1", "0.0.0.0:1"]', '{name = "B", address = "h:1", serial = 2}', "'''\n\n'''",
    "[" * 2000, '"\\U0010FFFF"', '"9999999999999TiB"', '"h:99999999"', '"/"', '".."', '"~no-one/key"',
    '"unix:~no-one/s"', "0x" + "f" * 40, '"unix:"',
)  # fmt: skip
_SOUND: Final = """
[controller]
name = "A"
serial = 1
data_directory = "data"
[management]
token = "0123456789abcdef"
"""


def run(data: bytes) -> None:
    """Read what ``data`` makes of a file."""
    source = Source(data)
    text = _SOUND if source.number(1) & 1 else ""
    for _ in range(source.number(1) % 8):
        text += _part(source)
    content = bytearray(text.encode())
    for _ in range(source.pick((0, 0, 1, 5))):
        place = source.number(2) % (len(content) + 1)
        content[place : place + source.number(1) % 4] = source.take(source.number(1) % 4)
    with tempfile.TemporaryDirectory(prefix="rc-fuzz-") as directory:
        path = Path(directory) / "controller.toml"
        path.write_bytes(content)
        (path.parent / "key").write_bytes(b"k" * 32)
        before = sorted(path.parent.iterdir())
        for line in _problems(path):
            assert line.startswith(f"{path}: ")
            assert "\n" not in line
            assert line.encode()
        assert sorted(path.parent.iterdir()) == before, "reading a configuration makes nothing"


def _problems(path: Path) -> list[str]:
    try:
        load(path)
    except ConfigError as error:
        return [str(problem) for problem in error.problems] or [""]  # none at all is no answer
    return []


def _part(source: Source) -> str:
    section = source.pick(_SECTIONS)
    head = source.pick((f"[{section}]\n", f"[[{section}]]\n", "", f"[{section}.{section}]\n"))
    keys = (*_KEYS.get(section, ()), "unknown", '"a\\nb"')
    lines = [f"{source.pick(keys)} = {source.pick(_VALUES)}\n" for _ in range(source.number(1) % 5)]
    return head + "".join(lines)
