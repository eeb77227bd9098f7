"""Names that people give to disks, pools, groups and volumes.

Owns: which names may be given.
Never: knows what is named.
"""

from __future__ import annotations

from typing import Any

from controllerd.model.errors import BadOrder, Conflict


def check_new(kind: str, name: str, known: dict[str, Any]) -> None:
    """Refuse a name for a new ``kind`` of thing, of which ``known`` has those that there are.

    Raises:
        BadOrder: nothing may have this name.
        Conflict: it is taken.
    """
    if not name or len(name) > 63 or not all(char.isalnum() or char in "._-" for char in name) or name[0] in ".-":
        raise BadOrder(f"{kind} name {name!r}: use 1 to 63 letters, digits, '.', '_', '-'")
    if name in known:
        raise Conflict(f"a {kind} named {name} exists already")
