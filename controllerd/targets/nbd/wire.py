"""NBD wire format: every number and layout of the protocol that this target uses.

Owns: magic numbers, codes, flags, and one compiled Struct per message.
Never: keeps state, reads or sends anything, or decides what to answer.

All fields are big-endian. Two fields that are always handled together (a magic number
and the codes behind it) are declared as one u64, so that the hot loop compares and
packs one number instead of three.

Source: NetworkBlockDevice/nbd, doc/proto.md, "Protocol phases" and "Values"; its branch
extension-ext-header for everything that is called extended here.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

# ---- handshake ---------------------------------------------------------------

# Greeting, server to client, 18 bytes
#  0          8           16      18
#  +----------+-----------+-------+
#  | NBDMAGIC | IHAVEOPT  | flags |
#  +----------+-----------+-------+
GREETING: Final = struct.Struct(">QQH")
assert GREETING.size == 18
GREETING_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054

CLIENT_FLAGS: Final = struct.Struct(">I")

# Option, client to server, 16 bytes and data
#  0          8        12       16
#  +----------+--------+--------+------
#  | IHAVEOPT | option | length | data
#  +----------+--------+--------+------
OPTION: Final = struct.Struct(">QII")
assert OPTION.size == 16

# Option reply, server to client, 20 bytes and data
#  0          8        12      16       20
#  +----------+--------+-------+--------+------
#  | magic    | option | type  | length | data
#  +----------+--------+-------+--------+------
OPTION_REPLY: Final = struct.Struct(">QIII")
assert OPTION_REPLY.size == 20
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

# Answer to EXPORT_NAME: size (u64), transmission flags (u16), then 124 zeros unless NO_ZEROES was agreed on.
EXPORT_ANSWER: Final = struct.Struct(">QH")
EXPORT_ANSWER_PADDING: Final = bytes(124)

# Information items (data of an INFO reply); the first field is the item's type.
INFO_EXPORT_ITEM: Final = struct.Struct(">HQH")
INFO_BLOCK_SIZE_ITEM: Final = struct.Struct(">HIII")
assert INFO_EXPORT_ITEM.size == 12
assert INFO_BLOCK_SIZE_ITEM.size == 14

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")

STRING_MAX: Final = 4096
"""Longest name or message, in bytes (proto.md, "Conventions")."""


class HandshakeFlag(enum.IntFlag):
    """Flags of the greeting; the client answers with the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(enum.IntEnum):
    """What a client may ask for before transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(enum.IntEnum):
    """Types of option replies; from ERR_UNSUP on they are errors with a text."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


class Info(enum.IntEnum):
    """Information items of INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(enum.IntFlag):
    """Transmission flags: what an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STATUS_PAYLOAD = 1 << 12


# ---- transmission --------------------------------------------------------------

REQUEST_MAGIC: Final = 0x25609513
EXTENDED_REQUEST_MAGIC: Final = 0x21E41C71
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
EXTENDED_REPLY_MAGIC: Final = 0x6E8A278C

# Compact request, client to server, 28 bytes, then the payload of a WRITE
#  0       4       6      8        16       24       28
#  +-------+-------+------+--------+--------+--------+------
#  | magic | flags | type | cookie | offset | length | data
#  +-------+-------+------+--------+--------+--------+------
#  `-------- head --------'
REQUEST: Final = struct.Struct(">Q8sQI")
assert REQUEST.size == 28

# Extended request, client to server, 32 bytes, then ``length`` bytes of payload if the flags have PAYLOAD_LEN
#  0       4       6      8        16       24       32
#  +-------+-------+------+--------+--------+--------+------
#  | magic | flags | type | cookie | offset | length | data
#  +-------+-------+------+--------+--------+--------+------
#  `-------- head --------'
EXTENDED_REQUEST: Final = struct.Struct(">Q8sQQ")
EXTENDED_OFFSET: Final = 16
EXTENDED_LENGTH: Final = 24
assert EXTENDED_REQUEST.size == 32

# Simple reply, server to client, 16 bytes, then the data of a successful READ
#  0       4       8        16
#  +-------+-------+--------+------
#  | magic | error | cookie | data
#  +-------+-------+--------+------
#  `---- head -----'
SIMPLE_REPLY: Final = struct.Struct(">Q8s")
assert SIMPLE_REPLY.size == 16

# Structured reply chunk, server to client, 20 bytes and a payload
#  0       4       6      8        16       20
#  +-------+-------+------+--------+--------+--------
#  | magic | flags | type | cookie | length | payload
#  +-------+-------+------+--------+--------+--------
#  `-------- head --------'
CHUNK: Final = struct.Struct(">Q8sI")
assert CHUNK.size == 20

# The same with the u64 offset that begins the payload of OFFSET_DATA, 28 bytes, then the data.
DATA_CHUNK: Final = struct.Struct(">Q8sIQ")
assert DATA_CHUNK.size == 28

# Extended reply chunk, server to client, 32 bytes and a payload; cookie and offset are those of the request
#  0       4       6      8        16       24       32
#  +-------+-------+------+--------+--------+--------+--------
#  | magic | flags | type | cookie | offset | length | payload
#  +-------+-------+------+--------+--------+--------+--------
#  `-------- head --------'`---- token -----'
EXTENDED_CHUNK: Final = struct.Struct(">Q16sQ")
assert EXTENDED_CHUNK.size == 32
# The same with the u64 offset that begins the payload of OFFSET_DATA, 40 bytes, then the data.
EXTENDED_DATA_CHUNK: Final = struct.Struct(">Q16sQQ")
assert EXTENDED_DATA_CHUNK.size == 40

# Payload of OFFSET_HOLE: where it begins and how long it is.
HOLE_PAYLOAD: Final = struct.Struct(">QI")
assert HOLE_PAYLOAD.size == 12
# Payload of an ERROR chunk: errno (u32), length of the text (u16), text.
ERROR_PAYLOAD: Final = struct.Struct(">IH")
# One descriptor of a BLOCK_STATUS chunk: length of the extent and its state; a context id (u32) comes before the first.
DESCRIPTOR: Final = struct.Struct(">II")
# The same of a BLOCK_STATUS_EXT chunk; context id and number of descriptors (u32 each) come before the first.
DESCRIPTOR_EXT: Final = struct.Struct(">QQ")
STATUS_EXT: Final = struct.Struct(">II")
# Payload of an extended BLOCK_STATUS request: length of the range, then the context ids (u32 each) it is about.
EFFECT_LENGTH: Final = struct.Struct(">Q")
# A host's write time before the data of a WRITE (spec §3.4), nanoseconds.
WRITE_TIME: Final = struct.Struct(">Q")
WRITE_TIME_SIZE: Final = WRITE_TIME.size
assert WRITE_TIME_SIZE == 8


class Command(enum.IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """Request flags."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5
    """Extended requests only: ``length`` is that of a payload."""


class Chunk(enum.IntEnum):
    """Types of structured reply chunks."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 0x8001


CHUNK_DONE: Final = 1
"""Chunk flag: the last chunk of its reply."""


class Errno(enum.IntEnum):
    """The only error numbers a reply may carry (proto.md, "Error values")."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class State(enum.IntFlag):
    """States of an extent in the context base:allocation."""

    HOLE = 1
    ZERO = 2


# A head is what the hot loop sees of a message: magic, flags and type in one number.


def request_head(magic: int, command: Command, flags: int = 0) -> int:
    """Return the first u64 of a request."""
    return magic << 32 | flags << 16 | int(command)


def chunk_head(magic: int, kind: Chunk, *, done: bool) -> int:
    """Return the first u64 of a structured or extended reply chunk."""
    return magic << 32 | (CHUNK_DONE << 16 if done else 0) | int(kind)
