"""Collecting what is wrong with a request: every failing field is reported at once, none is fixed silently."""

from __future__ import annotations

from fluxora.errors import BadRequest


class Problems:
    """The failing fields of one request, in the order in which they were found."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []

    def add(self, field: str, code: str, message: str) -> None:
        """Note that `field` is wrong; `code` is for programs, `message` for people."""
        self.found.append((field, code, message))

    def raise_if_any(self, message: str) -> None:
        """End the request if anything was noted.

        Raises:
            BadRequest: with all the details.
        """
        if self.found:
            raise BadRequest(message, details=self.found)
