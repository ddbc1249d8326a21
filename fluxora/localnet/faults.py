"""Faults on demand for one endpoint: what a node says wrongly of the chain, and what it answers instead of an answer.

Standing faults hold until changed: `lag`, `prune_before`, `passphrase`, `gaps`. Scripted answers are used up in the
order they were added, `times` requests each (0: until cleared), optionally only by certain methods. Nothing here
touches the chain; forks and resets concern every endpoint alike and are orders to the network.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fluxora.localnet.chain import Chain, Entry, Ledger


class Misbehaviour(msgspec.Struct, kw_only=True):
    """What happens to one request instead of, or on the way to, its answer. Fields combine: slow and then 503."""

    status: int | None = None  # an HTTP status in place of the answer
    retry_after: float | None = None  # its Retry-After header, in seconds
    html: bool = False  # its body is HTML as load balancers write it, instead of JSON (429) or nothing
    body: str | None = None  # its body, verbatim
    slow_s: float = 0.0  # the answer comes this much later
    truncate_body: bool = False  # Content-Length promises all, half of it comes, the connection closes
    drop_connection: bool = False  # the connection closes without a byte
    duplicate_pages: bool = False  # getEvents serves the previous page once more
    jsonrpc_error: dict[str, object] | None = None  # this object as the JSON-RPC `error`
    methods: tuple[str, ...] = ()  # only for these methods; empty: all
    times: int = 1  # how many requests it hits; 0: until cleared


class FaultOrder(Misbehaviour, forbid_unknown_fields=True, kw_only=True):
    """The JSON of POST /faults: a misbehaviour, standing faults, or an order to the network, all in one object."""

    lag: int | None = None
    prune_before: int | None = None
    wrong_passphrase: str | None = None
    gap: tuple[int, int] | None = None
    fork: int | None = None
    repeat: bool = False
    regrow: bool = True
    reset: bool = False
    clear: bool = False

    def misbehaves(self) -> bool:
        """Whether it describes an answer, beyond standing faults and orders."""
        return bool(
            self.status
            or self.slow_s
            or self.truncate_body
            or self.drop_connection
            or self.duplicate_pages
            or self.jsonrpc_error
        )


class Faults:
    """The faults of one endpoint."""

    def __init__(self) -> None:
        self.lag = 0  # ledgers behind the chain
        self.prune_before: int | None = None  # ledgers below it are gone from this node
        self.passphrase: str | None = None  # what getNetwork says instead
        self.gaps: list[tuple[int, int]] = []  # ledgers (inclusive) whose events and headers this node misses
        self._script: list[Misbehaviour] = []

    def add(self, misbehaviour: Misbehaviour) -> None:
        """Append to the script."""
        self._script.append(misbehaviour)

    def status(
        self,
        status: int,
        *,
        times: int = 1,
        retry_after: float | None = None,
        html: bool = False,
        body: str | None = None,
        methods: Iterable[str] = (),
    ) -> None:
        """Answer with an HTTP status: 429 with a JSON or HTML body, others with an empty or HTML one."""
        self.add(
            Misbehaviour(
                status=status, retry_after=retry_after, html=html, body=body, times=times, methods=tuple(methods)
            )
        )

    def jsonrpc_error(
        self, code: int, message: str, *, data: object = None, times: int = 1, methods: Iterable[str] = ()
    ) -> None:
        """Answer with a JSON-RPC error; `data` may be an object, as newer servers send it."""
        error: dict[str, object] = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        self.add(Misbehaviour(jsonrpc_error=error, times=times, methods=tuple(methods)))

    def slow(self, seconds: float, *, times: int = 1, methods: Iterable[str] = ()) -> None:
        """Answer that much later."""
        self.add(Misbehaviour(slow_s=seconds, times=times, methods=tuple(methods)))

    def truncate_body(self, *, times: int = 1, methods: Iterable[str] = ()) -> None:
        """Send half of the promised body and close."""
        self.add(Misbehaviour(truncate_body=True, times=times, methods=tuple(methods)))

    def drop_connection(self, *, times: int = 1, methods: Iterable[str] = ()) -> None:
        """Close without an answer."""
        self.add(Misbehaviour(drop_connection=True, times=times, methods=tuple(methods)))

    def duplicate_pages(self, *, times: int = 1) -> None:
        """Serve the previous page of getEvents once more, with its cursor."""
        self.add(Misbehaviour(duplicate_pages=True, times=times, methods=("getEvents",)))

    def gap(self, first: int, last: int) -> None:
        """Miss the events and headers of [first, last]."""
        self.gaps.append((first, last))

    def clear(self) -> None:
        """Behave from now on."""
        self.lag, self.prune_before, self.passphrase = 0, None, None
        self.gaps.clear()
        self._script.clear()

    def take(self, method: str) -> Misbehaviour | None:
        """The misbehaviour that hits this request, used up by it."""
        for i, one in enumerate(self._script):
            if one.methods and method not in one.methods:
                continue
            if one.times == 1:
                del self._script[i]
            elif one.times > 1:
                one.times -= 1
            return one
        return None

    def obey(self, order: FaultOrder) -> None:
        """Apply what an order asks of this endpoint; forks and resets are the network's to do."""
        if order.clear:
            self.clear()
        if order.lag is not None:
            self.lag = order.lag
        if order.prune_before is not None:
            self.prune_before = order.prune_before
        if order.wrong_passphrase is not None:
            self.passphrase = order.wrong_passphrase
        if order.gap is not None:
            self.gap(*order.gap)
        if order.misbehaves():
            fields = {name: getattr(order, name) for name in Misbehaviour.__struct_fields__}
            self.add(Misbehaviour(**fields))

    def describe(self) -> dict[str, object]:
        """What is wrong with this endpoint now, for GET /faults."""
        return {
            "lag": self.lag,
            "prune_before": self.prune_before,
            "wrong_passphrase": self.passphrase,
            "gaps": self.gaps,
            "script": self._script,
        }

    def misses(self, sequence: int) -> bool:
        """Whether the ledger lies in a gap."""
        return any(first <= sequence <= last for first, last in self.gaps)


class FaultyView:
    """What an endpoint with these faults shows of the chain."""

    def __init__(self, chain: Chain, faults: Faults) -> None:
        self._chain = chain
        self._faults = faults

    @property
    def passphrase(self) -> str:
        """The chain's, or the wrong one."""
        return self._chain.passphrase if self._faults.passphrase is None else self._faults.passphrase

    @property
    def retention(self) -> int:
        """The chain's retention; without one, the default of stellar-rpc (7 days)."""
        return self._chain.retention or 120_960

    def bounds(self) -> tuple[Ledger, Ledger]:
        """The oldest and the latest ledger of this node; it always has at least one."""
        oldest, latest = self._chain.oldest.sequence, self._chain.latest.sequence
        if self._faults.prune_before is not None:
            oldest = min(max(oldest, self._faults.prune_before), latest)
        latest = max(latest - self._faults.lag, oldest)
        return self._require(oldest), self._require(latest)

    def ledgers(self, first: int, last: int) -> list[Ledger]:
        """The ledgers of [first, last] that are neither pruned, nor too new for this node, nor in a gap."""
        oldest, latest = self.bounds()
        found = self._chain.ledgers(max(first, oldest.sequence), min(last, latest.sequence))
        if not self._faults.gaps:
            return list(found)
        return [ledger for ledger in found if not self._faults.misses(ledger.sequence)]

    def entry(self, key: str) -> Entry | None:
        """The entry as of this node's latest ledger: a lagging node's answer is stale."""
        return self._chain.entry(key, at=self.bounds()[1].sequence)

    def _require(self, sequence: int) -> Ledger:
        ledger = self._chain.ledger(sequence)
        assert ledger is not None  # bounds stay inside the chain
        return ledger
