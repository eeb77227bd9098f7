"""Segment files of one journal: made, counted, kept as spares and used again.

Owns: which files of the journal's directory hold no records, how many files there are, and up to where each was
written before.
Never: knows what records are in a segment, or when one is needed (the journal and spares.py do).
"""

from __future__ import annotations

from controllerd.storage.io import CALL_BYTES, ZEROES, File, Files


class SegmentFiles:
    """The files in ``directory``: at most ``count_max``, of ``segment_bytes`` each."""

    def __init__(self, files: Files, directory: str, *, segment_bytes: int, count_max: int) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._count_max = count_max
        self.spares: list[File] = []
        """Always this list: the journal counts on it for its room."""
        self._written: dict[str, int] = {}
        """By path: up to where the file of a spare was written before."""
        self._count = 0
        self._being_made: list[str] = []
        """Paths of spares that were counted and are not there yet."""
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether there are as many files as there may be."""
        return self._count >= self._count_max

    def adopt(self, in_use: int, spares: list[File]) -> None:
        """Take what recovery found: ``in_use`` files that hold records, and ``spares``."""
        self._count = in_use
        for file in spares:
            # More files than the limit: segments have become larger since they were made.
            if not self.full or file.size() >= self._segment_bytes:
                self._count += 1
                if self._is_whole(file):
                    self.recycle(file, self._segment_bytes)  # as far as anybody knows
            else:
                file.close()
                self._files.remove(file.path)

    def _is_whole(self, file: File) -> bool:
        """Whether a spare has all its space; power loss may have taken it, and then it is allocated again."""
        try:
            if file.size() < self._segment_bytes:
                file.allocate(self._segment_bytes)
        except OSError:
            file.close()
            return False
        return True

    def reserve(self) -> str:
        """Count a spare that is going to be made, and return its path; `take` has to follow."""
        name = f"{self._directory}/{self._fresh_name()}"
        self._being_made.append(name)
        self._count += 1
        return name

    def make(self, name: str, *, filled: bool) -> File:
        """Make the file of a spare: called in a thread, or where it may hold up the loop.

        ``filled``: with zeros that are synced, so that what is written later finds its blocks (spares.py).

        Raises:
            OSError: there is no room; nothing is left.
        """
        file = self._files.open(name, create=True)
        try:
            file.allocate(self._segment_bytes)
            if filled:
                for start in range(0, self._segment_bytes, CALL_BYTES):
                    file.write(ZEROES[: self._segment_bytes - start], start)
                file.sync_now()
            self._files.sync_directory(self._directory)
        except OSError:
            file.close()
            self._files.remove(name)
            raise
        return file

    def take(self, file: File | None, *, filled: bool) -> None:
        """The spare reserved last is made, or could not be."""
        self._being_made.pop()
        if file is None:
            self._count -= 1
        elif self._closed:
            file.close()
        else:
            self.recycle(file, self._segment_bytes if filled else 0)

    def make_now(self) -> bool:
        """Make a spare at once, unfilled; returns False when there is no room."""
        file: File | None = None
        name = self.reserve()
        try:
            file = self.make(name, filled=False)
        except OSError:
            return False
        finally:
            self.take(file, filled=False)
        return True

    def _fresh_name(self) -> str:
        taken = {*self._files.names(self._directory), *(name.rpartition("/")[2] for name in self._being_made)}
        number = 1
        while (name := f"{number:08d}.seg") in taken:
            number += 1
        return name

    def recycle(self, file: File, written: int) -> None:
        """A file that holds no records: a spare from now on, ``written`` before up to there."""
        self._written[file.path] = written
        self.spares.append(file)

    def pop(self) -> tuple[File, int]:
        """Take the newest spare to be written, and up to where it was before."""
        file = self.spares.pop()
        return file, self._written.pop(file.path)

    def close(self) -> None:
        """Close the spares, and one that is still being made as soon as it is there."""
        self._closed = True
        for file in self.spares:
            file.close()
