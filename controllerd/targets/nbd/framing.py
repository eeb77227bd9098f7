"""Replies other than the data of reads, as bytes.

Owns: the choice between simple and structured replies, and their text.
Never: sends anything.

Source: proto.md, "Simple reply message", "Structured reply types".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from controllerd.model.errors import RemoteCopyError
from controllerd.targets.nbd.contexts import Context
from controllerd.targets.nbd.errors import RequestRefused, errno_of, text_of
from controllerd.targets.nbd.wire import (
    CHUNK,
    DESCRIPTOR,
    ERROR_PAYLOAD,
    SIMPLE_OK,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    U32,
    Chunk,
    chunk_head,
)

_HEAD_ERROR: Final = chunk_head(Chunk.ERROR, done=True)
_HEAD_NONE: Final = chunk_head(Chunk.NONE, done=True)
_HEAD_STATUS: Final = chunk_head(Chunk.BLOCK_STATUS, done=False)
_HEAD_STATUS_DONE: Final = chunk_head(Chunk.BLOCK_STATUS, done=True)


def success(cookies: Sequence[bytes]) -> bytes:
    """Return one simple reply per cookie: success without data (allowed for all but READ and BLOCK_STATUS)."""
    return SIMPLE_OK + SIMPLE_OK.join(cookies)


def failure(cookie: bytes, error: RemoteCopyError | RequestRefused, *, structured: bool) -> bytes:
    """Return the reply that tells a host of ``error``; with structured replies it carries the text."""
    errno = errno_of(error)
    if not structured:
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC << 32 | errno, cookie)
    text = text_of(error)
    return CHUNK.pack(_HEAD_ERROR, cookie, ERROR_PAYLOAD.size + len(text)) + ERROR_PAYLOAD.pack(errno, len(text)) + text


def empty_read(cookie: bytes, *, structured: bool) -> bytes:
    """Return the reply to a READ of no bytes."""
    return CHUNK.pack(_HEAD_NONE, cookie, 0) if structured else success((cookie,))


def block_status(cookie: bytes, answers: Iterable[tuple[Context, Sequence[tuple[int, int]]]]) -> bytes:
    """Return one chunk of descriptors per context, the last one marked as such."""
    chunks = []
    for context, states in answers:
        payload = U32.pack(context.number) + b"".join(DESCRIPTOR.pack(length, state) for length, state in states)
        chunks.append((CHUNK.pack(_HEAD_STATUS, cookie, len(payload)), payload))
    _, payload = chunks[-1]
    chunks[-1] = (CHUNK.pack(_HEAD_STATUS_DONE, cookie, len(payload)), payload)
    return b"".join(part for chunk in chunks for part in chunk)
