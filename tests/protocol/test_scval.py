from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scval_oracle import ANY, ARMS, PLAIN, expected, plain
from stellar_sdk import Address, scval, xdr

from fluxora.errors import DecodeError
from fluxora.protocol.scval import MAX_DEPTH, decode, decode_topic


def same(left: Any, right: Any) -> bool:
    # repr tells True from 1 and shows the order of a dict, which == does not.
    return repr(left) == repr(right)


@pytest.mark.parametrize("arm", sorted(ARMS, key=lambda arm: arm.value), ids=lambda arm: arm.name)
def test_decode_equals_stellar_sdk_for_the_arm(arm: xdr.SCValType) -> None:
    @given(ARMS[arm])
    @settings(max_examples=40, deadline=None)
    def holds(value: xdr.SCVal) -> None:
        assert value.type == arm
        data = value.to_xdr_bytes()
        assert same(decode(data), expected(value))
        assert same(decode_topic(data), expected(value))

    holds()


def test_every_arm_of_the_protocol_is_tested() -> None:
    assert set(ARMS) == set(xdr.SCValType)


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_decode_equals_to_native(value: xdr.SCVal) -> None:
    assert same(decode(value.to_xdr_bytes()), plain(scval.to_native(value)))


@given(ANY)
@settings(max_examples=60, deadline=None)
def test_decode_refuses_every_truncation_and_trailing_bytes(value: xdr.SCVal) -> None:
    data = value.to_xdr_bytes()
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            decode(data[:length])
    for tail in (b"\0", b"\0\0\0\0", b"x"):
        with pytest.raises(DecodeError, match="trailing"):
            decode(data + tail)


@given(ANY, st.data())
@settings(max_examples=200, deadline=None)
def test_decode_of_damaged_bytes_raises_decode_error_or_reads_what_stellar_sdk_reads(
    value: xdr.SCVal, data: st.DataObject
) -> None:
    damaged = bytearray(value.to_xdr_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(damaged))
    except DecodeError:
        return
    assert same(found, expected(xdr.SCVal.from_xdr_bytes(bytes(damaged))))


@given(
    st.binary(max_size=80) | st.builds(lambda arm, rest: bytes((0, 0, 0, arm)) + rest, st.integers(0, 23), st.binary())
)
@settings(max_examples=300, deadline=None)
def test_decode_of_random_bytes_raises_decode_error_or_reads_what_stellar_sdk_reads(data: bytes) -> None:
    try:
        found = decode(data)
    except DecodeError:
        return
    assert same(found, expected(xdr.SCVal.from_xdr_bytes(data)))


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        words(23),  # no such arm
        words(2**32 - 1),
        words(0, 2),  # a bool that is neither
        words(2, 10, 0),  # no such error type
        words(2, 1, 10),  # no such error code
        words(13, 2**32 - 1),  # 4 GiB of bytes
        words(13, 2**32 - 4) + bytes(8),
        words(13, 1) + b"a\0\0\x01",  # padding
        words(14, 1) + b"a\x01\0\0",
        words(15, 1) + b"a\0\0\x01",
        words(15, 33) + b"a" * 36,  # a symbol is at most 32 bytes
        words(15, 2**32 - 1),
        words(15, 1) + b"\xff\0\0\0",  # a symbol is text
        words(16, 0),  # an absent vec
        words(16, 2, 0),  # a presence flag that is neither
        words(16, 1, 2**32 - 1),
        words(17, 0),
        words(17, 1, 2**32 - 1),
        words(17, 1, 2**32 - 1) + bytes(64),
        words(17, 1, 1, 15, 2**32 - 1, 0, 0),
        words(18, 5) + bytes(40),  # no such address
        words(18, 0, 1) + bytes(32),  # no such key type
        words(18, 3, 1) + bytes(32),  # no such balance id
        words(19, 3) + bytes(40),  # no such executable
        words(19, 1, 2, 0),
        words(19, 0) + bytes(31),
        words(21, 0),
    ],
    ids=bytes.hex,
)
def test_decode_refuses(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)
    with pytest.raises(DecodeError):
        decode_topic(data)


def nested(depth: int) -> bytes:
    return words(16, 1, 1) * depth + words(1)


@pytest.mark.parametrize(
    "opening", [words(16, 1, 1), words(17, 1, 1, 1), words(19, 1, 1, 1, 1)], ids=["vec", "map", "instance"]
)
def test_decode_bounds_the_depth(opening: bytes) -> None:
    decode(opening * MAX_DEPTH + words(1))
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(DecodeError, match="deeper"):
            decode(opening * depth + words(1))


def test_decode_with_a_full_stack_raises_decode_error() -> None:
    def dive() -> DecodeError | None:
        try:
            return dive()
        except RecursionError:
            pass
        try:
            decode(nested(MAX_DEPTH))
        except DecodeError as error:
            return error
        return None

    error = dive()
    assert error is not None
    assert isinstance(error.__cause__, RecursionError)


def test_strings_that_are_not_utf8_stay_bytes() -> None:
    assert decode(scval.to_string(b"\xff\xfe").to_xdr_bytes()) == b"\xff\xfe"
    assert decode(scval.to_string("zażółć").to_xdr_bytes()) == "zażółć"


def test_map_keys_that_are_collections_become_tuples() -> None:
    inner = xdr.SCVal(
        xdr.SCValType.SCV_MAP,
        map=xdr.SCMap([xdr.SCMapEntry(scval.to_uint32(1), scval.to_vec([scval.to_bool(True)]))]),
    )
    outer = xdr.SCVal(
        xdr.SCValType.SCV_MAP,
        map=xdr.SCMap(
            [
                xdr.SCMapEntry(scval.to_vec([scval.to_uint32(1), scval.to_vec([])]), scval.to_uint32(2)),
                xdr.SCMapEntry(inner, scval.to_uint32(3)),
            ]
        ),
    )
    assert decode(outer.to_xdr_bytes()) == {(1, ()): 2, ((1, (True,)),): 3}


def test_a_muxed_address_has_its_key_and_id_in_strkey_order() -> None:
    address = Address.from_raw_muxed_account(bytes(range(32)) + (77).to_bytes(8, "big"))
    assert decode(scval.to_address(address).to_xdr_bytes()) == address.address


def test_decode_topic_hands_out_no_shared_collections() -> None:
    data = scval.to_vec([scval.to_uint32(1)]).to_xdr_bytes()
    decode_topic(data).append(2)
    assert decode_topic(data) == [1]
