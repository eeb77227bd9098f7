"""Faults: what keeps hosts from writing to a group, or anybody from reading it, and the words for it.

Owns: setting `Group.refused`, `read_error`, `disk_error`, and `write_error`, which is the first of them.
Never: finds a fault, or repairs one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from controllerd.model.errors import Busy, DiskFailed, RemoteCopyError

if TYPE_CHECKING:
    from controllerd.storage.group import Group


class Faults:
    """The faults of ``group``."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def refuse_writes(self, error: RemoteCopyError | None) -> None:
        """Refuse host writes with ``error`` from now on; None takes them again, unless a disk does not."""
        self._group.refused = error
        self._refuse()

    def disk_failed(self, error: DiskFailed | None) -> None:
        """A disk does not take what is destaged: hosts get ``error``, nothing is applied. None: it does again."""
        self._group.disk_error = error
        self._refuse()

    def hold(self, error: RemoteCopyError) -> None:
        """Neither readable nor writable until a restart recovers it: what it would show cannot be trusted (I9)."""
        self._group.read_error = error
        self._group.release_cache()
        self._refuse()

    def let_go(self) -> None:
        """The recovery has ended well: readable and, if nothing else is in the way, writable from now on."""
        self._group.read_error = None
        self._refuse()

    def _refuse(self) -> None:
        group = self._group
        group.write_error = group.refused or group.read_error or group.disk_error
        group.update_accepting()

    def describe(self) -> str | None:
        """One line for people when the group cannot work as it should; passing states (Busy) are no faults."""
        error = self._group.broken or self._group.write_error
        return None if error is None or isinstance(error, Busy) else str(error)

    def name(self) -> str | None:
        """`describe` for a list of many groups: it says once which one is meant."""
        fault = self.describe()
        if fault is None or re.search(rf"\bgroup {re.escape(self._group.name)}(?![\w.-])", fault):
            return fault
        return f"group {self._group.name}: {fault}"

    def say(self, what: str, error: object) -> str:
        """``group g is held: ...``: what is so and because of what, without the group's name twice."""
        return f"group {self._group.name} {what}: {str(error).removeprefix(f'group {self._group.name}: ')}"
