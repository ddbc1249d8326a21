from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scval_oracle import ANY
from stellar_sdk import Address, scval, xdr

from fluxora.errors import DecodeError
from fluxora.protocol import contract
from fluxora.protocol.topics import ALIASES, TOPICS, topic_xdr

if TYPE_CHECKING:
    from fluxora.protocol.contract import ContractEvent

ALICE = "GBXHUHG5FGYLPD6RHL2MKWMP572O6KUXCZXDZJXS4T57ZTMAKBN7DWXN"
BOB = "GDWUSKGGFDI4FRXK5EBTRECZSVQSSWJHHJOGH6JWG3AUMFFMQ435DIAG"
CONTRACT = "CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAD2KM"
WHERE: dict[str, Any] = {
    "id": "0" * 30,
    "ledger": 7,
    "closed_at": 1_700_000_000,
    "contract_id": CONTRACT,
    "tx_hash": "ab" * 32,
}

SAMPLES = {
    "u32": (5, scval.to_uint32),
    "u64": (2**64 - 1, scval.to_uint64),
    "i128": (2**100, scval.to_int128),
    "bool": (True, scval.to_bool),
    "text": ("why", scval.to_string),
    "address": (ALICE, scval.to_address),
    "bytes": (b"\x00\xff", scval.to_bytes),
    "hash": (bytes(range(32)), scval.to_bytes),
    "entries": (
        {b"dept": b"eng"},
        lambda value: xdr.SCVal(
            xdr.SCValType.SCV_MAP,
            map=xdr.SCMap([xdr.SCMapEntry(scval.to_bytes(k), scval.to_bytes(v)) for k, v in value.items()]),
        ),
    ),
}


def struct_of(**fields: xdr.SCVal) -> xdr.SCVal:
    return scval.to_struct(dict(sorted(fields.items())))


def xdr_event(value: xdr.SCVal | bytes, *topics: xdr.SCVal | bytes) -> ContractEvent:
    def raw(item: xdr.SCVal | bytes) -> bytes:
        return item if isinstance(item, bytes) else item.to_xdr_bytes()

    event = contract.decode_xdr(**WHERE, topics=[raw(topic) for topic in topics], value=raw(value))
    assert contract.decode_raw(**WHERE, raw=event.raw) == event
    return event


def symbol(name: str) -> xdr.SCVal:
    return scval.to_symbol(name)


def sample(name: str) -> tuple[dict[str, Any], xdr.SCVal, list[xdr.SCVal]]:
    """Data, value and topics of one event of topic `name`, by the field table."""
    topic = TOPICS[name]
    data = {field: SAMPLES[kind][0] for field, kind in topic.kinds.items() if field != topic.holder}
    value = struct_of(**{field: SAMPLES[topic.kinds[field]][1](item) for field, item in data.items()})
    topics = [symbol(name)]
    if topic.id_field is not None:
        topics.append(scval.to_uint64(data[topic.id_field]))
    if topic.holder is not None:
        data[topic.holder] = ALICE
        topics.append(scval.to_address(ALICE))
    return data, value, topics


@pytest.mark.parametrize("name", TOPICS)
def test_a_known_topic_is_decoded_whole(name: str) -> None:
    data, value, topics = sample(name)
    event = xdr_event(value, *topics)
    assert (event.action, event.data) == (name, data)
    topic = TOPICS[name]
    assert event.stream_id == (data[topic.id_field] if topic.is_stream and topic.id_field else None)
    assert (event.id, event.ledger, event.closed_at, event.contract_id, event.tx_hash) == tuple(WHERE.values())
    assert msgspec.msgpack.decode(event.raw) == ["xdr", [t.to_xdr_bytes() for t in topics], value.to_xdr_bytes()]


@pytest.mark.parametrize("name", TOPICS)
def test_a_field_that_is_missing_or_of_another_type_makes_the_event_unknown(name: str) -> None:
    topic = TOPICS[name]
    data, _, topics = sample(name)
    wrong = {"bool": scval.to_uint32(1)}
    for field in data.keys() - {topic.holder}:
        others = {k: SAMPLES[topic.kinds[k]][1](v) for k, v in data.items() if k not in {field, topic.holder}}
        spoilt = xdr_event(struct_of(**others, **{field: wrong.get(topic.kinds[field], scval.to_bool(True))}), *topics)
        stream_id = data[topic.id_field] if topic.is_stream and topic.id_field else None
        assert (spoilt.action, spoilt.stream_id, list(spoilt.data)) == ("unknown", stream_id, ["error"])
        missing = xdr_event(struct_of(**others), *topics)
        defaults = dict(topic.defaults)
        if field in defaults:
            assert (missing.action, missing.data) == (name, {**data, field: defaults[field]})
        else:
            assert missing.action == "unknown"


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_a_renamed_topic_has_its_name_of_today(alias: str, name: str) -> None:
    data, value, topics = sample(name)
    event = xdr_event(value, symbol(alias), *topics[1:])
    assert (event.action, event.data) == (name, data)
    assert contract.decode_named(**WHERE, topic=alias, payload=data).action == name


def test_a_delegated_withdrawal_under_its_first_topic_is_a_withdrawal() -> None:
    value = struct_of(
        stream_id=scval.to_uint64(3),
        recipient=scval.to_address(ALICE),
        destination=scval.to_address(BOB),
        relayer=scval.to_address(CONTRACT),
        amount=scval.to_int128(5),
    )
    event = xdr_event(value, symbol("dlg_wdraw"), scval.to_uint64(3))
    assert (event.action, event.stream_id, event.data["amount"], event.data["destination"]) == ("withdrew", 3, 5, BOB)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("completed", "StreamCompleted"),
        ("resumed", "Resumed"),
        ("cancelled", "StreamCancelled"),
        ("cancelled", "Cancelled"),
        ("closed", "StreamClosed"),
        ("paused", "Paused"),
    ],
)
def test_an_enum_variant_is_lifted_to_the_stream_id(name: str, variant: str) -> None:
    value = scval.to_vec([symbol(variant), scval.to_uint64(3)])
    event = xdr_event(value, symbol(name), scval.to_uint64(3))
    assert (event.action, event.stream_id, event.data) == (name, 3, {"stream_id": 3})
    for other in (
        [symbol("Elsewhere"), scval.to_uint64(3)],
        [symbol(variant), scval.to_uint64(4)],
        [symbol(variant)],
        [],
    ):
        assert xdr_event(scval.to_vec(other), symbol(name), scval.to_uint64(3)).action == "unknown"


@pytest.mark.parametrize(
    ("name", "field"), [("created", "deposit_amount"), ("withdrew", "amount"), ("cancelled", "refund_amount")]
)
def test_a_bare_amount_is_lifted_to_its_field(name: str, field: str) -> None:
    event = xdr_event(scval.to_int128(2**90), symbol(name), scval.to_uint64(3))
    assert (event.action, event.stream_id, event.data) == (name, 3, {field: 2**90, "stream_id": 3})
    for other in (scval.to_string("1"), scval.to_bool(True), scval.to_uint256(2**200), scval.to_void()):
        assert xdr_event(other, symbol(name), scval.to_uint64(3)).action == "unknown"
    assert xdr_event(scval.to_int128(1), symbol(name)).action == "unknown"  # whose amount?


@pytest.mark.parametrize("name", ["paused", "resumed", "completed", "closed"])
def test_no_data_is_lifted_to_the_topics_id(name: str) -> None:
    event = xdr_event(scval.to_void(), symbol(name), scval.to_uint64(0))
    assert (event.action, event.stream_id, event.data) == (name, 0, {"stream_id": 0})
    assert xdr_event(scval.to_void(), symbol(name)).action == "unknown"


def test_created_of_eight_fields_gets_what_the_missing_ones_mean() -> None:
    data, _, topics = sample("created")
    old = {k: v for k, v in data.items() if k not in {"withdraw_dust_threshold", "memo", "metadata"}}
    value = struct_of(**{k: SAMPLES[TOPICS["created"].kinds[k]][1](v) for k, v in old.items()})
    event = xdr_event(value, *topics)
    assert event.action == "created"
    assert event.data == {**old, "withdraw_dust_threshold": 0, "memo": None, "metadata": None}


def test_tuples_are_lifted_to_names() -> None:
    pair = scval.to_vec([scval.to_address(ALICE), scval.to_address(BOB)])
    assert xdr_event(pair, symbol("AdminUpd")).data == {"old_admin": ALICE, "new_admin": BOB}
    counts = scval.to_vec([scval.to_uint64(10), scval.to_uint32(5), scval.to_uint32(2), scval.to_uint32(3)])
    event = xdr_event(counts, symbol("res_rel"), scval.to_address(ALICE))
    assert (event.action, event.stream_id) == ("res_rel", None)
    assert event.data == {"start_id": 10, "count": 5, "consumed": 2, "reclaimed": 3, "holder": ALICE}
    upgrade = scval.to_vec([scval.to_bytes(bytes(32)), scval.to_uint32(8), scval.to_uint32(9), scval.to_address(ALICE)])
    assert xdr_event(upgrade, symbol("upgrade")).data == {
        "new_wasm_hash": bytes(32),
        "old_version": 8,
        "new_version": 9,
        "upgraded_by": ALICE,
    }


def test_whose_stream_an_event_concerns() -> None:
    streams = {}
    for name in TOPICS:
        _, value, topics = sample(name)
        streams[name] = xdr_event(value, *topics).stream_id
    contract_level = {name for name, stream_id in streams.items() if stream_id is None}
    assert contract_level == {
        *("offr_crt", "offr_cxl", "gl_pause", "gl_resume", "ct_pause", "pr_pause", "pr_resume", "ex_swept"),
        *("AdminUpd", "upgraded", "upgrade", "tmpl_def", "res_rel"),
    }

    def ids(name: str, second: int, **fields: int) -> int | None:
        data, _, _ = sample(name)
        value = struct_of(**{k: SAMPLES[TOPICS[name].kinds[k]][1](v) for k, v in {**data, **fields}.items()})
        return xdr_event(value, symbol(name), scval.to_uint64(second)).stream_id

    assert ids("cloned", 8, new_stream_id=8, source_stream_id=3) == 8
    assert ids("renewed", 3, old_stream_id=3, new_stream_id=8) == 3
    assert ids("del_share", 3, parent_stream_id=3, child_stream_id=8) == 3
    assert ids("offr_acc", 6, offer_id=6) == 6


def test_an_id_that_differs_from_the_topics_makes_the_event_unknown() -> None:
    _, value, topics = sample("withdrew")
    for second, stream_id in ((scval.to_uint64(1), 1), (symbol("one"), None), (scval.to_int64(-1), None)):
        event = xdr_event(value, topics[0], second)
        assert (event.action, event.stream_id, list(event.data)) == ("unknown", stream_id, ["error"])


def test_the_id_is_taken_from_the_data_when_the_topic_has_none() -> None:
    data, value, topics = sample("withdrew")
    event = xdr_event(value, topics[0])
    assert (event.action, event.stream_id) == ("withdrew", data["stream_id"])


def test_fields_and_topics_of_later_versions_are_kept_and_ignored() -> None:
    data, _, topics = sample("ac_revoke")
    value = struct_of(stream_id=scval.to_uint64(data["stream_id"]), zz_new=scval.to_symbol("x"))
    event = xdr_event(value, *topics, symbol("a"), symbol("b"), symbol("c"))
    assert (event.action, event.data) == ("ac_revoke", {**data, "zz_new": "x"})


def test_unknown_topics_of_any_number_are_kept() -> None:
    none = xdr_event(scval.to_uint32(1))
    assert (none.action, none.stream_id, none.data) == ("unknown", None, {"topics": [], "value": 1})
    five = xdr_event(scval.to_void(), *(symbol(name) for name in "abcde"))
    assert five.data == {"topics": list("abcde"), "value": None}
    number = xdr_event(scval.to_void(), scval.to_uint64(3))
    assert (number.action, number.stream_id) == ("unknown", None)


@pytest.mark.parametrize("damaged", [b"", b"\0\0\0\x11", b"\0" * 7, b"\xff" * 64])
def test_undecodable_xdr_is_kept_as_unknown(damaged: bytes) -> None:
    _, value, topics = sample("withdrew")
    for event, stream_id in (
        (xdr_event(damaged, *topics), 2**64 - 1),  # the stream is known, its ledger entry can be read
        (xdr_event(value, topics[0], damaged), None),
        (xdr_event(value, damaged, topics[1]), None),
    ):
        assert (event.action, event.stream_id, list(event.data)) == ("unknown", stream_id, ["error"])
        assert damaged in [*msgspec.msgpack.decode(event.raw)[1], msgspec.msgpack.decode(event.raw)[2]]


@given(
    st.lists(ANY | st.sampled_from(sorted(TOPICS)).map(scval.to_symbol) | st.binary(max_size=12), max_size=6),
    ANY | st.binary(max_size=40),
)
@settings(max_examples=150, deadline=None)
def test_no_event_raises_and_each_is_rebuilt_from_its_raw_form(topics: list[Any], value: Any) -> None:
    event = xdr_event(value, *topics)
    assert event.action in contract.ACTIONS


@given(st.sampled_from(sorted(TOPICS)), ANY, st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_no_data_of_a_known_topic_raises(name: str, value: xdr.SCVal, stream_id: int) -> None:
    assert xdr_event(value, symbol(name), scval.to_uint64(stream_id)).action in {name, "unknown"}


def as_json(value: Any) -> Any:
    if type(value) is int:
        return str(value)
    if isinstance(value, bytes):
        return value.hex() if len(value) == 32 else value.decode()
    if isinstance(value, dict):
        return {as_json(key): as_json(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("name", TOPICS)
def test_a_named_event_equals_the_one_from_xdr(name: str) -> None:
    data, value, topics = sample(name)
    by_xdr = xdr_event(value, *topics)
    data = {key: b"memo" if item == b"\x00\xff" else item for key, item in data.items()}
    for payload in (data, as_json(data), msgspec.json.decode(msgspec.json.encode(as_json(data)))):
        event = contract.decode_named(**WHERE, topic=name, payload=payload)
        assert (event.action, event.stream_id) == (by_xdr.action, by_xdr.stream_id)
        assert event.data == data
        assert contract.decode_raw(**WHERE, raw=event.raw) == event


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("withdrew", {"amount": 1.5}),
        ("withdrew", {"amount": "1.5"}),
        ("withdrew", {"amount": ""}),
        ("withdrew", {"amount": "٣"}),
        ("withdrew", {"amount": "--1"}),
        ("withdrew", {"amount": "9" * 5_000}),
        ("withdrew", {"amount": str(2**127)}),
        ("withdrew", {"amount": True}),
        ("withdrew", {"amount": None}),
        ("withdrew", {"stream_id": "-1"}),
        ("withdrew", {"stream_id": 2**64}),
        ("withdrew", {"recipient": ALICE[:-1] + "A"}),
        ("withdrew", {"recipient": ""}),
        ("withdrew", {"recipient": 5}),
        ("created", {"metadata": {"a": 5}}),
        ("created", {"metadata": [1]}),
        ("created", {"memo": 5}),
        ("decomm", {"decommissioned": "true"}),
        ("upgraded", {"new_wasm_hash": "zz"}),
        ("upgraded", {"new_wasm_hash": "ab"}),
    ],
)
def test_a_named_event_with_a_wrong_field_is_refused(name: str, change: dict[str, Any]) -> None:
    data, _, _ = sample(name)
    with pytest.raises(DecodeError, match=next(iter(change))):
        contract.decode_named(**WHERE, topic=name, payload={**data, **change})


def test_a_named_event_without_a_field_is_refused() -> None:
    data, _, _ = sample("withdrew")
    for field in data:
        with pytest.raises(DecodeError, match=field):
            contract.decode_named(**WHERE, topic="withdrew", payload={k: v for k, v in data.items() if k != field})


def test_a_named_event_of_an_unknown_topic_is_kept() -> None:
    payload = {
        "n": 2**200,
        "m": -(2**70),
        "edges": [2**64, 2**127, 2**128 - 1, -(2**63) - 1, -(2**127)],
        "list": [1, "x", None, {"deep": 2**64}],
        "f": 1.5,
    }
    event = contract.decode_named(**WHERE, topic="later", payload=payload)
    assert (event.action, event.stream_id) == ("unknown", None)
    assert event.data == {"topics": ["later"], "value": payload}
    assert contract.decode_raw(**WHERE, raw=event.raw) == event


def test_a_correction_is_rebuilt_from_its_raw_form() -> None:
    entry = {
        "stream_id": 4,
        "deposit_amount": 2**120,
        "rate_per_second": -(2**127),
        "memo": b"\xff",
        "metadata": {b"a": b"b"},
    }
    event = contract.correction(
        ledger=9, closed_at=5, contract_id=CONTRACT, stream_id=4, entry=entry, immutable_only=True
    )
    assert (event.action, event.stream_id, event.ledger) == ("corrected", 4, 9)
    assert event.data == {"entry": entry, "immutable_only": True}
    assert contract.decode_raw(event.id, 9, 5, CONTRACT, "", event.raw) == event


def test_a_correction_follows_every_event_of_its_ledger_and_precedes_the_next() -> None:
    last = f"{(9 << 32) | (1048575 << 12) | 4095:019d}-{4294967295:010d}"
    first_of_next = f"{10 << 32:019d}-{0:010d}"
    assert last < contract.correction_id(9, 0) < contract.correction_id(9, 7) < first_of_next


def test_a_whole_entry_is_no_duplicate_of_what_was_told_of_the_same_ledger_before() -> None:
    told = {"ledger": 9, "closed_at": 5, "contract_id": CONTRACT, "stream_id": 4, "entry": {"stream_id": 4}}
    partly, wholly = (contract.correction(**told, immutable_only=partial) for partial in (True, False))
    last_event = f"{(9 << 32) | (4096 << 12):019d}-{7:010d}"
    assert last_event < partly.id < wholly.id
    assert contract.decode_raw(partly.id, 9, 5, CONTRACT, "", partly.raw) == partly


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x01",
        msgspec.msgpack.encode(["xdr"]),
        msgspec.msgpack.encode(["other", 1]),
        msgspec.msgpack.encode(["json", 1, 2]),
        msgspec.msgpack.encode(["xdr", 1, 2]),
        msgspec.msgpack.encode([]),
    ],
)
def test_decode_raw_refuses_what_it_did_not_write(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        contract.decode_raw(**WHERE, raw=raw)


def test_topic_xdr_equals_stellar_sdk() -> None:
    for name in [*TOPICS, *ALIASES, "", "a", "abcd"]:
        assert topic_xdr(name) == scval.to_symbol(name).to_xdr_bytes()


def test_amount_fields_are_fields_and_no_times_or_ids() -> None:
    kinds = {field: kind for topic in TOPICS.values() for field, kind in topic.kinds.items()}
    assert {field for field, kind in kinds.items() if kind == "i128"} <= contract.AMOUNT_FIELDS
    assert all(kinds.get(field, "i128") == "i128" for field in contract.AMOUNT_FIELDS)


def test_a_muxed_party_makes_the_event_unknown() -> None:
    data, _, topics = sample("withdrew")
    muxed = Address.from_raw_muxed_account(bytes(40))
    value = struct_of(
        stream_id=scval.to_uint64(data["stream_id"]), amount=scval.to_int128(1), recipient=scval.to_address(muxed)
    )
    assert xdr_event(value, *topics).action == "unknown"


@pytest.mark.parametrize(
    "value",
    [{(1, (2, ())): None}, {2**200: 1, -(2**100): [2**70]}, {None: {True: {b"\xff": 2**64}}}, [{(b"k", None): [{}]}]],
)
def test_a_correction_with_maps_of_any_keys_is_rebuilt_from_raw(value):
    one = contract.correction(
        ledger=7, closed_at=9, contract_id="C" * 56, stream_id=3, entry={"novelty": value}, immutable_only=False
    )
    assert contract.decode_raw(one.id, one.ledger, one.closed_at, one.contract_id, one.tx_hash, one.raw) == one
