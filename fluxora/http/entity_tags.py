"""Whether a client has what it asks for: If-None-Match against an entity tag (RFC 9110 13.1.2)."""

from __future__ import annotations


def is_named(if_none_match: str | None, etag: str) -> bool:
    """True where the client names the tag, so that 304 answers it; compared weakly: the W/ prefix does not count."""
    if if_none_match is None:
        return False
    candidates = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return "*" in candidates or etag.removeprefix("W/") in candidates
