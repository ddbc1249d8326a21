from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.errors import InvalidJson
from fluxora.http import strict_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def encodable(value) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(values, st.booleans())
def test_whatever_the_standard_library_writes_is_read_back(value, ascii_only):
    if ascii_only or encodable(value):
        text = json.dumps(value, ensure_ascii=ascii_only)
        if encodable(value):
            assert strict_json.read(text.encode()) == value
        else:
            with pytest.raises(InvalidJson):
                strict_json.read(text.encode())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0123e-. "', max_size=60).map(str.encode))
def test_other_bytes_are_refused_or_read_as_the_standard_library_does(body):
    try:
        value = strict_json.read(body)
    except InvalidJson:
        return
    assert value == json.loads(body.decode())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_bounded_at_32(opening):
    closing = "]" if opening == "[" else "}"

    def nested(depth: int) -> bytes:
        return (opening * (depth - 1) + ("[]" if opening == "[" else "{}") + closing * (depth - 1)).encode()

    strict_json.read(nested(32))
    with pytest.raises(InvalidJson, match="nested deeper than 32"):
        strict_json.read(nested(33))
    with pytest.raises(InvalidJson, match="nested deeper than 32"):
        strict_json.read((opening * 100_000).encode())  # must not cost stack


def test_brackets_in_strings_do_not_count():
    text = "[" * 100 + '\\"' + "{" * 100
    assert strict_json.read(f'["{text}"]'.encode()) == [text.replace('\\"', '"')]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nope",
        b"{} {}",
        b'{"a":1,"a":2}',
        b'[{"a":{"b":1,"\\u0062":2}}]',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"1" * 5000,
        b"[1,]",
        b"{'a':1}",
    ],
)
def test_what_is_not_strict_json_is_refused(body):
    with pytest.raises(InvalidJson):
        strict_json.read(body)


@pytest.mark.parametrize(
    "body",
    [b'"' + b'\\"' * 131_000, b'{"a":"' + b'\\"' * 131_000, b'"\\\\' * 60_000, b'"' * 262_143, b'"' + b"\\" * 262_143],
    ids=["escaped quotes", "escaped quotes in an object", "mixed", "quotes", "backslashes"],
)
def test_a_string_without_an_end_is_refused_in_time(body: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidJson):
        strict_json.read(body)
    assert time.perf_counter() - started < 1  # for 256 KiB; one pass takes milliseconds
