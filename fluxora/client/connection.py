"""Following the log over real connections: each one as `Following` wants it, one after the other until it cannot go on.

A connection that is dead looks like one on which nothing happens, so it is asked for a pong every `PING_EVERY_S`.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn
from urllib.parse import urlsplit

import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from fluxora.client.following import MOST_SAID, SUBPROTOCOL, Backoff, Following, Update, after_close
from fluxora.errors import FollowError, FollowRefused, FollowReset
from fluxora.protocol.close_codes import Reconnect

CONNECT_S = 10.0  # for the connection, TLS and the handshake
PING_EVERY_S = 30.0
PONG_S = 30.0
CLOSE_S = 0.25  # the frame goes out at once; where this side is cancelled, so is whoever would read the answer
MOST_MESSAGE = 1 << 24  # characters; an event of the contract has a few thousand
Headers = Sequence[tuple[str, str]]
_NEEDS_CREDENTIAL = "It needs a credential that is valid: an API key or a token"
_REFUSALS = {401: _NEEDS_CREDENTIAL, 403: "The credential does not allow it, or nobody may connect from here"}
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Ended(NamedTuple):
    """How a connection ended, and what then; `asked_s` is the pause that the server asks for."""

    why: str
    then: Reconnect
    asked_s: float = 0.0


async def follow(
    url: str,
    following: Following,
    *,
    headers: Headers,
    tell: trio.MemorySendChannel[Update],
    say: Callable[[str], None],
) -> NoReturn:
    """Send every event to `tell`, once, and say how the connection fares, until cancelled.

    `url` is that of the WebSocket (ws:// or wss://), `headers` go with each handshake.

    Raises:
        FollowRefused: the server does not let this client follow, or does not let it any more.
        FollowReset: what was missed cannot be told whole.
    """
    backoff = Backoff()
    while True:
        began = following.after
        following.connected()
        ended = await _connection(url, following, headers, tell, say)
        if following.live or following.after != began:
            backoff.reset()
        if ended.then == "from_rest":
            raise FollowReset(ended.why, after=following.after)
        if ended.then == "with_new_token":
            raise FollowRefused(f"{ended.why}. A new token is needed")
        if ended.then == "no":
            raise FollowRefused(ended.why)
        delay_s = backoff.delay_s(ended.then, random.random(), asked_s=ended.asked_s)  # noqa: S311 (a jitter)
        say(f"{ended.why}; connecting again in {delay_s:.1f} s")
        await trio.sleep(delay_s)


async def _connection(
    url: str,
    following: Following,
    headers: Headers,
    tell: trio.MemorySendChannel[Update],
    say: Callable[[str], None],
) -> _Ended:
    """One connection from its beginning to its end.

    Raises:
        FollowRefused, FollowReset: as `follow`.
    """
    ended = _Ended("The connection broke", "resume")
    failure: BaseException | None = None
    transport: trio.abc.AsyncResource | None = None
    try:
        with trio.fail_after(CONNECT_S):
            transport = stream = await _transport(url)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(CONNECT_S):
                websocket = await _handshake(nursery, stream, url, headers)
            nursery.start_soon(_keep_alive, websocket, stream)
            try:
                await _converse(websocket, following, tell, say)
            except ConnectionClosed as closed:
                ended = _after(closed)
            finally:
                await _part(websocket)
            nursery.cancel_scope.cancel(reason="the connection has ended")
    except* (ConnectionRejected, FollowError) as group:
        failure = _first(group)
    except* (HandshakeError, trio.BrokenResourceError, OSError, trio.TooSlowError) as group:
        ended = _Ended(f"Cannot connect to {urlsplit(url).netloc}: {_reason(_first(group))}", "resume")
    finally:
        if transport is not None:
            await trio.aclose_forcefully(transport)
    if isinstance(failure, ConnectionRejected):
        return _refused(failure)
    if failure is not None:
        raise failure
    return ended


async def _transport(url: str) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    """Connected, and with TLS where the URL says so.

    Raises:
        FollowRefused: the server's certificate does not name it, or is not trusted.
        OSError, trio.BrokenResourceError: there is no connection.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "wss"
    plain = await trio.open_tcp_stream(host, parts.port or (443 if secure else 80))
    if not secure:
        return plain
    stream = trio.SSLStream(plain, ssl.create_default_context(), server_hostname=host, https_compatible=True)
    try:
        await stream.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(plain)
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise FollowRefused(f"The server's certificate is not valid: {error.__cause__.verify_message}") from error
        raise
    return stream


async def _handshake(
    nursery: trio.Nursery, transport: trio.SocketStream | trio.SSLStream[trio.SocketStream], url: str, headers: Headers
) -> WebSocketConnection:
    parts = urlsplit(url)
    return await wrap_client_stream(
        nursery,
        transport,
        parts.netloc,
        parts.path,
        subprotocols=[SUBPROTOCOL],
        extra_headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in headers],
        max_message_size=MOST_MESSAGE,
        receive_buffer_size=None,
    )


async def _converse(
    websocket: WebSocketConnection,
    following: Following,
    tell: trio.MemorySendChannel[Update],
    say: Callable[[str], None],
) -> NoReturn:
    """Until the connection ends. Nothing but the end of the program may cancel this: what is taken must be told."""
    while True:
        message = following.ask()
        if message is not None:
            await websocket.send_message(message)
        text = await websocket.get_message()
        if not isinstance(text, str):
            raise FollowRefused("The server sends binary messages, as Fluxora does not")
        told = following.take(text)
        if isinstance(told, Update):
            await tell.send(told)
        elif told is not None:
            say(told)


async def _keep_alive(websocket: WebSocketConnection, transport: trio.abc.AsyncResource) -> None:
    """Ask for a pong now and then; without one, break the connection, which ends whoever reads from it."""
    try:
        while True:
            await trio.sleep(PING_EVERY_S)
            with trio.move_on_after(PONG_S) as patience:
                await websocket.ping()
            if patience.cancelled_caught:
                await trio.aclose_forcefully(transport)
                return
    except ConnectionClosed:
        return


async def _part(websocket: WebSocketConnection) -> None:
    """Say that this side closes, for a bounded time also where this is cancelled."""
    with trio.move_on_after(CLOSE_S, shield=True):
        await websocket.aclose()


def _after(closed: ConnectionClosed) -> _Ended:
    code = None if closed.reason is None else closed.reason.code
    then = after_close(code)
    if closed.reason is None or code == 1006:
        return _Ended("The connection broke", then)
    return _Ended(f"The server closed the connection: {closed.reason.reason or 'without a reason'} ({code})", then)


def _refused(rejected: ConnectionRejected) -> _Ended:
    """What an HTTP answer in place of a WebSocket means.

    Raises:
        FollowRefused: that it will not be otherwise.
    """
    status = rejected.status_code
    why = f"The server answers {status}{_told_by(rejected.body)}"
    if status not in _PASSING:
        help_ = _REFUSALS.get(status, "Is this the URL of a Fluxora server?")
        raise FollowRefused(f"{why}. {help_}")
    retry_after = dict(rejected.headers).get(b"retry-after", b"")
    asked_s = float(retry_after) if retry_after.isdigit() and len(retry_after) < 10 else 0.0
    return _Ended(why, "resume", asked_s)


def _told_by(body: bytes | None) -> str:
    """The message of an error body, where there is one."""
    try:
        answer = msgspec.json.decode(body or b"", type=dict[str, msgspec.Raw])
        return f": {msgspec.json.decode(answer['message'], type=str)[:MOST_SAID]}"
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError):
        return ""


def _first(group: BaseExceptionGroup) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _reason(error: BaseException) -> str:
    """In a few words: of several addresses that were tried, of the first."""
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_S:.0f} s"
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        cause = _first(cause)
    if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, socket.gaierror):
        return os.strerror(cause.errno)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
