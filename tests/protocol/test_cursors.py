from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluxora.errors import DecodeError
from fluxora.protocol import cursors

positions = st.integers(0, 2**63 - 1)
filters = st.dictionaries(st.sampled_from(["status", "sender", "order"]), st.none() | st.text(max_size=8), max_size=3)


@given(positions, filters)
def test_a_cursor_goes_on_where_its_page_ended(after, chosen):
    cursor = cursors.encode(after, chosen)
    assert cursor.isascii()
    assert cursor.replace("-", "").replace("_", "").isalnum()  # needs no escaping in a URL
    assert cursors.decode(cursor, chosen) == after


@given(positions, filters, filters)
def test_a_cursor_is_bound_to_its_filters(after, chosen, other):
    assume({k: v for k, v in chosen.items() if v is not None} != {k: v for k, v in other.items() if v is not None})
    with pytest.raises(DecodeError, match="other filters"):
        cursors.decode(cursors.encode(after, chosen), other)


def test_an_absent_filter_is_the_same_as_none():
    assert cursors.decode(cursors.encode(5, {"status": None}), {}) == 5


@given(st.text(max_size=120) | st.from_regex(r"[A-Za-z0-9_-]{0,120}", fullmatch=True))
def test_anything_else_is_refused(text):
    with pytest.raises(DecodeError, match="not a cursor"):
        cursors.decode(text, {})


@given(positions, st.data())
def test_no_second_spelling_of_a_cursor_is_taken(after, data):
    cursor = cursors.encode(after, {})
    at = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.characters(codec="ascii"))
    assume(cursor[at] != other)
    changed = cursor[:at] + other + cursor[at + 1 :]
    with suppress(DecodeError):
        assert cursors.decode(changed, {}) != after
    for spelling in (cursor + "=", cursor + "\n", cursor + "A" * 80):
        with pytest.raises(DecodeError):
            cursors.decode(spelling, {})
