"""The sender: one attempt to deliver one message to one URL, whatever is at the other end.

A URL's form is checked and its name resolved at each attempt. If any of the addresses is one that webhooks may not
reach, nothing is sent to any of them; else the connection is made to one that was checked, while Host and the
certificate follow the name. So a name that changes its answer in between gains nothing.

An attempt has 15 seconds for everything. It has got through when a complete answer with a 2xx status came within them;
of an answer longer than 64 KiB the beginning is enough. Redirects are answers like any other: none is followed. Where
a connection that was kept turns out dead, the message is sent once more on a fresh one, in the same attempt.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from uuid import uuid4

import msgspec
import trio

from fluxora import __version__, tracing
from fluxora.actors.http_client import Deadlines, Exchange, ExchangeFailed, Fault, HttpClient, HttpReply, Target
from fluxora.actors.resolver import Address, NameUnresolved, Resolver
from fluxora.config import WebhookConfig
from fluxora.protocol import signing
from fluxora.protocol.messages import LogEvent, encode_event
from fluxora.protocol.retries import RETRY_AFTER_STATUSES, retry_after_ms
from fluxora.protocol.signing import Secret
from fluxora.protocol.targets import Network, TargetRefused, WebhookUrl, check_url, judge
from fluxora.storage.webhook_records import DeliveryTarget

ATTEMPT_S = 15.0
CONNECT_S = 5.0
WRITE_S = 10.0
MAX_RESPONSE_BYTES = 64 * 1024
SHOWN_BYTES = 1024
ADDRESSES_TRIED = 3
TEST_EVENT = "webhook.test"
_MAX_ERROR = 300


class Message(msgspec.Struct, frozen=True):
    """A signed delivery: it is good for one attempt, since the signature holds the time of it."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


class Sent(msgspec.Struct, frozen=True):
    """What became of an attempt.

    `status` is that of the answer, None where none came. `error` says why there is no complete answer, None where there
    is one. `response` is the beginning of the answer's body, as text. `retry_after_ms` is what a 429 or 503 asks for.
    `hopeless`: no attempt was made, and none ever can be.
    """

    status: int | None
    error: str | None
    latency_ms: int
    response: str = ""
    retry_after_ms: int | None = None
    hopeless: bool = False

    @property
    def delivered(self) -> bool:
        """True where the consumer has taken it."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


def sign(delivery_id: str, event: LogEvent, secrets: Sequence[Secret], *, now_s: int) -> Message:
    """The message that delivers `event` at `now_s` (Unix seconds). `secrets`: the active ones, the current first."""
    body = encode_event(event)
    headers = signing.headers(delivery_id, now_s, event.event, body, secrets)
    return Message((("content-type", "application/json"), *headers), body)


class WebhookSender:
    """Sends to any number of consumers; connections are kept for the next message to the same one.

    `tls` replaces the default context (the system's trust store), `resolver` the system's, `attempt_s` the time that an
    attempt has.
    """

    def __init__(
        self,
        config: WebhookConfig,
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
        attempt_s: float = ATTEMPT_S,
    ) -> None:
        self._allowed = config.allowed_networks
        self._attempt_s = attempt_s
        self._resolver = resolver or Resolver()
        self._client = HttpClient(
            deadlines=Deadlines(
                connect_s=min(CONNECT_S, attempt_s),
                write_s=min(WRITE_S, attempt_s),
                first_byte_s=attempt_s,
                total_s=attempt_s,
            ),
            max_body_bytes=MAX_RESPONSE_BYTES,
            overlong="cut",
            max_idle=config.concurrency,
            tls=tls,
            user_agent=f"Fluxora-Webhooks/{__version__}",
        )

    def close(self) -> None:
        """Close the connections that are kept; the sender stays usable."""
        self._client.close()

    async def test(self, target: DeliveryTarget, span: tracing.Span = tracing.NOTHING) -> Sent:
        """Send an event of the name `webhook.test` that stands for nothing, signed like any other."""
        return await self.send(target.url, _trial(target.secrets), span)

    async def send(self, url: str, message: Message, span: tracing.Span = tracing.NOTHING) -> Sent:
        """Make one attempt. Whatever goes wrong is told, not raised.

        `span` is told what became of it, and the consumer is told of `span`, so that it can go on with the trace.
        """
        size = len(message.body)
        if size > signing.MAX_BODY_BYTES:
            span.fail("body_too_large")
            told = f"its body has {size:,} bytes, more than the {signing.MAX_BODY_BYTES:,} that receivers take"
            return Sent(None, f"{told}; the event can be read by REST", 0, hopeless=True)
        if span.traceparent:
            message = msgspec.structs.replace(message, headers=(*message.headers, ("traceparent", span.traceparent)))
        attempt = _Attempt(self._client, self._resolver, message)
        began = trio.current_time()
        reply: HttpReply | None = None
        error: str | None = None
        with trio.move_on_after(self._attempt_s) as scope:
            try:
                checked = check_url(url, self._allowed)
                span.note({"server.address": checked.host, "server.port": checked.port})
                reply = await attempt.run(checked, self._allowed)
            except (TargetRefused, NameUnresolved, ExchangeFailed) as failure:
                error = str(failure)
                span.fail(tracing.kind_of(failure))
        if scope.cancelled_caught:
            error = f"no complete answer within {self._attempt_s:g} s"
            span.fail("timeout")
        if attempt.status is not None:
            span.note({"http.response.status_code": attempt.status})
            if error is None and not 200 <= attempt.status < 300:
                span.fail(str(attempt.status))
        latency_ms = round((trio.current_time() - began) * 1000)
        if reply is None:
            return Sent(attempt.status, _shown(error or ""), latency_ms)
        return Sent(reply.status, None, latency_ms, _shown_body(reply.body), _asked_to_wait(reply))


def _trial(secrets: Sequence[Secret]) -> Message:
    """A message like any other, with an id that was never used and an event that stands for nothing."""
    number, now_ms = uuid4().hex, time.time_ns() // 1_000_000
    payload = b'{"change":{},"note":"A test of this endpoint; nothing has happened."}'
    event = LogEvent(0, f"test-{number}", TEST_EVENT, "tested", None, None, None, None, now_ms, payload)
    return sign(f"msg_test_{number}", event, secrets, now_s=now_ms // 1000)


class _Attempt:
    """One attempt; `status` is that of an answer whose head came, even if the rest did not."""

    def __init__(self, client: HttpClient, resolver: Resolver, message: Message) -> None:
        self._client = client
        self._resolver = resolver
        self._message = message
        self._exchange: Exchange | None = None

    @property
    def status(self) -> int | None:
        return None if self._exchange is None else self._exchange.status

    async def run(self, url: WebhookUrl, allowed: Sequence[Network]) -> HttpReply:
        """Resolve, judge, connect, send, read.

        Raises:
            TargetRefused: one of its addresses may not be sent to.
            NameUnresolved: its name has no address now.
            ExchangeFailed: no complete answer came.
        """
        addresses = [url.literal] if url.literal is not None else await self._resolver.addresses(url.host)
        for address in addresses:
            judge(address, allowed, scheme=url.scheme)
        exchange = self._exchange = await self._begin(url, addresses[:ADDRESSES_TRIED])
        return await exchange.reply()

    async def _begin(self, url: WebhookUrl, addresses: Sequence[Address]) -> Exchange:
        """Send the request to the first of `addresses` that can be connected to."""
        failure: ExchangeFailed | None = None
        for address in addresses:
            target = Target(url.scheme, url.host, url.port, url.path, address=str(address))
            try:
                return await self._client.begin("POST", target, headers=self._message.headers, body=self._message.body)
            except ExchangeFailed as error:
                failure = error
                if error.fault not in {Fault.UNREACHABLE, Fault.TIMEOUT}:
                    break
        assert failure is not None, "there is at least one address"
        raise failure


def _asked_to_wait(reply: HttpReply) -> int | None:
    header = reply.header("retry-after") if reply.status in RETRY_AFTER_STATUSES else None
    return None if header is None else retry_after_ms(header, time.time_ns() // 1_000_000)


def _shown(text: str) -> str:
    """`text` as the database can keep it, and within bounds."""
    return text.replace("\0", "\ufffd")[:_MAX_ERROR]


def _shown_body(body: bytes) -> str:
    """The first bytes of an answer, whatever they are, as text."""
    return body[:SHOWN_BYTES].decode("utf-8", errors="replace").replace("\0", "\ufffd")
