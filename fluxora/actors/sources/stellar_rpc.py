"""Contract events, ledger headers and ledger entries from Stellar RPC endpoints.

It promises that what it hands over is complete and proven as far as one node can prove it, and that every failure has a
name (`failures.Failure`) which /health shows. It never skips a ledger. Retries and the choice of the endpoint are
`Rotation`'s, the rules of paging `EventWalk`'s.
"""

from __future__ import annotations

import random
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Self

import trio

from fluxora.actors.http_client import Deadlines, HttpClient
from fluxora.actors.sources import LedgerEntry, Page, SourceStatus, Tip
from fluxora.actors.sources import rpc_replies as replies
from fluxora.actors.sources.event_walk import CONTRACTS_PER_FILTER, FILTERS, EventWalk
from fluxora.actors.sources.failures import Failure, HistoryPruned, NodeRange, OutOfRange, WrongNetwork
from fluxora.actors.sources.failures import out_of_range as classify_range
from fluxora.actors.sources.jsonrpc import Call, Endpoint
from fluxora.actors.sources.ledger_keys import read_entry, stream_key
from fluxora.actors.sources.merge import merge
from fluxora.actors.sources.rotation import RetryPolicy, Rotation
from fluxora.config import SourceConfig
from fluxora.errors import ConfigError, DecodeError, SourceUnavailable
from fluxora.protocol.chain import LedgerHeader, parse_header
from fluxora.protocol.contract import ContractEvent, decode_xdr

EVENTS_PER_PAGE = 1_000  # of what is handed over; decoding that many takes about as long as recording them
_EVENTS_PER_SLICE = 100  # decoded between two chances for other tasks: about a millisecond
_KEYS_PER_CALL = 200
_MAX_HEADERS = 200
_ARCHIVE_HEADERS = 20  # the limit of nodes that serve from an archive
_FIRST_HEADERS = 8
_HEADER_BYTES = 16 * 1024 * 1024  # wanted size of a getLedgers answer: a mainnet ledger is 1.65 MB
_FLOOR_MARGIN = 3  # ledgers above the oldest within which a trim may race a query
_PROPAGATION_LEDGERS = 2  # a node that is so little behind the others is not behind
_MIN_VERSION = (27, 1, 1)
_LIMIT = re.compile(r"limit must not exceed (\d{1,9})", re.ASCII)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)


class StellarRpcSource:
    """A `Source` over one or several Stellar RPC endpoints of one network.

    `policy` bounds the retries inside one call; `jitter` returns a number in [0, 1). Calls may run concurrently.
    """

    def __init__(
        self,
        config: SourceConfig,
        contracts: Sequence[str],
        *,
        policy: RetryPolicy | None = None,
        jitter: Callable[[], float] = random.random,
        max_reply_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if not config.rpc_urls:
            raise ConfigError("STELLAR_RPC_URL: at least one endpoint is needed")
        if not contracts:
            raise ConfigError("FLUXORA_CONTRACTS: at least one contract is needed")
        timeout_s = config.request_timeout_s
        self._client = HttpClient(
            deadlines=Deadlines(min(5.0, timeout_s), min(10.0, timeout_s), timeout_s, 2 * timeout_s),
            max_body_bytes=max_reply_bytes,
        )
        self._config = config
        group = CONTRACTS_PER_FILTER * FILTERS
        self._groups = [tuple(contracts[index : index + group]) for index in range(0, len(contracts), group)]
        status = SourceStatus()
        self._rotation = Rotation(
            [Endpoint(url, self._client, status.calls) for url in config.rpc_urls],
            self._verify,
            policy=policy or RetryPolicy(),
            jitter=jitter,
            status=status,
        )
        self._headers_per_call = _FIRST_HEADERS
        self._max_headers = _MAX_HEADERS

    @property
    def status(self) -> SourceStatus:
        """How the endpoints are doing; always up to date."""
        return self._rotation.status

    @classmethod
    @asynccontextmanager
    async def open(cls, config: SourceConfig, contracts: Sequence[str]) -> AsyncIterator[Self]:
        """Make a source whose connections are closed at the end of the block. Nothing is asked yet."""
        source = cls(config, contracts)
        try:
            yield source
        finally:
            source.close()

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    # ------------------------------------------------------------------------------------------------------- the tip

    async def tip(self) -> Tip:
        """Return what the endpoint in use has; one that is behind the others is rotated away from.

        Where every endpoint is behind what was reported before, the best of them is returned and `status` says
        "node_behind" or "network_reset": only stored hashes can tell whether history began anew.

        Raises:
            SourceUnavailable: no endpoint answers, or only unhealthy ones ("node_unhealthy").
            ChainDiverged: every endpoint serves another network.
        """
        best: list[Tip] = []
        try:
            return await self._rotation.run("tip", partial(self._ask_tip, best))
        except NodeRange as error:
            tip = max(best, key=lambda tip: tip.latest)
            if error.meaning == "reset":
                self._rotation.forget_heights(tip.latest)
            return tip

    async def _ask_tip(self, best: list[Tip], endpoint: Endpoint) -> Tip:
        health = await endpoint.call("getHealth", None, replies.HEALTH)
        if health.status != "healthy":
            raise SourceUnavailable(Failure.NODE_UNHEALTHY, f"getHealth: {health.status[:80]}")
        closed_at = health.latest_ledger_close_time
        tip = Tip(health.latest_ledger, health.oldest_ledger, None if closed_at is None else int(closed_at))
        best.append(tip)
        highest = self._rotation.highest
        self._rotation.note_latest(tip.latest)
        behind = highest - tip.latest
        if behind > _PROPAGATION_LEDGERS and self._rotation.highest == highest:
            raise classify_range(highest, tip.oldest, tip.latest, highest=highest)
        return tip

    # ------------------------------------------------------------------------------------------------------- headers

    async def headers(self, first: int, last: int) -> list[LedgerHeader]:
        """Return the headers of `first`..`last` that the node has: each hashes to its hash, neighbours are linked.

        Raises:
            SourceUnavailable: no endpoint answers, or a header is not proven ("unproven_header").
            ChainDiverged: every endpoint serves another network.
        """
        headers: list[LedgerHeader] = []
        start = first
        while start <= last:
            found, oldest, latest = await self._rotation.run("headers", partial(self._ask_headers, start, last))
            if not found:
                if oldest <= start:
                    break  # above the node's latest
                start = oldest
                continue
            if headers and headers[-1].sequence + 1 == found[0].sequence and headers[-1].hash != found[0].previous_hash:
                # History changed between two pages; what came before is of a branch that is gone.
                raise SourceUnavailable(
                    Failure.UNPROVEN_HEADER, f"ledger {found[0].sequence} does not follow the one read before it"
                )
            headers += found
            start = found[-1].sequence + 1
            if start > latest:
                break
        return headers

    async def _ask_headers(self, start: int, last: int, endpoint: Endpoint) -> tuple[list[LedgerHeader], int, int]:
        """One page of headers from `start`, and the node's oldest and latest ledger."""
        limit = min(self._headers_per_call, self._max_headers, last - start + 1)
        params = {"startLedger": start, "pagination": {"limit": limit}}
        call = await endpoint.begin("getLedgers", params, replies.LEDGERS)
        try:
            reply = await call.result()
        except OutOfRange as range_:
            return [], range_.oldest, range_.latest
        except SourceUnavailable as error:
            if error.failure == Failure.RPC_ERROR and limit > _ARCHIVE_HEADERS:
                self._max_headers = _ARCHIVE_HEADERS
                return await self._ask_headers(start, last, endpoint)
            if error.failure == Failure.RESPONSE_TOO_LARGE and limit > 1:
                self._headers_per_call = limit // 2
                return await self._ask_headers(start, last, endpoint)
            raise
        ledgers = [ledger for ledger in reply.ledgers if start <= ledger.sequence <= last]
        if reply.ledgers:
            per_ledger = call.reply_bytes // len(reply.ledgers) + 1
            self._headers_per_call = max(1, min(_MAX_HEADERS, _HEADER_BYTES // per_ledger))
        try:
            headers = [
                parse_header(
                    ledger.header_xdr,
                    hash_hex=ledger.hash,
                    sequence=ledger.sequence,
                    closed_at=int(ledger.ledger_close_time),
                )
                for ledger in ledgers
            ]
        except DecodeError as error:
            raise SourceUnavailable(Failure.UNPROVEN_HEADER, str(error)) from error
        for parent, child in pairwise(headers):
            if child.sequence <= parent.sequence:
                raise SourceUnavailable(Failure.MALFORMED_RESPONSE, "getLedgers: sequences do not ascend")
            if child.sequence == parent.sequence + 1 and child.previous_hash != parent.hash:
                raise SourceUnavailable(Failure.UNPROVEN_HEADER, f"ledger {child.sequence} does not link to its parent")
        return headers, start, reply.latest_ledger

    # -------------------------------------------------------------------------------------------------------- events

    def events(self, first: int, last: int) -> AsyncGenerator[Page, None]:
        """Yield every event of `first`..`last` once, in order, in pages of at most 1,000.

        More contracts than one request can name are walked in groups side by side. The next request of a walk is sent
        before the events of an answer are decoded and handed over, so the node works on it meanwhile. Closing the
        generator drops that request.

        Raises:
            HistoryLost: the node has pruned a ledger of the range ("history_pruned"); a `HistoryPruned`.
            SourceUnavailable: no endpoint has the range now; a `NodeRange` where it is not within what a node has.
            ChainDiverged: every endpoint serves another network.
        """
        if len(self._groups) == 1:
            return self._walk(self._groups[0], first, last)
        return merge([self._walk(group, first, last) for group in self._groups], first)

    async def _walk(self, contracts: Sequence[str], first: int, last: int) -> AsyncGenerator[Page, None]:
        """Walk the events of contracts that one request can name."""
        walk = EventWalk(contracts, first, last, self._config.page_limit)
        ahead = _Ahead()
        clock = replies.CloseTimes()
        try:
            while not walk.finished:
                done = walk.complete_through
                fresh = await self._rotation.run("events", partial(self._ask_events, walk, ahead, clock))
                if not walk.finished:
                    await ahead.send(walk)
                for start in range(0, len(fresh), EVENTS_PER_PAGE):
                    part = fresh[start : start + EVENTS_PER_PAGE]
                    events = await _decode(part, clock)
                    rest = fresh[start + EVENTS_PER_PAGE : start + EVENTS_PER_PAGE + 1]
                    through = max(done, rest[0].ledger - 1) if rest else walk.complete_through
                    yield Page(events, through)
                if not fresh and walk.complete_through > done:
                    yield Page((), walk.complete_through)
        finally:
            ahead.drop()

    async def _ask_events(
        self, walk: EventWalk, ahead: _Ahead, clock: replies.CloseTimes, endpoint: Endpoint
    ) -> list[replies.RpcEvent]:
        ledger = walk.next_ledger
        call = ahead.take(endpoint)
        try:
            if call is None:
                call = await endpoint.begin("getEvents", walk.request(), replies.EVENTS)
            reply = await call.result()
        except OutOfRange as range_:
            raise classify_range(ledger, range_.oldest, range_.latest, highest=self._rotation.highest) from range_
        except SourceUnavailable as error:
            if walk.shrink(_smaller_page(error, walk.limit)):
                return await self._ask_events(walk, ahead, clock, endpoint)
            raise
        self._rotation.note_latest(reply.latest_ledger)
        if ledger < reply.oldest_ledger + _FLOOR_MARGIN:
            await self._check_floor(endpoint, ledger)
        for event in reply.events:
            clock.seconds(event.ledger_closed_at)  # raises before the walk moves
        fresh = walk.absorb(reply)
        ahead.endpoint = endpoint
        return fresh

    async def _check_floor(self, endpoint: Endpoint, ledger: int) -> None:
        """Make sure that the node still has `ledger` after the query: its range check and its query are two reads.

        A trim between them would leave that ledger's events out without a word.
        """
        try:
            health = await endpoint.call("getHealth", None, replies.HEALTH)
        except SourceUnavailable as error:
            if error.failure != Failure.NODE_UNHEALTHY:
                raise
            return  # it has closed no ledger for a while, so it has trimmed none
        if health.oldest_ledger > ledger:
            raise HistoryPruned(ledger, health.oldest_ledger, health.latest_ledger)

    # ------------------------------------------------------------------------------------------------ ledger entries

    async def entries(self, keys: Sequence[tuple[str, int]]) -> tuple[list[LedgerEntry], int]:
        """Read the stream entries of (contract id, stream id); missing ones are closed, archived or never existed.

        Returns the found ones, and the ledger as of which the (most backward) answer was given; 0 for no keys.

        Raises:
            SourceUnavailable: no endpoint answers, or an entry cannot be read ("malformed_response").
            DecodeError: a contract id is not one.
        """
        wanted = {stream_key(*key): key for key in keys}
        asked = list(wanted)
        found: list[LedgerEntry] = []
        as_of: list[int] = []
        for start in range(0, len(asked), _KEYS_PER_CALL):
            part = {key: wanted[key] for key in asked[start : start + _KEYS_PER_CALL]}
            entries, latest = await self._rotation.run("entries", partial(self._ask_entries, part))
            found += entries
            as_of.append(latest)
        return found, min(as_of, default=0)

    async def _ask_entries(
        self, wanted: dict[bytes, tuple[str, int]], endpoint: Endpoint
    ) -> tuple[list[LedgerEntry], int]:
        keys = [b64encode(key).decode("ascii") for key in wanted]
        reply = await endpoint.call("getLedgerEntries", {"keys": keys}, replies.ENTRIES)
        found = []
        for entry in reply.entries or ():
            try:
                # The entry itself says whose it is; the key beside it is the node's word only.
                key, fields = read_entry(entry.xdr)
                contract_id, stream_id = wanted[key]
            except (DecodeError, KeyError) as error:
                reason = str(error) if isinstance(error, DecodeError) else "an entry that was not asked for"
                raise SourceUnavailable(Failure.MALFORMED_RESPONSE, f"getLedgerEntries: {reason}") from error
            found.append(LedgerEntry(contract_id, stream_id, fields, entry.last_modified_ledger_seq))
        return found, reply.latest_ledger

    # -------------------------------------------------------------------------------------------- entering a node

    async def _verify(self, endpoint: Endpoint) -> None:
        network = await endpoint.call("getNetwork", None, replies.NETWORK)
        if network.passphrase != self._config.network_passphrase:
            raise WrongNetwork(self._config.network_passphrase, network.passphrase)
        try:
            version = (await endpoint.call("getVersionInfo", None, replies.VERSION)).version
        except SourceUnavailable as error:
            if error.failure != Failure.RPC_ERROR:
                raise
            version = ""  # a provider that hides the method
        numbers = _VERSION.search(version)
        if numbers and tuple(map(int, numbers.groups())) < _MIN_VERSION and endpoint.version != version:
            self._rotation.warn(Failure.OLD_NODE, endpoint, f"version {version[:40]} can lose events; 27.1.1 is needed")
        endpoint.version = version[:40]


def _smaller_page(error: SourceUnavailable, limit: int) -> int:
    """The number of events that a node might give instead, after it refused or overdid `limit`; 0 for none."""
    if error.failure == Failure.RESPONSE_TOO_LARGE:
        return limit // 2
    stated = _LIMIT.search(str(error)) if error.failure == Failure.RPC_ERROR else None
    return int(stated[1]) if stated else 0


class _Ahead:
    """At most one getEvents request that has been sent before its answer is wanted."""

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self._call: Call[replies.EventsReply] | None = None

    async def send(self, walk: EventWalk) -> None:
        assert self.endpoint is not None
        try:
            self._call = await self.endpoint.begin("getEvents", walk.request(), replies.EVENTS)
        except SourceUnavailable:
            self._call = None  # asked again, and classified, when the answer is wanted

    def take(self, endpoint: Endpoint) -> Call[replies.EventsReply] | None:
        """Return the call if it went to `endpoint`; drop it if it went elsewhere."""
        if endpoint is not self.endpoint:
            self.drop()
        call, self._call = self._call, None
        return call

    def drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.abort()


async def _decode(part: Sequence[replies.RpcEvent], clock: replies.CloseTimes) -> tuple[ContractEvent, ...]:
    events: list[ContractEvent] = []
    for index, event in enumerate(part, 1):
        events.append(
            decode_xdr(
                id=event.id,
                ledger=event.ledger,
                closed_at=clock.seconds(event.ledger_closed_at),
                contract_id=event.contract_id,
                tx_hash=event.tx_hash,
                topics=event.topic or (),
                value=event.value,
            )
        )
        if index % _EVENTS_PER_SLICE == 0:
            await trio.lowlevel.checkpoint()
    return tuple(events)
