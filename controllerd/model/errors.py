"""Error types of the controller, named by what the receiver of the error can do about it.

Owns: the tree of exceptions and their stable codes.
Never: decides how an error looks on a wire; each port maps the types to its own codes
(NBD errno, HTTP status, exit code) in one place of its own.

    RemoteCopyError
    +-- CallerError       the order or request is at fault: change it
    |   +-- BadOrder          not possible like this, or not in this state
    |   +-- NotFound          names something that does not exist
    |   +-- Conflict          contradicts what exists
    |   +-- NotAuthorised     the peer or user did not prove who it is, or may not do this
    +-- RetryError        nobody is at fault: the same request can succeed later
    |   +-- Busy              something else has to finish first
    |   +-- WouldBlock        the answer is not in memory: use the slow variant
    |   +-- Unreachable       the peer does not answer
    +-- StorageError      this controller's storage: the operator has to act
    |   +-- NoSpace           a disk, pool or journal is full; nothing was changed
    |   +-- ReadOnly          the volume or group takes no writes now
    |   +-- JournalFailed     the journal cannot be written or synced: the group has stopped
    |   +-- DiskFailed        a disk returned an error
    |   +-- Corrupt           bytes or numbers that cannot be right: never used, never skipped
    +-- PairError         the pair is at fault: suspend it, resynchronise later
        +-- Trimmed           the records asked for are no longer kept
        +-- MirrorLost        the synchronous peer did not confirm
        +-- Overflow          a limit was exceeded because the peer is slower than the writes
"""

from __future__ import annotations

from typing import ClassVar


class RemoteCopyError(Exception):
    """Base of every error the controller reports.

    ``text`` is one line for people: what is wrong, where, and what would be right. ``facts``
    holds the same things for programs by name (volume, position, limit, ...).
    """

    code: ClassVar[str] = "internal"
    """Stable name for programs, in kebab case."""

    def __init__(self, text: str, **facts: object) -> None:
        super().__init__(text)
        self.text = text
        self.facts = facts


class CallerError(RemoteCopyError):
    """The order or request is at fault."""

    code = "caller"


class BadOrder(CallerError):
    """The order is not possible like this, or not in the present state."""

    code = "bad-order"


class NotFound(CallerError):
    """Something that was named does not exist."""

    code = "not-found"


class Conflict(CallerError):
    """The order contradicts what exists (a name taken, other parameters, another generation)."""

    code = "conflict"


class NotAuthorised(CallerError):
    """The peer or user did not prove who it is, or may not do this."""

    code = "not-authorised"


class RetryError(RemoteCopyError):
    """The same request can succeed later."""

    code = "retry"


class Busy(RetryError):
    """Something else has to finish first."""

    code = "busy"


class WouldBlock(RetryError):
    """The answer is not in memory; nothing was read. Use the slow variant."""

    code = "would-block"


class Unreachable(RetryError):
    """The peer does not answer."""

    code = "unreachable"


class StorageError(RemoteCopyError):
    """Storage of this controller is at fault."""

    code = "storage"


class NoSpace(StorageError):
    """A disk, pool or journal is full. Nothing was changed."""

    code = "no-space"


class ReadOnly(StorageError):
    """The volume or group takes no writes now (secondary, fenced, failed, or by attribute)."""

    code = "read-only"


class JournalFailed(StorageError):
    """The journal could not be written or synced. What was not acknowledged is lost; never retried."""

    code = "journal-failed"


class DiskFailed(StorageError):
    """A disk returned an error."""

    code = "disk-failed"


class Corrupt(StorageError):
    """Bytes or numbers that cannot be right. They were not used and are not skipped."""

    code = "corrupt"


class PairError(RemoteCopyError):
    """The pair cannot go on as it is: suspend it and resynchronise later."""

    code = "pair"


class Trimmed(PairError):
    """The records asked for are no longer kept; ``first_available`` is the first number that is."""

    code = "trimmed"

    def __init__(self, first_available: int, text: str = "", **facts: object) -> None:
        super().__init__(
            text or f"records before {first_available} are no longer kept", first_available=first_available, **facts
        )
        self.first_available = first_available


class MirrorLost(PairError):
    """The synchronous peer did not confirm a write in time (fence level data)."""

    code = "mirror-lost"


class Overflow(PairError):
    """A limit was exceeded because the peer, or one of its connections, is behind."""

    code = "overflow"
