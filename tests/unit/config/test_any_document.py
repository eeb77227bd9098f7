"""Whatever a file says, it is a configuration or a list of one-line problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controllerd.config import ConfigError, parse
from controllerd.config.model import Config
from controllerd.config.problems import Problem, nested_model

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1MiB", "h:1", "time"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _sections() -> st.SearchStrategy[dict[str, Any]]:
    sections: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in Config.model_fields.items():
        model = nested_model(field.annotation)
        assert model is not None
        keys = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=6)
        section = st.dictionaries(keys, VALUES, max_size=4)
        sections[name] = section | st.lists(section, max_size=2) | VALUES
    return st.fixed_dictionaries({}, optional=sections)


@given(_sections())
def test_any_document_is_good_or_refused_line_by_line(document: dict[str, Any]) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        parse(document, file="x.toml", base=Path("/nonexistent"))
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        assert str(problem).startswith("x.toml: ")
        assert "\n" not in str(problem)
