"""JSON-RPC 2.0 over HTTP, as Stellar RPC and what stands in front of it really speak it.

The HTTP status is looked at before the body, so a 429 with an HTML page is a 429. What is not a JSON-RPC answer is a
classified failure and never an exception of the parser; no request is retried here.
"""

from __future__ import annotations

import time
from typing import Any, Generic, TypeVar

import msgspec

from fluxora import tracing
from fluxora.actors.http_client import Exchange, ExchangeFailed, HttpClient, HttpReply, Target
from fluxora.actors.sources.call_tally import ABORTED, OK, OUT_OF_RANGE, CallTally
from fluxora.actors.sources.failures import BY_FAULT, Failure, OutOfRange, as_range, parse_range, parse_retry_after
from fluxora.errors import ConfigError, SourceUnavailable

Result = TypeVar("Result")

_JSON_HEADERS = (("Content-Type", "application/json"), ("Accept", "application/json"))
_BY_STATUS = {
    401: Failure.UNAUTHORIZED,
    403: Failure.UNAUTHORIZED,
    429: Failure.THROTTLED,
    503: Failure.OVERLOADED,
    504: Failure.NODE_TIMEOUT,
}
_RANGED = ("getEvents", "getLedgers")  # they ask for ledgers, so they may hear that they are out of range
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last: nested absurdly deep
_LIMIT_WORDS = ("rate limit", "too many requests", "limit exceeded", "quota")
_EXCERPT = 200


class Envelope(msgspec.Struct, Generic[Result], gc=False):
    """A JSON-RPC answer. `error` stays raw, for gateways put anything there."""

    id: int | str | None = None
    result: Result | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class RpcErrorBody(msgspec.Struct):
    """The error member; `data` is a string in some answers and an object in others."""

    code: int = 0
    message: str = ""
    data: Any = None


_encoder = msgspec.json.Encoder()
_any_envelope = msgspec.json.Decoder(Envelope[msgspec.Raw], strict=False)
_error_body = msgspec.json.Decoder(RpcErrorBody, strict=False)


class Call(Generic[Result]):
    """A request on its way to one endpoint. Await `result` once, or `abort`. `span` ends with it."""

    def __init__(
        self,
        exchange: Exchange,
        decoder: msgspec.json.Decoder[Envelope[Result]],
        request_id: int,
        method: str,
        *,
        tally: CallTally,
        span: tracing.Span = tracing.NOTHING,
    ) -> None:
        self._began = time.perf_counter()
        self._tally = tally
        self._exchange = exchange
        self._decoder = decoder
        self._request_id = request_id
        self._method = method
        self._span = span
        self.reply_bytes = 0

    async def result(self) -> Result:
        """Read and check the answer.

        Raises:
            SourceUnavailable: with the class of the failure.
            OutOfRange: the node does not have the ledger asked for.
        """
        outcome = ABORTED
        try:
            with self._span:
                result = await self._result()
            outcome = OK
        except OutOfRange:
            outcome = OUT_OF_RANGE
            raise
        except SourceUnavailable as error:
            outcome = error.failure
            raise
        finally:
            answered = outcome in {OK, OUT_OF_RANGE}
            self._tally.count(self._method, outcome, time.perf_counter() - self._began if answered else None)
        return result

    async def _result(self) -> Result:
        try:
            reply = await self._exchange.reply()
        except ExchangeFailed as error:
            raise SourceUnavailable(BY_FAULT[error.fault], f"{self._method}: {error}") from error
        self._span.note({"http.response.status_code": reply.status})
        self.reply_bytes = len(reply.body)
        if reply.status != 200:
            raise _http_failure(self._method, reply)
        try:
            envelope = self._decoder.decode(reply.body)
        except _UNREADABLE as error:
            # A body that is no answer to the method may still say why, in a form of its own.
            raise _unexpected(self._method, reply, str(error)) from error
        if envelope.error and bytes(envelope.error) != b"null":
            raise rpc_failure(self._method, bytes(envelope.error), reply)
        if envelope.result is None:
            raise _unexpected(self._method, reply, "neither result nor error")
        if envelope.id is not None and str(envelope.id) != str(self._request_id):
            raise SourceUnavailable(Failure.MALFORMED_RESPONSE, f"{self._method}: the answer to another request")
        return envelope.result

    def abort(self) -> None:
        """Give the answer up."""
        self._tally.count(self._method, ABORTED)
        self._exchange.abort()
        self._span.end()


class Endpoint:
    """One RPC URL: sends requests to it, and holds what is known of it. Times are trio's clock; `tally` counts."""

    def __init__(self, url: str, client: HttpClient, tally: CallTally) -> None:
        try:
            self._target = Target.parse(url)
        except ValueError as error:
            raise ConfigError(f"STELLAR_RPC_URL: {error}") from error
        self._client = client
        self._tally = tally
        self._last_id = 0
        self.name = self._target.authority  # neither path nor query: they hold keys
        self._told: tracing.Attributes = {
            "rpc.system.name": "jsonrpc",
            "http.request.method": "POST",
            "server.address": self._target.host,
            "server.port": self._target.port,
        }
        self.ready_at = 0.0  # not to be asked before
        self.avoid_until = 0.0  # others are preferred before
        self.failures_in_a_row = 0
        self.verified = False  # serves our network, as far as known
        self.version: str | None = None

    async def begin(
        self, method: str, params: dict[str, Any] | None, decoder: msgspec.json.Decoder[Envelope[Result]]
    ) -> Call[Result]:
        """Send a request and leave its answer in the socket.

        Raises:
            SourceUnavailable: it could not be sent.
        """
        self._last_id += 1
        request_id = self._last_id  # others may begin while this one is being sent
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id, "method": method}
        if params is not None:
            request["params"] = params
        span = tracing.span(method, kind="client", attributes={"rpc.method": method, **self._told})
        try:
            exchange = await self._sent(method, request)
        except BaseException as error:
            span.end(error)
            raise
        return Call(exchange, decoder, request_id, method, tally=self._tally, span=span)

    async def _sent(self, method: str, request: dict[str, Any]) -> Exchange:
        try:
            return await self._client.begin("POST", self._target, headers=_JSON_HEADERS, body=_encoder.encode(request))
        except ExchangeFailed as error:
            self._tally.count(method, BY_FAULT[error.fault])
            raise SourceUnavailable(BY_FAULT[error.fault], f"{method}: {error}") from error

    async def call(
        self, method: str, params: dict[str, Any] | None, decoder: msgspec.json.Decoder[Envelope[Result]]
    ) -> Result:
        """Send a request and read its answer; raises what `begin` and `Call.result` raise."""
        return await (await self.begin(method, params, decoder)).result()


def rpc_failure(method: str, raw: bytes, reply: HttpReply) -> SourceUnavailable | OutOfRange:
    """Classify the error member of a JSON-RPC answer."""
    try:
        error = _error_body.decode(raw)
    except _UNREADABLE:  # a string, a list, a code of letters
        error = RpcErrorBody(message=_excerpt(raw))
    found = parse_range(error.message) or _range_in_data(error.data)
    if found is not None and method in _RANGED:
        return OutOfRange(*found)
    text = error.message.lower()
    if error.code in (429, -32005) or any(words in text for words in _LIMIT_WORDS):
        failure = Failure.THROTTLED
    elif error.code == -32001:
        failure = Failure.NODE_TIMEOUT
    elif "queue" in text and "surpassed" in text:
        failure = Failure.OVERLOADED
    elif error.code == -32603 and method == "getHealth":
        failure = Failure.NODE_UNHEALTHY
    elif error.code == 0:
        failure = Failure.MALFORMED_RESPONSE
    else:
        failure = Failure.RPC_ERROR
    return SourceUnavailable(
        failure,
        f"{method}: {error.message[:_EXCERPT]} ({error.code})",
        retry_after_s=parse_retry_after(reply.header("retry-after")),
    )


def _http_failure(method: str, reply: HttpReply) -> SourceUnavailable | OutOfRange:
    failure = _BY_STATUS.get(reply.status)
    if failure is None:
        # Some gateways wrap a JSON-RPC error into a status of its own; then the error tells more.
        try:
            envelope = _any_envelope.decode(reply.body)
        except _UNREADABLE:
            envelope = Envelope()
        if bytes(envelope.error) != b"null":
            found = rpc_failure(method, bytes(envelope.error), reply)
            if isinstance(found, OutOfRange) or found.failure != Failure.MALFORMED_RESPONSE:
                return found
        failure = Failure.HTTP_ERROR
    return SourceUnavailable(
        failure, f"{method}: HTTP {reply.status}", retry_after_s=parse_retry_after(reply.header("retry-after"))
    )


def _unexpected(method: str, reply: HttpReply, reason: str) -> SourceUnavailable | OutOfRange:
    try:
        envelope = _any_envelope.decode(reply.body)
    except _UNREADABLE:
        kind = reply.header("content-type") or "no content type"
        return SourceUnavailable(Failure.MALFORMED_RESPONSE, f"{method}: {reason[:_EXCERPT]} ({kind[:60]})")
    if bytes(envelope.error) != b"null":
        return rpc_failure(method, bytes(envelope.error), reply)
    return SourceUnavailable(Failure.MALFORMED_RESPONSE, f"{method}: {reason[:_EXCERPT]}")


def _range_in_data(data: Any) -> tuple[int, int] | None:
    if isinstance(data, dict) and data.get("reason") == "ledger_out_of_range":
        oldest, latest = data.get("oldestLedger"), data.get("latestLedger")
        if isinstance(oldest, int) and isinstance(latest, int):
            return as_range(oldest, latest)
    return None


def _excerpt(raw: bytes) -> str:
    return raw[:_EXCERPT].decode("utf-8", "replace")
