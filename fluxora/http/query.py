"""Query parameters, read strictly: unknown and repeated ones are refused, every failing one is named in one answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TypeVar

from fluxora.http.validation import Problems
from fluxora.protocol.addresses import is_account_or_contract, is_contract

MAX_POSITION = 2**63 - 1
MAX_UNIX_S = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second that RFC 3339 can write
STREAM_ID = re.compile(r"stream-[A-Za-z0-9-]{1,100}")
Choice = TypeVar("Choice", bound=str)
_DIGITS = re.compile(r"[0-9]{1,19}")


class Query:
    """The parameters of one request. Readers return None (or the default) for absent and for wrong ones; `check` tells.

    The order of use is: construct with the names that the route knows, read each, `check()`.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], known: Collection[str]) -> None:
        self.problems = Problems()
        self._values: dict[str, str] = {}
        repeated: set[str] = set()
        for name, value in pairs:
            if name not in known:
                self.problems.add(name[:100], "UNKNOWN_PARAMETER", "Unknown parameter")
            elif name in self._values and name not in repeated:
                repeated.add(name)
                self.problems.add(name, "REPEATED_PARAMETER", "The parameter stands more than once")
            self._values.setdefault(name, value)

    def check(self) -> None:
        """End the request if any parameter is wrong.

        Raises:
            BadRequest: naming every one.
        """
        self.problems.raise_if_any("The query parameters are not valid")

    def text(self, name: str) -> str | None:
        """The parameter as it came."""
        return self._values.get(name)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in ASCII digits, `low` to `high`."""
        value = self._values.get(name)
        if value is None:
            return None
        if not _DIGITS.fullmatch(value):
            self.problems.add(name, "INVALID_FORMAT", f"A whole number from {low} to {high} is needed")
            return None
        number = int(value)
        if not low <= number <= high:
            self.problems.add(name, "OUT_OF_RANGE", f"A whole number from {low} to {high} is needed")
            return None
        return number

    def limit(self, default: int, high: int) -> int:
        """The page size."""
        return self.integer("limit", 1, high) or default

    def choice(self, name: str, choices: Sequence[Choice]) -> Choice | None:
        """One of a closed set."""
        value = self._values.get(name)
        if value is None:
            return None
        for choice in choices:
            if choice == value:
                return choice
        self.problems.add(name, "INVALID_VALUE", f"One of {', '.join(choices)} is needed")
        return None

    def address(self, name: str) -> str | None:
        """A StrKey of an account (G...) or a contract (C...), its checksum verified."""
        value = self._values.get(name)
        if value is None or is_account_or_contract(value):
            return value
        self.problems.add(name, "INVALID_ADDRESS", "A Stellar address (G... or C...) with a valid checksum is needed")
        return None

    def contract(self, name: str) -> str | None:
        """A StrKey of a contract (C...), its checksum verified."""
        value = self._values.get(name)
        if value is None or is_contract(value):
            return value
        self.problems.add(name, "INVALID_ADDRESS", "A contract id (C...) with a valid checksum is needed")
        return None

    def stream(self, name: str) -> str | None:
        """A stream id."""
        value = self._values.get(name)
        if value is None or STREAM_ID.fullmatch(value):
            return value
        self.problems.add(name, "INVALID_FORMAT", "A stream id is needed, stream-...")
        return None
