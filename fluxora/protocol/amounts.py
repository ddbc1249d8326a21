"""Decimal amounts at the boundary, integers inside.

Inside, an amount is an `int` in the token's base units (i128 on chain). At the boundary it is a decimal string with
exactly `decimals` fraction digits. Nothing here goes through a float or a Decimal: a decimal string is its digits with
the point taken out. The rules and the four field codes are those of the wire contract.
"""

from __future__ import annotations

import re
from typing import Final

from fluxora.errors import AmountError

DEFAULT_DECIMALS: Final = 7
MAX_INTEGER_PART: Final = 9223372036854775807

INVALID_TYPE: Final = "DECIMAL_INVALID_TYPE"
EMPTY_VALUE: Final = "DECIMAL_EMPTY_VALUE"
INVALID_FORMAT: Final = "DECIMAL_INVALID_FORMAT"
OUT_OF_RANGE: Final = "DECIMAL_OUT_OF_RANGE"

_DECIMAL = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]+))?")
_MAX_INTEGER_DIGITS: Final = 19


def parse_amount(value: object, decimals: int = DEFAULT_DECIMALS) -> int:
    """Read a client's decimal string into base units.

    Leading zeros and a sign are accepted, an exponent, spaces, grouping or non-ASCII digits are not. Fraction digits
    are counted as written: trailing zeros beyond `decimals` are too precise as well.

    Raises:
        AmountError: with `field_code` DECIMAL_INVALID_TYPE (not a string), DECIMAL_EMPTY_VALUE (None or ""),
            DECIMAL_INVALID_FORMAT, or DECIMAL_OUT_OF_RANGE (integer part above 2**63-1, or too many fraction digits).
    """
    if value is None or value == "":
        raise AmountError(EMPTY_VALUE, "a decimal string is required")
    if not isinstance(value, str):
        raise AmountError(INVALID_TYPE, 'must be a decimal string such as "12.5000000", not a number or another type')
    match = _DECIMAL.fullmatch(value)
    if match is None:
        raise AmountError(INVALID_FORMAT, "must be digits with an optional sign and an optional fraction")
    sign, whole, fraction = match.groups("")
    whole = whole.lstrip("0") or "0"
    # The digit count goes first: int() of a very long string is slow and, beyond 4,300 digits, an error of its own.
    if len(whole) > _MAX_INTEGER_DIGITS or int(whole) > MAX_INTEGER_PART:
        raise AmountError(OUT_OF_RANGE, f"the integer part must not exceed {MAX_INTEGER_PART}")
    if len(fraction) > decimals:
        raise AmountError(OUT_OF_RANGE, f"must have at most {decimals} fraction digits")
    units = int(whole + fraction.ljust(decimals, "0"))
    return -units if sign == "-" else units


def format_amount(units: int, decimals: int = DEFAULT_DECIMALS) -> str:
    """Write base units as the canonical decimal string: exactly `decimals` fraction digits, no "+", no "-0".

    Any int formats, also the i128 values beyond what `parse_amount` takes from clients.
    """
    digits = str(units)
    whole = len(digits) - decimals
    if whole > 0 and units >= 0 < decimals:
        return f"{digits[:whole]}.{digits[whole:]}"
    if decimals == 0:
        return digits
    if units < 0:
        return "-" + format_amount(-units, decimals)
    return "0." + digits.zfill(decimals)
