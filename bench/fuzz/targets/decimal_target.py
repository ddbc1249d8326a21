"""protocol/amounts.parse_amount, against a reading that splits the text by hand and decimal.Decimal's value of it."""

from __future__ import annotations

from decimal import Decimal

from bench.fuzz.findings import demand
from fluxora.errors import AmountError
from fluxora.protocol import amounts

_DIGITS = frozenset("0123456789")


def execute(data: bytes) -> bool:
    """The first byte gives the token's decimals, the rest is the text, as hostile as it may be."""
    decimals = data[0] % 20 if data else amounts.DEFAULT_DECIMALS
    text = data[1:].decode("utf-8", "surrogateescape")
    due = _due(text, decimals)
    try:
        units = amounts.parse_amount(text, decimals)
    except AmountError as error:
        demand(error.field_code == due, f"refused with {error.field_code}, due {due}")
        return False
    demand(units == due, f"read as {units}, due {due}")
    written = amounts.format_amount(units, decimals)
    demand(Decimal(written) == Decimal(text), f"written as {written}")
    demand(amounts.parse_amount(written, decimals) == units, "not the same after writing and reading it")
    return True


def _due(text: str, decimals: int) -> int | str:
    """The base units, or the code of the refusal."""
    if not text:
        return "DECIMAL_EMPTY_VALUE"
    whole, point, fraction = text[text[0] in "+-" :].partition(".")
    if not whole or not set(whole) <= _DIGITS or not set(fraction) <= _DIGITS or (point and not fraction):
        return "DECIMAL_INVALID_FORMAT"
    value = Decimal(text)
    if abs(value) >= 2**63 or len(fraction) > decimals:
        return "DECIMAL_OUT_OF_RANGE"
    sign, digits, _ = value.as_tuple()
    units: int = int("".join(map(str, digits))) * 10 ** (decimals - len(fraction))
    return -units if sign else units
