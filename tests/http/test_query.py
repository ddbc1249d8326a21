from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.errors import BadRequest
from fluxora.http.query import Query

NAMES = ("limit", "status", "sender", "contractId")


def failing(query: Query) -> list[tuple[str, str]]:
    with pytest.raises(BadRequest) as caught:
        query.check()
    return [(field, code) for field, code, _ in caught.value.details]


def test_every_wrong_parameter_is_named_in_one_answer():
    query = Query(
        [("limit", "0"), ("status", "sleeping"), ("sender", "G1"), ("contractId", "x"), ("x", "1"), ("limit", "3")],
        NAMES,
    )
    query.limit(20, 100)
    query.choice("status", ("active",))
    query.address("sender")
    query.contract("contractId")
    assert failing(query) == [
        ("x", "UNKNOWN_PARAMETER"),
        ("limit", "REPEATED_PARAMETER"),
        ("limit", "OUT_OF_RANGE"),
        ("status", "INVALID_VALUE"),
        ("sender", "INVALID_ADDRESS"),
        ("contractId", "INVALID_ADDRESS"),
    ]


@given(st.integers(-5, 110))
def test_limit_holds_its_range(number):
    query = Query([("limit", str(number))], NAMES)
    limit = query.limit(20, 100)
    if 1 <= number <= 100:
        query.check()
        assert limit == number
    else:
        assert [field for field, _ in failing(query)] == ["limit"]


@pytest.mark.parametrize(
    "text", ["", "+1", "-1", "1.0", "1e2", " 1", "1 ", "0x1", "\u0661", "\u00b2", "1_0", "9" * 20, "null"]
)
def test_numbers_are_ascii_digits(text):
    query = Query([("limit", text)], NAMES)
    query.limit(20, 100)
    assert failing(query) == [("limit", "INVALID_FORMAT")]


def test_absent_parameters_are_none_or_the_default():
    query = Query([], NAMES)
    assert query.limit(20, 100) == 20
    assert query.choice("status", ("active",)) is None
    assert query.address("sender") is None
    query.check()
