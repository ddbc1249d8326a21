from __future__ import annotations

import pytest

from fluxora.http.entity_tags import is_named


@pytest.mark.parametrize(
    ("if_none_match", "etag", "named"),
    [
        (None, '"a"', False),
        ("", '"a"', False),
        ('"a"', '"a"', True),
        ('W/"a"', '"a"', True),
        ('"a"', 'W/"a"', True),
        ('W/"a"', 'W/"a"', True),
        ('"b", W/"a"', 'W/"a"', True),
        ('"b","c"', '"a"', False),
        ("*", '"a"', True),
        ("a", '"a"', False),
        ('"aa"', '"a"', False),
        ('w/"a"', '"a"', False),  # the prefix is case-sensitive
    ],
)
def test_a_tag_is_named_by_weak_comparison(if_none_match, etag, named):
    assert is_named(if_none_match, etag) == named
