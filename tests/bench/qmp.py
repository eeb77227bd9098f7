"""Control of a qemu program over its QMP socket: JSON lines, one order at a time.

Owns: the connection and the hand-shake. Never: knows what the orders mean.
Source: QEMU "Machine Protocol Specification".
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """The program refused an order; ``str()`` is its own description."""


class Qmp:
    """A connection to the QMP socket at ``path``, ready for orders."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._lines.readline()  # the greeting
        self.order("qmp_capabilities")

    def order(self, command: str, **arguments: Any) -> Any:
        """Carry out ``command``; keyword arguments have ``_`` where QMP has ``-``. Raises QmpError if it is refused."""
        message = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise QmpError(f"{command}: the connection was closed")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
