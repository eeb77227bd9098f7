"""The handshake: what each option is answered with, and what no client can make it do."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.targets.nbd.framing import EXTENDED, SIMPLE, STRUCTURED
from controllerd.targets.nbd.negotiation import Negotiation, State
from controllerd.targets.nbd.ports import ExportTable
from controllerd.targets.nbd.settings import Limits, TlsMode
from controllerd.targets.nbd.wire import ExportFlag
from tests.unit.targets.nbd import client
from tests.unit.targets.nbd.fake_storage import FakeExports, FakeVolume

LIMITS = Limits()
FLAGS = struct.pack(">I", 3)


def exports() -> FakeExports:
    hidden = FakeVolume("hidden")
    hidden.visible = False
    fixed = FakeVolume("fixed", 512)
    fixed.writable = False
    return FakeExports(FakeVolume("vol"), hidden, fixed)


def start(
    flags: bytes = FLAGS, *, default: str = "", tls: TlsMode = "off", table: ExportTable | None = None
) -> Negotiation:
    machine = Negotiation(table or exports(), LIMITS, default_export=default, tls=tls)
    assert machine.take_output() == b"NBDMAGICIHAVEOPT\x00\x03"
    feed(machine, flags)
    return machine


def feed(machine: Negotiation, data: bytes) -> bytes:
    machine.feed_untrusted(data)
    while machine.step():
        pass
    return machine.take_output()


def ask(machine: Negotiation, data: bytes) -> list[tuple[int, bytes]]:
    return [(kind, reply) for _, kind, reply in client.option_replies(feed(machine, data))]


def kinds(machine: Negotiation, data: bytes) -> list[int]:
    return [kind for kind, _ in ask(machine, data)]


# ---- the way into transmission ---------------------------------------------------


def test_go_reports_size_flags_and_what_was_asked_for() -> None:
    machine = start()
    replies = ask(machine, client.go("vol", 3, 1, 2, 99))
    assert [kind for kind, _ in replies] == [client.REP_INFO] * 4 + [client.ACK]
    kind, size, flags = struct.unpack(">HQH", replies[0][1])
    assert (kind, size) == (0, 1 << 20)
    assert flags == 0b1101_0110_1101 | 0  # HAS_FLAGS FLUSH FUA TRIM ZEROES MULTI_CONN CACHE FAST_ZERO
    items = {struct.unpack_from(">H", data)[0]: data[2:] for _, data in replies[1:4]}
    assert items == {1: b"vol", 2: b"volume vol", 3: struct.pack(">III", 1, 4096, 32 << 20)}
    assert machine.state is State.DONE
    assert machine.result is not None
    assert machine.result.volume.name == "vol"
    assert machine.result.framing is SIMPLE


def test_structured_replies_bring_the_flag_df() -> None:
    machine = start()
    assert kinds(machine, client.option(client.STRUCTURED)) == [client.ACK]
    _, data = ask(machine, client.go("vol"))[0]
    assert struct.unpack(">HQH", data)[2] & ExportFlag.SEND_DF
    assert machine.result is not None
    assert machine.result.framing is STRUCTURED


def test_info_leaves_the_handshake_open() -> None:
    machine = start()
    assert kinds(machine, client.go("vol", number=client.INFO)) == [client.REP_INFO, client.ACK]
    assert machine.state is State.OPTIONS


def test_read_only_volume_is_advertised_as_such() -> None:
    _, data = ask(start(), client.go("fixed", number=client.INFO))[0]
    assert struct.unpack(">HQH", data)[2] & ExportFlag.READ_ONLY


@pytest.mark.parametrize(("flags", "length"), [(1, 134), (3, 10)])
def test_export_name_answers_with_zeroes_unless_agreed_otherwise(flags: int, length: int) -> None:
    machine = start(struct.pack(">I", flags))
    answer = feed(machine, client.option(client.EXPORT_NAME, b"vol"))
    assert len(answer) == length
    assert answer[:8] == struct.pack(">Q", 1 << 20)
    assert machine.state is State.DONE


def test_export_name_works_without_fixed_newstyle() -> None:
    machine = start(bytes(4))
    assert len(feed(machine, client.option(client.EXPORT_NAME, b"vol"))) == 134


def test_what_follows_the_handshake_is_left_for_transmission() -> None:
    machine = start()
    feed(machine, client.option(client.EXPORT_NAME, b"vol") + b"requests")
    assert machine.take_input() == b"requests"


def test_default_export_is_the_one_configured() -> None:
    machine = start(default="vol")
    assert kinds(machine, client.go("")) == [client.REP_INFO, client.ACK]
    assert machine.result is not None
    assert machine.result.volume.name == "vol"
    assert kinds(start(), client.go("")) == [client.UNKNOWN]


# ---- other options -----------------------------------------------------------------


def test_list_names_visible_volumes_with_their_description() -> None:
    replies = ask(start(), client.option(client.LIST))
    assert replies[:-1] == [
        (client.SERVER, client.string("vol") + b"volume vol"),
        (client.SERVER, client.string("fixed") + b"volume fixed"),
    ]
    assert replies[-1] == (client.ACK, b"")


def test_abort_is_acknowledged_and_closes() -> None:
    machine = start()
    assert kinds(machine, client.option(client.ABORT, b"ignored")) == [client.ACK]
    assert machine.state is State.CLOSED
    assert machine.reason == ""


@pytest.mark.parametrize("number", [0, 4, 12, 0xFFFFFFFF])
def test_unknown_options_are_unsupported(number: int) -> None:
    machine = start()
    assert kinds(machine, client.option(number, b"data")) == [client.UNSUP]
    assert kinds(machine, client.go("vol")) == [client.REP_INFO, client.ACK]


@pytest.mark.parametrize("number", [client.LIST, client.STARTTLS, client.STRUCTURED, client.EXTENDED])
def test_data_where_none_is_allowed_is_invalid(number: int) -> None:
    assert kinds(start(), client.option(number, b"x")) == [client.INVALID]


def test_unknown_and_hidden_exports_are_unknown() -> None:
    machine = start()
    for name in ("nothing", "hidden", ""):
        assert kinds(machine, client.go(name)) == [client.UNKNOWN]
        assert kinds(machine, client.go(name, number=client.INFO)) == [client.UNKNOWN]


def test_export_name_of_unknown_export_closes() -> None:
    machine = start()
    assert feed(machine, client.option(client.EXPORT_NAME, b"nothing")) == b""
    assert machine.state is State.CLOSED
    assert "nothing" in machine.reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 100) + b"vol\0\0",
        struct.pack(">I", 0xFFFFFFFF) + b"vol\0\0",
        client.string("vol"),
        client.string("vol") + b"\0",
        client.string("vol") + b"\0\1",
        client.string("vol") + b"\0\0\0",
        client.string("vol") + b"\xff\xff" + bytes(10),
        client.string(b"\xff\xfe") + b"\0\0",
        client.string("v\0l") + b"\0\0",
        client.string("x" * 4097) + b"\0\0",
    ],
)
def test_malformed_go_is_invalid_and_the_handshake_goes_on(data: bytes) -> None:
    machine = start()
    assert kinds(machine, client.option(client.GO, data)) == [client.INVALID]
    assert kinds(machine, client.go("vol")) == [client.REP_INFO, client.ACK]


def test_errors_carry_text_for_people() -> None:
    ((kind, text),) = ask(start(), client.go("nothing"))
    assert kind == client.UNKNOWN
    assert text == b"there is no volume 'nothing'"


# ---- contexts ------------------------------------------------------------------------


def structured() -> Negotiation:
    machine = start()
    feed(machine, client.option(client.STRUCTURED))
    return machine


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ([], [b"base:allocation", b"remotecopy:write-time"]),
        (["base:"], [b"base:allocation"]),
        (["remotecopy:", "x-unknown:leaf"], [b"remotecopy:write-time"]),
        (["base:allocation", "base:allocation"], [b"base:allocation"]),
        (["base:other", "nothing", ":"], []),
    ],
)
def test_list_meta_context(queries: list[str], found: list[bytes]) -> None:
    replies = ask(structured(), client.meta(client.LIST_META, "vol", *queries))
    assert replies == [(client.META, bytes(4) + name) for name in found] + [(client.ACK, b"")]


def test_dirty_is_offered_where_there_is_a_copy_to_differ_from() -> None:
    table = exports()
    paired = table.lookup("vol")
    assert paired is not None
    paired.copied = True
    machine = start(table=table)
    feed(machine, client.option(client.STRUCTURED))
    for queries in ((), ("remotecopy:",), ("remotecopy:dirty",)):
        replies = ask(machine, client.meta(client.LIST_META, "vol", *queries))
        assert (client.META, bytes(4) + b"remotecopy:dirty") in replies
        replies = ask(machine, client.meta(client.LIST_META, "fixed", *queries))
        assert (client.META, bytes(4) + b"remotecopy:dirty") not in replies
    assert kinds(machine, client.meta(client.SET_META, "vol", "remotecopy:")) == [client.ACK]
    assert kinds(machine, client.meta(client.SET_META, "fixed", "remotecopy:dirty")) == [client.ACK]
    replies = ask(machine, client.meta(client.SET_META, "vol", "remotecopy:dirty"))
    assert replies == [(client.META, struct.pack(">I", 3) + b"remotecopy:dirty"), (client.ACK, b"")]
    feed(machine, client.go("vol"))
    assert machine.result is not None
    assert [context.name for context in machine.result.contexts] == ["remotecopy:dirty"]


def test_set_meta_context_selects_by_full_name_only() -> None:
    machine = structured()
    replies = ask(machine, client.meta(client.SET_META, "vol", "base:", "remotecopy:write-time", "x:y"))
    assert replies == [(client.META, struct.pack(">I", 2) + b"remotecopy:write-time"), (client.ACK, b"")]
    feed(machine, client.go("vol"))
    assert machine.result is not None
    assert [context.name for context in machine.result.contexts] == ["remotecopy:write-time"]


def test_contexts_of_another_export_do_not_count() -> None:
    machine = structured()
    feed(machine, client.meta(client.SET_META, "fixed", "base:allocation") + client.go("vol"))
    assert machine.result is not None
    assert machine.result.contexts == ()


def test_a_failed_set_forgets_what_was_set() -> None:
    machine = structured()
    feed(machine, client.meta(client.SET_META, "vol", "base:allocation"))
    assert kinds(machine, client.option(client.SET_META, b"bad")) == [client.INVALID]
    feed(machine, client.go("vol"))
    assert machine.result is not None
    assert machine.result.contexts == ()


def test_contexts_need_structured_replies_and_a_known_export() -> None:
    assert kinds(start(), client.meta(client.SET_META, "vol", "base:allocation")) == [client.INVALID]
    assert kinds(structured(), client.meta(client.SET_META, "nothing", "base:allocation")) == [client.UNKNOWN]


@pytest.mark.parametrize(
    "tail",
    [b"", b"\0\0\0\1", b"\0\0\0\1\0\0\0\x09base", b"\xff\xff\xff\xff", b"\0\0\0\0x", b"\0\0\0\1\0\0\0\1\xff"],
)
def test_malformed_queries_are_invalid(tail: bytes) -> None:
    assert kinds(structured(), client.option(client.SET_META, client.string("vol") + tail)) == [client.INVALID]


# ---- extended headers ------------------------------------------------------------------


def transmission_flags(machine: Negotiation) -> int:
    _, data = ask(machine, client.go("vol", number=client.INFO))[0]
    return int(struct.unpack(">HQH", data)[2])


def test_extended_headers_take_precedence_over_structured_replies() -> None:
    machine = structured()
    assert kinds(machine, client.option(client.EXTENDED)) == [client.ACK]
    assert kinds(machine, client.option(client.EXTENDED)) == [client.INVALID]
    assert kinds(machine, client.option(client.STRUCTURED)) == [client.EXT_HEADER_REQD]
    assert transmission_flags(machine) & ExportFlag.SEND_DF
    assert kinds(machine, client.go("vol")) == [client.REP_INFO, client.ACK]
    assert machine.result is not None
    assert machine.result.framing is EXTENDED


def test_extended_headers_allow_contexts_and_payloads_that_name_them() -> None:
    machine = start()
    assert kinds(machine, client.option(client.EXTENDED)) == [client.ACK]
    assert not transmission_flags(machine) & ExportFlag.BLOCK_STATUS_PAYLOAD
    assert kinds(machine, client.meta(client.SET_META, "vol", "base:allocation")) == [client.META, client.ACK]
    assert transmission_flags(machine) & ExportFlag.BLOCK_STATUS_PAYLOAD
    other = structured()
    feed(other, client.meta(client.SET_META, "vol", "base:allocation"))
    assert not transmission_flags(other) & ExportFlag.BLOCK_STATUS_PAYLOAD


def test_export_name_after_extended_headers_closes() -> None:
    machine = start()
    feed(machine, client.option(client.EXTENDED) + client.option(client.EXPORT_NAME, b"vol"))
    assert machine.state is State.CLOSED
    assert machine.result is None


# ---- hostile clients -----------------------------------------------------------------------


def test_unknown_client_flags_close() -> None:
    assert start(struct.pack(">I", 4)).state is State.CLOSED


def test_wrong_option_magic_closes() -> None:
    machine = start()
    feed(machine, b"IHAVEOPX" + bytes(8))
    assert machine.state is State.CLOSED


def test_options_without_fixed_newstyle_close() -> None:
    machine = start(bytes(4))
    feed(machine, client.option(client.LIST))
    assert machine.state is State.CLOSED


@pytest.mark.parametrize("split", [1, 16, 1000, 70_000])
def test_oversized_option_is_refused_and_its_data_is_not_kept(split: int) -> None:
    machine = start()
    data = client.option(client.GO, bytes(LIMITS.option_max + 1))
    output = b""
    for position in range(0, len(data), split):
        output += feed(machine, data[position : position + split])
        assert len(machine._input) <= 16
    assert [kind for _, kind, _ in client.option_replies(output)] == [client.TOO_BIG]
    assert kinds(machine, client.go("vol")) == [client.REP_INFO, client.ACK]


def test_oversized_options_have_the_reply_of_their_kind() -> None:
    data = bytes(LIMITS.option_max + 1)
    assert kinds(start(), client.option(99, data)) == [client.UNSUP]
    assert kinds(start(tls="require"), client.option(client.GO, data)) == [client.TLS_REQD]
    old = start(bytes(4))
    assert feed(old, client.option(client.GO, data)) == b""
    assert old.state is State.CLOSED
    leaving = start()
    assert kinds(leaving, client.option(client.ABORT, data)) == [client.ACK]
    assert leaving.state is State.CLOSED


def test_absurd_option_length_closes_before_any_data() -> None:
    machine = start()
    feed(machine, b"IHAVEOPT" + struct.pack(">II", client.GO, 0xFFFFFFFF))
    assert machine.state is State.CLOSED


def test_one_step_handles_one_option() -> None:
    machine = start()
    machine.feed_untrusted(client.option(client.LIST) * 3)
    for _ in range(3):
        machine.step()
        assert [kind for _, kind, _ in client.option_replies(machine.take_output())].count(client.ACK) == 1


def test_closed_machine_stays_closed() -> None:
    machine = start(struct.pack(">I", 4))
    assert feed(machine, client.go("vol")) == b""
    assert machine.state is State.CLOSED


# ---- stopping and TLS ------------------------------------------------------------------------


def test_stopping_server_refuses_options_but_abort() -> None:
    machine = start()
    machine.stopping = True
    assert kinds(machine, client.go("vol")) == [client.SHUTDOWN]
    assert kinds(machine, client.option(client.LIST)) == [client.SHUTDOWN]
    assert kinds(machine, client.option(client.ABORT)) == [client.ACK]


def test_starttls_is_refused_by_policy_when_off() -> None:
    assert kinds(start(), client.option(client.STARTTLS)) == [client.POLICY]


def test_required_tls_hides_everything() -> None:
    machine = start(tls="require")
    for data in (client.option(client.LIST), client.go("vol"), client.option(99), client.option(client.STRUCTURED)):
        assert kinds(machine, data) == [client.TLS_REQD]
    feed(machine, client.option(client.EXPORT_NAME, b"vol"))
    assert machine.state is State.CLOSED


def test_tls_forgets_what_was_negotiated_in_clear() -> None:
    machine = start(tls="allow")
    feed(machine, client.option(client.EXTENDED) + client.meta(client.SET_META, "vol", "base:allocation"))
    assert kinds(machine, client.option(client.STARTTLS)) == [client.ACK]
    assert machine.state is State.STARTTLS
    machine.tls_started()
    assert kinds(machine, client.option(client.STARTTLS)) == [client.INVALID]
    feed(machine, client.go("vol"))
    assert machine.result is not None
    assert machine.result.framing is SIMPLE
    assert machine.result.contexts == ()


def test_data_behind_starttls_closes() -> None:
    machine = start(tls="allow")
    assert feed(machine, client.option(client.STARTTLS) + client.go("vol")) == b""
    assert machine.state is State.CLOSED


# ---- any bytes, any split ------------------------------------------------------------------------

OPTIONS = {
    "list": client.option(client.LIST),
    "structured": client.option(client.STRUCTURED),
    "extended": client.option(client.EXTENDED),
    "set": client.meta(client.SET_META, "vol", "base:allocation", "remotecopy:write-time"),
    "list-meta": client.meta(client.LIST_META, "vol"),
    "info": client.go("vol", 1, 2, 3, number=client.INFO),
    "go-nothing": client.go("nothing"),
    "go-malformed": client.option(client.GO, b"junk"),
    "unknown": client.option(77, b"whatever"),
    "oversized": client.option(client.SET_META, bytes(LIMITS.option_max + 5)),
}


@given(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=8), st.lists(st.integers(1, 200), max_size=50))
def test_splits_change_nothing(options: list[str], cuts: list[int]) -> None:
    stream = b"".join(OPTIONS[name] for name in options) + client.go("vol") + b"rest"
    whole, pieces = start(), start()
    expected = feed(whole, stream)
    got = b""
    position = 0
    for cut in [*cuts, len(stream)]:
        got += feed(pieces, stream[position : position + cut])
        position += cut
    assert got == expected
    assert pieces.state is State.DONE
    assert pieces.take_input() == whole.take_input() == b"rest"
    assert pieces.result is not None
    assert whole.result is not None
    assert pieces.result.contexts == whole.result.contexts


@given(st.lists(st.one_of(st.binary(max_size=64), st.sampled_from([*sorted(OPTIONS), "magic"])), max_size=12))
def test_any_bytes_end_in_a_state_and_never_in_an_exception(pieces: list[bytes | str]) -> None:
    machine = Negotiation(exports(), LIMITS)
    for item in pieces:
        piece = item if isinstance(item, bytes) else OPTIONS.get(item, b"IHAVEOPT")
        feed(machine, piece)
        assert len(machine._input) <= LIMITS.option_max + 16 + len(piece)
    assert machine.state in State
