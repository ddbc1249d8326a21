from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxora.errors import AmountError
from fluxora.protocol.amounts import format_amount, parse_amount

I64_MAX = 9223372036854775807
I128 = st.integers(-(2**127), 2**127 - 1)


def code_of(value: object, decimals: int = 7) -> str:
    with pytest.raises(AmountError) as caught:
        parse_amount(value, decimals)
    assert str(caught.value)
    return caught.value.field_code


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("0", 0),
        ("1", 10_000_000),
        ("1000000.0000000", 10_000_000_000_000),
        ("0.0000116", 116),
        ("+1.5", 15_000_000),
        ("-1.5", -15_000_000),
        ("-0", 0),
        ("-0.0000000", 0),
        ("007.10", 71_000_000),
        ("0" * 5_000 + "1", 10_000_000),
        (f"{I64_MAX}.9999999", I64_MAX * 10**7 + 9_999_999),
        (f"-{I64_MAX}.9999999", -(I64_MAX * 10**7 + 9_999_999)),
    ],
)
def test_parse_amount_reads_decimal_strings(text: str, units: int) -> None:
    assert parse_amount(text) == units


@pytest.mark.parametrize("value", [1, 1.5, 0, 0.0, True, False, b"1", [], {}, Decimal(1), ["1"]])
def test_parse_amount_other_types(value: object) -> None:
    assert code_of(value) == "DECIMAL_INVALID_TYPE"


@pytest.mark.parametrize("value", [None, ""])
def test_parse_amount_empty(value: object) -> None:
    assert code_of(value) == "DECIMAL_EMPTY_VALUE"


@pytest.mark.parametrize(
    "text",
    [
        " ",
        " 1",
        "1 ",
        "1\n",
        "1.",
        ".5",
        "1e5",
        "0x10",
        "1,000",
        "1_000",
        "--1",
        "+-1",
        "+",
        "-",
        ".",
        "1.2.3",
        "NaN",
        "Infinity",
        "abc",
        "\uff11",
        "٣",
        "1.٣",
        "1\xa0",
        "1\x00",
    ],
)
def test_parse_amount_bad_format(text: str) -> None:
    assert code_of(text) == "DECIMAL_INVALID_FORMAT"


@pytest.mark.parametrize(
    "text",
    [str(I64_MAX + 1), f"-{I64_MAX + 1}", "9" * 20, "9" * 10_000, "1.00000000", "0.12345678", "1." + "0" * 9_999],
)
def test_parse_amount_out_of_range(text: str) -> None:
    assert code_of(text) == "DECIMAL_OUT_OF_RANGE"


def test_parse_amount_follows_the_decimals() -> None:
    assert parse_amount("1.5", 18) == 15 * 10**17
    assert parse_amount("2", 0) == 2
    assert code_of("2.0", 0) == "DECIMAL_OUT_OF_RANGE"
    assert code_of("0.123", 2) == "DECIMAL_OUT_OF_RANGE"


@given(st.integers(-I64_MAX, I64_MAX), st.integers(0, 10**7 - 1), st.integers(0, 18))
def test_amounts_survive_the_round_trip(whole: int, fraction: int, decimals: int) -> None:
    units = whole * 10**decimals
    units += fraction % 10**decimals if units >= 0 else -(fraction % 10**decimals)
    assert parse_amount(format_amount(units, decimals), decimals) == units


@given(I128, st.integers(0, 18))
@example(-1, 7)
@example(-(10**7), 7)
def test_format_amount_equals_decimal_scaling(units: int, decimals: int) -> None:
    with localcontext() as context:
        context.prec = 60
        expected = f"{Decimal(units).scaleb(-decimals):.{decimals}f}"
    assert format_amount(units, decimals) == expected


@given(st.text(max_size=12))
def test_parse_amount_raises_amount_error_only(text: str) -> None:
    try:
        units = parse_amount(text)
    except AmountError:
        pass
    else:
        assert Decimal(text) * 10**7 == units


def test_format_amount_has_no_negative_zero() -> None:
    assert format_amount(0) == "0.0000000"
    assert format_amount(-0, 0) == "0"
    assert format_amount(-1) == "-0.0000001"
