"""The configuration reference, generated from the models so that it cannot fall behind.

Owns: the markdown table. Never: knows a key by name.
"""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from controllerd.config.model import Address, Config
from controllerd.config.problems import nested_model, title_of
from controllerd.units import format_size


def reference() -> str:
    """Markdown: one table per section, keys in the order of the model."""
    return "\n".join(_section(Config, ())).strip() + "\n"


def _section(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    plain = {name: field for name, field in model.model_fields.items() if nested_model(field.annotation) is None}
    if plain:
        repeated = path == ("peer",)
        heading = f"[[{path[0]}]]" if repeated else f"[{'.'.join(path)}]"
        lines += [f"### `{heading}`", "", (model.__doc__ or "").strip() + (" May be repeated." if repeated else ""), ""]
        lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for name, field in plain.items():
            cells = (f"`{name}`", _value(field), _default(field), field.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    for name, field in model.model_fields.items():
        nested = nested_model(field.annotation)
        if nested is not None:
            lines += _section(nested, (*path, name))
    return lines


def _value(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " or ".join(f'`"{choice}"`' for choice in choices)
    word = title_of(field) or {int: "whole number", float: "number"}.get(annotation, "text")
    limits = {
        name: getattr(item, name) for item in field.metadata for name in ("ge", "gt", "le") if hasattr(item, name)
    }
    show = format_size if word == "size" else str
    low = show(limits["ge"]) if "ge" in limits else f"more than {show(limits['gt'])}" if "gt" in limits else ""
    high = show(limits["le"]) if "le" in limits else ""
    return f"{word}, {low} to {high}" if low and high else word


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return f"`{[str(item) for item in default]}`".replace("'", '"')
    if isinstance(default, str | Address):
        return f'`"{default}"`'
    if title_of(field) == "size":
        return f'`"{format_size(default).replace(" ", "")}"`'
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
