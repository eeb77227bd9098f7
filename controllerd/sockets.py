"""UNIX sockets that the daemon's ports listen on.

Owns: taking a path into use, so that only the permitted users can connect and nobody's socket is taken over.
Never: serves anything, or removes a socket that is listened on.
"""

from __future__ import annotations

import errno
import os
import socket
import stat


def bind_unix(path: str, mode: int) -> socket.socket:
    """A socket bound to ``path`` with permission bits ``mode``, to listen on. What a killed daemon left is replaced.

    Raises:
        OSError: somebody listens there, it is no socket, or it cannot be made.
    """
    check_free(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_unix(path)
        listener.bind(path)
        os.chmod(path, mode)  # before it listens: until then nobody can connect
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def remove_unix(path: str) -> None:
    """Remove the file of a socket that is not listened on any more, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def check_free(path: str) -> None:
    """Return when a socket can be made at ``path``, as far as what is there now is concerned.

    Raises:
        OSError: somebody listens there, or it is no socket.
    """
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
    raise OSError(errno.EADDRINUSE, "another process listens there", path)
