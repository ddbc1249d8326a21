"""Waiting for conditions of the real world: one helper, always with a bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import trio

LOOK_EVERY_S = 0.01


async def eventually(look: Callable[[], Any], what: str, *, within_s: float = 30.0) -> Any:
    """Look (a function, async or not) until the answer is true, and return it; fail with `what` when time is up."""
    last: Any = None
    with trio.move_on_after(within_s):
        while True:
            found = look()
            last = await found if inspect.isawaitable(found) else found
            if last:
                return last
            await trio.sleep(LOOK_EVERY_S)
    pytest.fail(f"not within {within_s:g} s: {what} (last answer: {last!r})")
