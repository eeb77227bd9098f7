"""The one place where errors of the controller become NBD error numbers.

Owns: the mapping from `RemoteCopyError.code` to errno, and the exception for a request
that the target itself refuses.
Never: formats a reply.

Source: proto.md, "Error values" (which numbers may be sent, and when).
"""

from __future__ import annotations

from typing import Final

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.wire import STRING_MAX, Errno

_BY_CODE: Final = {
    "bad-order": Errno.EINVAL,
    "not-authorised": Errno.EPERM,
    "no-space": Errno.ENOSPC,
    "read-only": Errno.EPERM,
}
"""Codes whose remedy a host can know. Everything else is EIO: the volume cannot do it, and only the operator
finds out why (journal-failed, disk-failed, corrupt, mirror-lost, overflow, busy, ...)."""


class RequestRefused(Exception):
    """The host's request cannot be served as sent; ``errno`` and ``text`` go back to it."""

    def __init__(self, errno: Errno, text: str) -> None:
        super().__init__(text)
        self.errno = errno
        self.text = text


def errno_of(error: RemoteCopyError | RequestRefused) -> Errno:
    """Return the error number a host gets for ``error``."""
    if isinstance(error, RequestRefused):
        return error.errno
    return _BY_CODE.get(error.code, Errno.EIO)


def text_of(error: RemoteCopyError | RequestRefused) -> bytes:
    """Return the text a host gets for ``error``: UTF-8, at most `STRING_MAX` bytes, cut between characters."""
    data = str(error).encode("utf-8", "replace")
    if len(data) <= STRING_MAX:
        return data
    return data[:STRING_MAX].decode("utf-8", "ignore").encode()
