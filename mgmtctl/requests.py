"""Requests made from what the caller wrote, checked before anything is sent.

Owns: one clear line for a value that the schema refuses. Never: sends.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mgmtctl.errors import usage_error

_Request = TypeVar("_Request", bound=BaseModel)


def build(model: type[_Request], **fields: object) -> _Request:
    """``model`` made of ``fields`` (None: not given); raises CliError (usage) naming every field that is wrong."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise usage_error(
            "; ".join(_line(model, item["loc"], item["msg"], item["input"]) for item in error.errors())
        ) from None


def _line(model: type[BaseModel], location: tuple[int | str, ...], message: str, value: object) -> str:
    field = model.model_fields.get(str(location[0])) if location else None
    hint = field.description if field is not None and "pattern" in message else None
    if hint is None and "pattern" in message:
        hint = "use 1 to 63 letters, digits, '.', '_' or '-', first a letter or digit"
    name = ".".join(str(part).replace("_", "-") for part in location)
    return f'{name} "{value}": {hint or message}'
