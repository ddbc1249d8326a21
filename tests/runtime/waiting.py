"""Waiting for conditions of the real world: one helper, always with a bound."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio

T = TypeVar("T")
LOOK_EVERY_S = 0.01


async def eventually(look: Callable[[], T | Awaitable[T]], what: str, *, within_s: float = 30.0) -> T:
    """Look until the answer is true, and return it; fail with `what` and the last answer when time is up."""
    last: object = None
    with trio.move_on_after(within_s):
        while True:
            found = look()
            last = await found if inspect.isawaitable(found) else found
            if last:
                return last  # type: ignore[return-value]
            await trio.sleep(LOOK_EVERY_S)
    pytest.fail(f"not within {within_s:g} s: {what} (last answer: {last!r})")
