"""What is wrong with a configuration, one clear line per problem.

Owns: the shape of such a line and the translation of pydantic's findings into it.
Never: decides what is allowed; that is said by the models in model.py and by checks.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from controllerd.units import format_size


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: ``key`` in ``file`` is ``wrong``; ``right`` is what would be accepted ("" if ``wrong`` says it)."""

    file: str
    key: str
    wrong: str
    right: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.file, self.key) if part)
        line = f"{place}: {self.wrong}"
        return " ".join(f"{line}; {self.right}".split()) if self.right else " ".join(line.split())


class ConfigError(Exception):
    """The configuration cannot be used; ``problems`` lists everything found. The operator has to change the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def explain(error: ValidationError, model: type[BaseModel], file: str) -> list[Problem]:
    """Pydantic's findings about a document checked against ``model``, as problems in ``file``."""
    details = error.errors(include_url=False)
    return [_problem(detail, model, file) for detail in details]


def _problem(detail: ErrorDetails, model: type[BaseModel], file: str) -> Problem:
    location = detail["loc"]
    key = key_text(location)
    kind, context = detail["type"], detail.get("ctx", {})
    given = shown(detail["input"])
    if kind == "extra_forbidden":
        return Problem(file, key, "unknown key" if len(location) > 1 else "unknown section", _meant(model, location))
    if kind == "missing":
        return Problem(file, key, "missing", _missing(model, location))
    if kind == "value_error":
        return Problem(file, key, str(context["error"]))
    if kind == "literal_error":
        return Problem(file, key, f"{given} is not possible", f"write {_choices(model, location)}")
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        limit = next(iter(context.values()))
        if _is_size(model, location):
            limit, given = f'"{format_size(limit).replace(" ", "")}"', format_size(detail["input"])
        elif isinstance(limit, float):
            limit = int(limit) if limit.is_integer() else f"{limit:g}"
        if detail["input"] != detail["input"]:  # only nan is not itself
            return Problem(file, key, f"{given} is not a number", f"write a number {_LIMIT_WORDS[kind]} {limit}")
        return Problem(file, key, f"{given} is out of range", f"write a value {_LIMIT_WORDS[kind]} {limit}")
    right = _TYPE_WORDS.get(kind)
    if right is None:
        return Problem(file, key, f"{given}: {detail['msg']}")
    return Problem(file, key, f"{given} has the wrong type", right)


_LIMIT_WORDS = {
    "greater_than": "greater than",
    "greater_than_equal": "of at least",
    "less_than": "less than",
    "less_than_equal": "of at most",
}
_TYPE_WORDS = {
    "int_type": "write a whole number without quotes",
    "int_from_float": "write a whole number",
    "float_type": "write a number without quotes",
    "string_type": 'write text in quotes, like "name"',
    "bool_type": "write true or false",
    "model_type": "write it as a [section]",
    "model_attributes_type": "write it as a [section]",
    "dict_type": "write it as a [section]",
    "tuple_type": "write it as [[peer]] sections",
    "list_type": "write it as a list in [ ]",
}


def field_at(model: type[BaseModel], location: Sequence[int | str]) -> FieldInfo | None:
    """The key that ``location`` leads to, None when there is none of that name."""
    section = section_model(model, location[:-1])
    return section.model_fields.get(str(location[-1])) if section is not None else None


def title_of(field: FieldInfo) -> str:
    """The word for what a key takes ("size", "path", ...), "" for plain numbers and text."""
    for item in (*field.metadata, *get_args(field.annotation)):
        for part in (item, *getattr(item, "__metadata__", ())):
            schema = getattr(part, "json_schema", None)
            if isinstance(schema, dict) and "title" in schema:
                return str(schema["title"])
    return ""


def _is_size(model: type[BaseModel], location: Sequence[int | str]) -> bool:
    field = field_at(model, location)
    return field is not None and title_of(field) == "size"


def key_text(location: Sequence[int | str]) -> str:
    """``("peer", 0, "address")`` as an administrator finds it: ``[[peer]] no. 1: address``."""
    parts: list[str] = []
    for part in location:
        if isinstance(part, int):
            parts[-1] = f"[[{parts[-1]}]] no. {part + 1}: "
        else:
            parts.append(part)
    return ".".join(parts).replace(": .", ": ").rstrip(": ")


def shown(value: object) -> str:
    """A value as it stands in the file, short enough for one line."""
    text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def section_model(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model of the section that ``location`` leads into, None when it leads into no section."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return None
        current = nested_model(current.model_fields[part].annotation)
    return current


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model``, ``Model | None`` or ``tuple[Model, ...]``; None for plain values."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _meant(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """What somebody who wrote this unknown key may have meant."""
    section = section_model(model, location[:-1]) or model
    known = list(section.model_fields)
    written = str(location[-1])
    close = difflib.get_close_matches(written, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [
        f"[{name}]"
        for name, field in model.model_fields.items()
        if (nested := nested_model(field.annotation)) is not None and written in nested.model_fields
    ]
    if elsewhere:
        return f"it belongs in {' or '.join(elsewhere)}"
    return f"known here: {', '.join(known)}"


def _missing(model: type[BaseModel], location: Sequence[int | str]) -> str:
    field = field_at(model, location)
    if field is None:
        return "it is required"
    if nested_model(field.annotation) is not None:
        return f"give a [{key_text(location)}] section"
    return f"it is required: {field.description}" if field.description else "it is required"


def _choices(model: type[BaseModel], location: Sequence[int | str]) -> str:
    field = field_at(model, location)
    choices = [f'"{choice}"' for choice in get_args(field.annotation)] if field is not None else []
    return " or ".join(choices)
