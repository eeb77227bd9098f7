"""Reading back-to-back records, for tests."""

from __future__ import annotations

from collections.abc import Iterator

from controllerd.model.records import Record, decode_untrusted


def iterate_untrusted(buffer: memoryview) -> Iterator[tuple[int, Record]]:
    """Yield (position, record) for back-to-back records that fill ``buffer`` exactly.

    Raises:
        RecordError: at the first byte that does not continue the run of valid records.
    """
    position = 0
    end = len(buffer)
    while position < end:
        record = decode_untrusted(buffer, position)
        yield position, record
        position += record.size
