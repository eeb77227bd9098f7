"""What a group's volumes must hold: its writes in order, and the image after any number of them.

Owns: the oracle of the crash tests, apart from the code that it checks.
Never: uses anything of the storage layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Write:
    """One write: ``data``, or None for zeros, at ``offset`` of ``volume`` (None: a tick)."""

    volume: str | None
    offset: int
    length: int
    data: bytes | None


@dataclass
class GroupModel:
    """``writes[n - 1]`` is the write with sequence number n."""

    sizes: dict[str, int]
    writes: list[Write] = field(default_factory=list)
    acknowledged: int = 0
    """Writes up to here were acknowledged: they survive a killed daemon."""
    flushed: int = 0
    """Writes up to here were acknowledged as flushed: they survive power loss."""

    def record(self, sequence: int, write: Write) -> None:
        """The system has given ``write`` the number ``sequence``."""
        assert sequence == len(self.writes) + 1, f"number {sequence} after {len(self.writes)}"
        self.writes.append(write)

    def images(self, through: int) -> dict[str, bytes]:
        """Return every volume's content after the first ``through`` writes."""
        images = {name: bytearray(size) for name, size in self.sizes.items()}
        for write in self.writes[:through]:
            if write.volume is not None:
                data = bytes(write.length) if write.data is None else write.data
                images[write.volume][write.offset : write.offset + write.length] = data
        return {name: bytes(image) for name, image in images.items()}

    def recovered(self, last: int) -> None:
        """The system came back with ``last`` as its last number: what lies behind never happened."""
        del self.writes[last:]
        self.acknowledged = self.flushed = last
