"""NBD handshake as a machine: bytes in, bytes and at most one result out.

Owns: the greeting, options and their replies, what was negotiated, and the limits on
what a client may send before it has chosen an export.
Never: touches sockets, clocks or tasks. The adapter feeds bytes, calls `step` until it
needs more, sends `take_output`, and applies the handshake time-out.

What a reader would get wrong: one `step` handles one option, so that a client which
sends thousands of LIST options and reads no answer costs one answer, not thousands.

Source: proto.md, "Newstyle negotiation", "Fixed newstyle negotiation", "Option types".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controllerd.targets.nbd.contexts import Context, listed, selected
from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED, Framing
from controllerd.targets.nbd.ports import ExportTable, Volume
from controllerd.targets.nbd.settings import Limits, TlsMode
from controllerd.targets.nbd.wire import (
    CLIENT_FLAGS,
    EXPORT_ANSWER,
    EXPORT_ANSWER_PADDING,
    GREETING,
    GREETING_MAGIC,
    INFO_BLOCK_SIZE_ITEM,
    INFO_EXPORT_ITEM,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    STRING_MAX,
    U16,
    U32,
    ExportFlag,
    HandshakeFlag,
    Info,
    Option,
    Rep,
)

_SERVER_FLAGS: Final = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
MIN_BLOCK: Final = 1
"""Smallest length and alignment, in bytes: every request is taken as it comes."""


class State(enum.Enum):
    """Where the handshake is."""

    FLAGS = "flags"
    OPTIONS = "options"
    STARTTLS = "starttls"
    """The adapter must start TLS now and then call `tls_started`."""
    DONE = "done"
    """`result` says what was agreed on; unread input belongs to the transmission phase."""
    CLOSED = "closed"
    """Send what is left and close; `reason` says why."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a client has chosen."""

    volume: Volume
    flags: ExportFlag
    framing: Framing
    contexts: tuple[Context, ...]


class _Refused(Exception):
    """An option gets an error reply; the handshake goes on."""

    def __init__(self, reply: Rep, text: str) -> None:
        super().__init__(text)
        self.reply = reply


def export_flags(volume: Volume, framing: Framing, contexts: tuple[Context, ...]) -> ExportFlag:
    """Return what a volume can do, for a client that has negotiated ``framing`` and ``contexts``.

    Never ROTATIONAL: writes are journaled in the order they come, so nothing is gained when a client sorts them.
    """
    flags = (
        ExportFlag.HAS_FLAGS
        | ExportFlag.SEND_FLUSH
        | ExportFlag.SEND_FUA
        | ExportFlag.SEND_TRIM
        | ExportFlag.SEND_WRITE_ZEROES
        | ExportFlag.SEND_FAST_ZERO
        | ExportFlag.CAN_MULTI_CONN
        | ExportFlag.SEND_CACHE
    )
    if framing.chunked:
        flags |= ExportFlag.SEND_DF
    if framing.extended and contexts:
        flags |= ExportFlag.BLOCK_STATUS_PAYLOAD
    if not volume.writable:
        flags |= ExportFlag.READ_ONLY
    return flags


class Negotiation:
    """The server's side of one handshake."""

    def __init__(
        self,
        exports: ExportTable,
        limits: Limits,
        *,
        default_export: str = "",
        tls: TlsMode = "off",
        secure: bool = False,
    ) -> None:
        self.state = State.FLAGS
        self.result: Agreed | None = None
        self.reason = ""
        self.stopping = False
        self._exports = exports
        self._limits = limits
        self._default_export = default_export
        self._tls: TlsMode = tls
        self._secure = secure
        self._no_zeroes = False
        self._fixed = False
        self._framing: Framing = SIMPLE
        self._contexts: tuple[Context, ...] = ()
        self._contexts_of: str | None = None
        self._input = bytearray()
        self._skip = 0
        self._output: list[bytes] = [GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, _SERVER_FLAGS)]
        self._handlers: dict[int, Callable[[bytes], None]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._starttls,
            Option.INFO: lambda data: self._info(Option.INFO, data),
            Option.GO: lambda data: self._info(Option.GO, data),
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.EXTENDED_HEADERS: self._extended_headers,
            Option.LIST_META_CONTEXT: lambda data: self._meta_context(Option.LIST_META_CONTEXT, data),
            Option.SET_META_CONTEXT: lambda data: self._meta_context(Option.SET_META_CONTEXT, data),
        }

    # ---- surface ---------------------------------------------------------------

    def feed_untrusted(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client, of any split. Call `step` after it."""
        if self.state is State.CLOSED:
            return
        if self._skip:
            dropped = min(self._skip, len(data))
            self._skip -= dropped
            data = data[dropped:]
        self._input += data

    def step(self) -> bool:
        """Handle the next message; False: more bytes are needed, or the handshake is over."""
        if self.state is State.FLAGS:
            return self._client_flags()
        if self.state is State.OPTIONS:
            return self._option()
        return False

    def take_output(self) -> bytes:
        """Return the bytes to send."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def take_input(self) -> bytes:
        """Return what the client sent beyond the handshake (state DONE)."""
        data = bytes(self._input)
        self._input.clear()
        return data

    def tls_started(self) -> None:
        """TLS is up: go on with options, as if nothing had been negotiated before."""
        self._secure = True
        self._framing = SIMPLE
        self._contexts, self._contexts_of = (), None
        self.state = State.OPTIONS

    # ---- messages ----------------------------------------------------------------

    def _close(self, reason: str) -> None:
        self.state = State.CLOSED
        self.reason = reason
        self._input.clear()

    def _client_flags(self) -> bool:
        if len(self._input) < CLIENT_FLAGS.size:
            return False
        (flags,) = CLIENT_FLAGS.unpack_from(self._input)
        del self._input[: CLIENT_FLAGS.size]
        if flags & ~_SERVER_FLAGS:
            self._close(f"client set unknown handshake flags {flags:#x}")
            return False
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self.state = State.OPTIONS
        return True

    def _option(self) -> bool:
        if len(self._input) < OPTION.size:
            return False
        magic, option, length = OPTION.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            self._close("not an NBD option")
            return False
        if length > self._limits.option_max:
            return self._oversized(option, length)
        if len(self._input) < OPTION.size + length:
            return False
        data = bytes(self._input[OPTION.size : OPTION.size + length])
        del self._input[: OPTION.size + length]
        return self._answered(option, lambda: self._dispatch(option, data))

    def _answered(self, option: int, handle: Callable[[], None]) -> bool:
        try:
            handle()
        except _Refused as refused:
            self._reply(option, refused.reply, str(refused).encode())
        return self.state is State.OPTIONS

    def _oversized(self, option: int, length: int) -> bool:
        """Refuse an option by its declared length, before any of it is kept."""
        if length > self._limits.option_drain_max or option == Option.EXPORT_NAME:
            self._close(f"option {option} with {length} bytes of data")
            return False
        present = min(length, len(self._input) - OPTION.size)
        del self._input[: OPTION.size + present]
        self._skip = length - present
        return self._answered(option, lambda: self._refuse_size(option))

    def _refuse_size(self, option: int) -> None:
        if not self._admitted(option):
            return
        if option == Option.ABORT:  # whatever comes with it
            self._abort(b"")
            return
        unknown = option not in self._handlers
        raise _Refused(Rep.ERR_UNSUP if unknown else Rep.ERR_TOO_BIG, "option has more data than this server looks at")

    def _admitted(self, option: int) -> bool:
        """Whether an option may be looked at now; False: the connection is closed.

        Raises:
            _Refused: not now.
        """
        if not self._fixed and option != Option.EXPORT_NAME:
            self._close("client without fixed newstyle sent an option other than EXPORT_NAME")
        elif self._tls == "require" and not self._secure and option not in (Option.STARTTLS, Option.ABORT):
            if option != Option.EXPORT_NAME:
                raise _Refused(Rep.ERR_TLS_REQD, "this server requires TLS")
            self._close("EXPORT_NAME before TLS, which is required")
        elif self.stopping and option != Option.ABORT:
            if option != Option.EXPORT_NAME:
                raise _Refused(Rep.ERR_SHUTDOWN, "server is stopping")
            self._close("server is stopping")
        return self.state is not State.CLOSED

    def _dispatch(self, option: int, data: bytes) -> None:
        if not self._admitted(option):
            return
        handler = self._handlers.get(option)
        if handler is None:
            raise _Refused(Rep.ERR_UNSUP, f"option {option} is not known")
        handler(data)

    # ---- options -------------------------------------------------------------------

    def _abort(self, _data: bytes) -> None:
        self._reply(Option.ABORT, Rep.ACK)
        self._close("")

    def _list(self, data: bytes) -> None:
        _want_no_data(data)
        for volume in self._exports.names():
            if volume.visible:
                name = volume.name.encode()
                self._reply(Option.LIST, Rep.SERVER, U32.pack(len(name)) + name + _text(volume.description))
        self._reply(Option.LIST, Rep.ACK)

    def _starttls(self, data: bytes) -> None:
        _want_no_data(data)
        if self._secure:
            raise _Refused(Rep.ERR_INVALID, "TLS is up already")
        if self._tls == "off":
            raise _Refused(Rep.ERR_POLICY, "this server is configured without TLS")
        if self._input:
            # Bytes behind STARTTLS came in clear and could have been put there by someone else (as in CVE-2021-23222
            # and its like); a client must wait for the answer.
            self._close("client sent data after STARTTLS without waiting")
            return
        self._reply(Option.STARTTLS, Rep.ACK)
        self.state = State.STARTTLS

    def _structured_reply(self, data: bytes) -> None:
        _want_no_data(data)
        if self._framing.extended:
            raise _Refused(Rep.ERR_EXT_HEADER_REQD, "extended headers are negotiated already, and include them")
        self._framing = STRUCTURED
        self._reply(Option.STRUCTURED_REPLY, Rep.ACK)

    def _extended_headers(self, data: bytes) -> None:
        _want_no_data(data)
        if self._framing.extended:
            raise _Refused(Rep.ERR_INVALID, "extended headers are negotiated already")
        self._framing = EXTENDED
        self._reply(Option.EXTENDED_HEADERS, Rep.ACK)

    def _export_name(self, data: bytes) -> None:
        if self._framing.extended:
            self._close("EXPORT_NAME after extended headers, which need GO")
            return
        try:
            name = _name(data)
            volume = self._find(name)
        except _Refused as refused:
            # There is no error reply to EXPORT_NAME.
            self._close(str(refused))
            return
        flags = export_flags(volume, self._framing, self._contexts_for(name))
        answer = EXPORT_ANSWER.pack(volume.size, flags)
        self._output.append(answer if self._no_zeroes else answer + EXPORT_ANSWER_PADDING)
        self._finish(name, volume, flags)

    def _info(self, option: Option, data: bytes) -> None:
        name, position = _counted_string(data, 0)
        if position + U16.size > len(data):
            raise _Refused(Rep.ERR_INVALID, "option ends before its information requests")
        (count,) = U16.unpack_from(data, position)
        position += U16.size
        if position + U16.size * count != len(data):
            raise _Refused(Rep.ERR_INVALID, "number of information requests does not fit the option's length")
        wanted = {U16.unpack_from(data, position + U16.size * index)[0] for index in range(count)}
        export = _name(name)
        volume = self._find(export)
        flags = export_flags(volume, self._framing, self._contexts_for(export))
        self._reply(option, Rep.INFO, INFO_EXPORT_ITEM.pack(Info.EXPORT, volume.size, flags))
        if Info.NAME in wanted:
            self._reply(option, Rep.INFO, U16.pack(Info.NAME) + volume.name.encode())
        if Info.DESCRIPTION in wanted:
            self._reply(option, Rep.INFO, U16.pack(Info.DESCRIPTION) + _text(volume.description))
        if Info.BLOCK_SIZE in wanted:
            preferred = max(512, volume.block_size)
            sizes = INFO_BLOCK_SIZE_ITEM.pack(Info.BLOCK_SIZE, MIN_BLOCK, preferred, self._limits.payload_max)
            self._reply(option, Rep.INFO, sizes)
        self._reply(option, Rep.ACK)
        if option == Option.GO:
            self._finish(export, volume, flags)

    def _meta_context(self, option: Option, data: bytes) -> None:
        if option == Option.SET_META_CONTEXT:
            # Every SET replaces what was set before, also one that fails.
            self._contexts, self._contexts_of = (), None
        if not self._framing.chunked:
            raise _Refused(Rep.ERR_INVALID, "structured replies or extended headers must be negotiated before contexts")
        name, position = _counted_string(data, 0)
        if position + U32.size > len(data):
            raise _Refused(Rep.ERR_INVALID, "option ends before its queries")
        (count,) = U32.unpack_from(data, position)
        position += U32.size
        if count * U32.size > len(data) - position:
            raise _Refused(Rep.ERR_INVALID, "number of queries does not fit the option's length")
        queries = []
        for _ in range(count):
            query, position = _counted_string(data, position)
            queries.append(_name(query))
        if position != len(data):
            raise _Refused(Rep.ERR_INVALID, "option has data behind its queries")
        export = _name(name)
        volume = self._find(export)
        choose = listed if option == Option.LIST_META_CONTEXT else selected
        contexts = choose(volume, queries)
        for context in contexts:
            number = 0 if option == Option.LIST_META_CONTEXT else context.number
            self._reply(option, Rep.META_CONTEXT, U32.pack(number) + context.name.encode())
        if option == Option.SET_META_CONTEXT:
            self._contexts, self._contexts_of = tuple(contexts), export
        self._reply(option, Rep.ACK)

    # ---- helpers --------------------------------------------------------------------

    def _find(self, name: str) -> Volume:
        volume = self._exports.lookup(name or self._default_export)
        if volume is None or not volume.visible:
            raise _Refused(
                Rep.ERR_UNKNOWN, f"there is no volume {name[:64]!r}" if name else "name a volume: no default export"
            )
        return volume

    def _contexts_for(self, name: str) -> tuple[Context, ...]:
        return self._contexts if name == self._contexts_of else ()

    def _finish(self, name: str, volume: Volume, flags: ExportFlag) -> None:
        self.result = Agreed(volume, flags, self._framing, self._contexts_for(name))
        self.state = State.DONE

    def _reply(self, option: int, reply: Rep, data: bytes = b"") -> None:
        self._output.append(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data)


def _want_no_data(data: bytes) -> None:
    if data:
        raise _Refused(Rep.ERR_INVALID, "this option takes no data")


def _counted_string(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the string (u32 length before it) at ``position`` and where it ends."""
    if position + U32.size > len(data):
        raise _Refused(Rep.ERR_INVALID, "option ends inside a string's length")
    (length,) = U32.unpack_from(data, position)
    start = position + U32.size
    if length > len(data) - start:
        raise _Refused(Rep.ERR_INVALID, "string is longer than its option")
    return data[start : start + length], start + length


def _name(data: bytes) -> str:
    """Decode a name as proto.md wants strings: UTF-8, at most 4096 bytes, no NUL."""
    if len(data) > STRING_MAX or b"\0" in data:
        raise _Refused(Rep.ERR_INVALID, f"names have at most {STRING_MAX} bytes and no NUL")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Refused(Rep.ERR_INVALID, "name is not UTF-8") from None


def _text(text: str) -> bytes:
    return text.encode()[:STRING_MAX].decode(errors="ignore").encode()
