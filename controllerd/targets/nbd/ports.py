"""What the NBD target needs of the storage layer, as Protocols.

Owns: the shape of volumes, groups and the export table as hosts' requests see them.
Never: implements any of it (storage does; tests use a fake of the same shape).

One *pass* over a connection's input stages many writes, commits each group once and
then answers; see the architecture page, "The data path is batch-oriented".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from controllerd.model.access import Client, Grant
from controllerd.model.errors import RemoteCopyError

Waiter = Callable[[RemoteCopyError | None], None]


class Group(Protocol):
    """A volume group: numbers, journals and acknowledges the writes of its volumes."""

    @property
    def last_seq(self) -> int:
        """Number of the last committed write."""

    @property
    def complete_seq(self) -> int:
        """Writes up to here may be acknowledged."""

    @property
    def accepting(self) -> bool:
        """False: stop parsing requests that write, until `when_accepting` calls."""

    def stage_write(self, volume: Any, offset: int, data: memoryview, carried: int | None = None) -> int:
        """Stage one write and return its number; keeps a reference to the memory of ``data``.

        Raises:
            RemoteCopyError: nothing was staged.
        """

    def stage_zeroes(
        self,
        volume: Any,
        offset: int,
        length: int,
        *,
        trim: bool,
        no_hole: bool = False,
        carried: int | None = None,
    ) -> int:
        """Stage making a range read as zeros and return its number.

        Raises:
            RemoteCopyError: nothing was staged.
        """

    def commit(self) -> None:
        """Journal everything staged; then it is readable.

        Raises:
            RemoteCopyError: none of it may be acknowledged.
        """

    def when_complete(self, sequence: int, waiter: Waiter, /) -> None:
        """Call ``waiter`` (perhaps at once) when the write may be acknowledged."""

    def when_flushed(self, sequence: int, waiter: Waiter, /) -> None:
        """Call ``waiter`` (perhaps at once) when the write survives power loss; begins what is needed."""

    def when_accepting(self, waiter: Callable[[], None], /) -> None:
        """Call ``waiter`` (perhaps at once) when writes are taken again."""


class Volume(Protocol):
    """A logical volume as hosts see it. ``size`` in bytes; ``block_size`` is the preferred one, in bytes."""

    name: str
    size: int
    block_size: int
    description: str
    sessions: set[Any]

    @property
    def group(self) -> Group:
        """The group that numbers this volume's writes."""

    @property
    def writable(self) -> bool:
        """Whether a write would be accepted now."""

    @property
    def visible(self) -> bool:
        """Whether hosts may open the volume at all."""

    def grant(self, client: Client) -> Grant:
        """Return what an administrator lets this client do with the volume."""

    def read_into(self, buffer: memoryview, offset: int) -> bool:
        """Fill ``buffer`` from byte ``offset``; False: that would block, use `read`.

        Raises:
            RemoteCopyError: the data cannot be had.
        """

    async def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from byte ``offset``, waiting for the disk.

        Raises:
            RemoteCopyError: the data cannot be had.
        """

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether the whole range reads as zeros and takes no space, as far as that is found out at once."""

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return (length, is a hole that reads as zeros) runs that cover the range exactly."""

    @property
    def copied(self) -> bool:
        """Whether there is a copy elsewhere, so that what differs from it can be asked for."""

    @property
    def differences_known(self) -> bool:
        """Whether `differing` knows everything written so far; if not, let `learn_differences` end first."""

    async def learn_differences(self) -> None:
        """Find out, in bounded time, what copies may not have of everything written before the call."""

    def differing(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return (length, some copy may not have it durably) runs that cover the range exactly."""


class ExportTable(Protocol):
    """Where exports are looked up."""

    def lookup(self, name: str) -> Volume | None:
        """Return the volume of that name, or None."""

    def names(self) -> list[Any]:
        """Return every volume, in the order of a listing."""
