"""The event filters of getEvents: their limits and what they match, after stellar-rpc's protocol package.

Filters are OR-ed, the fields inside one AND-ed, its topic filters OR-ed, the segments inside one AND-ed. "*" stands for
exactly one topic; "**", only as the last segment, for any number. Without "**" the number of topics must be exact.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import msgspec
from stellar_sdk import StrKey, xdr

from fluxora.localnet.chain import LedgerEvents

MAX_FILTERS = 5
MAX_CONTRACT_IDS = 5
MAX_TOPIC_FILTERS = 5
MAX_SEGMENTS = 4
ANY_ONE = "*"
ANY_REST = "**"


class FilterError(Exception):
    """A filter breaks a rule; the text is what the server answers with -32602."""


class SegmentError(Exception):
    """A topic segment is no ScVal: the parameters cannot even be read (-32602 "invalid parameters")."""


class FilterParams(msgspec.Struct):
    """A filter as it stands in the request."""

    type: str | None = None
    contractIds: list[str] | None = None  # noqa: N815 - the wire's name
    topics: list[list[str] | None] | None = None


class TopicMatcher(msgspec.Struct, frozen=True):
    """One topic filter: its segments as XDR bytes (None: any one) and whether more topics may follow."""

    segments: tuple[bytes | None, ...]
    open_ended: bool

    def matches(self, topics: tuple[bytes, ...]) -> bool:
        """Whether an event with these topics passes."""
        if len(topics) < len(self.segments) or (len(topics) > len(self.segments) and not self.open_ended):
            return False
        return all(segment is None or segment == topics[i] for i, segment in enumerate(self.segments))


class EventFilter(msgspec.Struct, frozen=True):
    """A validated filter. An empty field does not restrict."""

    types: frozenset[str]
    contracts: frozenset[str]
    topics: tuple[TopicMatcher, ...]

    def matches(self, kind: str, contract: str, topics: tuple[bytes, ...]) -> bool:
        """Whether an event of that type and contract with these topics passes."""
        return (
            (not self.types or kind in self.types)
            and (not self.contracts or contract in self.contracts)
            and (not self.topics or any(matcher.matches(topics) for matcher in self.topics))
        )


@lru_cache(maxsize=1024)
def _segment(text: str) -> bytes:
    try:
        return xdr.SCVal.from_xdr(text).to_xdr_bytes()
    except Exception as error:  # the SDK raises what its reader happens to meet: ValueError, EOFError, struct.error
        raise SegmentError(str(error)) from error


def _topic_matcher(position: int, segments: list[str]) -> TopicMatcher:
    open_ended = bool(segments) and segments[-1] == ANY_REST
    counted = segments[:-1] if open_ended else segments
    where = f"topic {position} invalid"
    if not counted:
        raise FilterError(f"{where}: topic must have at least one segment")
    if len(counted) > MAX_SEGMENTS:
        raise FilterError(f"{where}: topic cannot have more than {MAX_SEGMENTS} segments")
    if ANY_REST in counted:
        raise FilterError(f"{where}: segment {counted.index(ANY_REST) + 1} invalid: wildcard must be '*'")
    return TopicMatcher(tuple(None if text == ANY_ONE else _segment(text) for text in counted), open_ended)


def parse_filters(params: list[FilterParams]) -> tuple[EventFilter, ...]:
    """Check the filters of a request.

    Raises:
        FilterError: a limit or a value is wrong, in the server's own words.
        SegmentError: a topic segment is neither a wildcard nor a base64 ScVal.
    """
    for one in params:  # segments are read with the parameters, before any limit is looked at
        for topic in one.topics or ():
            for text in topic or ():
                if text not in (ANY_ONE, ANY_REST):
                    _segment(text)
    if len(params) > MAX_FILTERS:
        raise FilterError(f"maximum {MAX_FILTERS} filters per request")
    return tuple(_parse_filter(i + 1, one) for i, one in enumerate(params))


def _parse_filter(position: int, params: FilterParams) -> EventFilter:
    where = f"filter {position} invalid"
    types = frozenset(params.type.split(",")) if params.type else frozenset()
    contracts = params.contractIds or []
    topics = params.topics or []
    if not types <= {"contract", "system"}:
        raise FilterError(f"{where}: filter type invalid: if set, type must be either 'system' or 'contract'")
    if len(contracts) > MAX_CONTRACT_IDS:
        raise FilterError(f"{where}: maximum {MAX_CONTRACT_IDS} contract IDs per filter")
    if len(topics) > MAX_TOPIC_FILTERS:
        raise FilterError(f"{where}: maximum {MAX_TOPIC_FILTERS} topics per filter")
    for i, contract in enumerate(contracts):
        if not StrKey.is_valid_contract(contract):
            raise FilterError(f"{where}: contract ID {i + 1} invalid")
    try:
        matchers = tuple(_topic_matcher(i + 1, topic or []) for i, topic in enumerate(topics))
    except FilterError as error:
        raise FilterError(f"{where}: {error}") from None
    return EventFilter(types, frozenset(contracts), matchers)


def select(filters: tuple[EventFilter, ...], events: LedgerEvents, *, after: int, limit: int) -> list[int]:
    """The indexes of the first `limit` events of a ledger that stand behind position `after` and pass the filters.

    A ledger whose events all come from one contract is taken whole when some filter asks for nothing but that contract.
    """
    start = 0 if after < 0 else bisect_right(events.positions, after)
    if _takes_all(filters, events.sole_contract):
        return list(range(start, min(len(events.positions), start + limit)))
    chosen: list[int] = []
    for i in range(start, len(events.positions)):
        kind, contract, topics = events.types[i], events.contracts[i], events.topics[i]
        if any(one.matches(kind, contract, topics) for one in filters):
            chosen.append(i)
            if len(chosen) == limit:
                break
    return chosen


def _takes_all(filters: tuple[EventFilter, ...], sole_contract: str | None) -> bool:
    if not filters:
        return True
    return sole_contract is not None and any(
        not one.topics
        and (not one.types or "contract" in one.types)
        and (not one.contracts or sole_contract in one.contracts)
        for one in filters
    )
