"""The HTTP side of a simulated node: JSON-RPC 2.0 over HTTP/1.1 on trio, with keep-alive, limits and faults.

POST / (any path but /faults) answers calls as stellar-rpc does. GET /faults tells what is wrong with this endpoint,
POST /faults changes it. Every connection is isolated; a request that fails unexpectedly is logged and answered 500.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import h11
import msgspec
import trio

from fluxora import logs
from fluxora.errors import FluxoraError
from fluxora.localnet.chain import Chain
from fluxora.localnet.faults import FaultOrder, Faults, FaultyView, Misbehaviour
from fluxora.localnet.methods import (
    INVALID_REQUEST,
    PARSE_ERROR,
    RpcError,
    answer,
)

MAX_BODY_BYTES = 512 * 1024
IDLE_TIMEOUT_S = 75.0  # a client that keeps a connection without a request for longer loses it
SEND_TIMEOUT_S = 60.0  # a client that does not read its answer for so long loses it
LINGER_S = 1.0
_READ_BYTES = 64 * 1024

log = logs.get("localnet")


class Reply(msgspec.Struct, frozen=True):
    """An HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    truncated: bool = False


class ChainOrders(Protocol):
    """What POST /faults may ask of the network behind the endpoint."""

    async def fork(self, depth: int, *, repeat: bool = False, regrow: bool = True) -> None:
        """Undo ledgers and, with `regrow`, close as many on the new branch."""

    async def reset(self) -> None:
        """Begin the network anew."""


class BareOrders:
    """Forks and resets of a chain without scripted accounts: what grows again is empty."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    async def fork(self, depth: int, *, repeat: bool = False, regrow: bool = True) -> None:
        """Undo `depth` ledgers; `repeat` closes the same content again, `regrow` as many empty ledgers."""
        self._chain.fork(depth, repeat=repeat)
        if regrow and not repeat:
            for _ in range(depth):
                self._chain.close_ledger()

    async def reset(self) -> None:
        """Begin the network anew."""
        self._chain.reset()


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Endpoint:
    """One node: a chain seen through its faults, answering HTTP requests."""

    def __init__(self, chain: Chain, faults: Faults, orders: ChainOrders | None = None) -> None:
        self.chain = chain
        self.faults = faults
        self.requests = 0  # calls seen, misbehaved ones included
        self._view = FaultyView(chain, faults)
        self._orders = BareOrders(chain) if orders is None else orders
        self._last_page: bytes | None = None

    async def handle(self, method: str, path: str, content_type: str, body: bytes) -> Reply:
        """Answer one HTTP request.

        Raises:
            Dropped: a fault asks to close the connection.
        """
        if path.partition("?")[0] == "/faults":
            return await self._control(method, body)
        if method != "POST":
            return Reply(405, b"", headers=(("Allow", "POST"),))
        if content_type.partition(";")[0].strip().lower() != "application/json":
            return Reply(415, b"content type must be application/json", "text/plain")
        return await self._call(body)

    async def _control(self, method: str, body: bytes) -> Reply:
        if method == "GET":
            return Reply(200, msgspec.json.encode(self.faults.describe()))
        if method != "POST":
            return Reply(405, b"", headers=(("Allow", "GET, POST"),))
        try:
            order = msgspec.json.decode(body, type=FaultOrder)
            self.faults.obey(order)
            if order.fork is not None:
                await self._orders.fork(order.fork, repeat=order.repeat, regrow=order.regrow)
            if order.reset:
                await self._orders.reset()
        except (msgspec.DecodeError, FluxoraError) as error:
            return Reply(400, msgspec.json.encode({"error": str(error)}))
        log.info("localnet.fault_ordered", order=body.decode(errors="replace"))
        return Reply(200, msgspec.json.encode({**self.faults.describe(), "latestLedger": self.chain.latest.sequence}))

    async def _call(self, body: bytes) -> Reply:
        try:
            request = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            return Reply(200, _error(None, RpcError(PARSE_ERROR, "parse error", str(error))))
        if isinstance(request, list):
            if not request:
                return Reply(200, _error(None, RpcError(INVALID_REQUEST, "empty request batch")))
            replies = [await self._single(one) for one in request]
            spoiled = next((reply for reply in replies if reply.status != 200 or reply.truncated), None)
            return spoiled or Reply(200, b"[" + b",".join(reply.body for reply in replies) + b"]")
        return await self._single(request)

    async def _single(self, request: object) -> Reply:
        if not isinstance(request, dict):
            return Reply(200, _error(None, RpcError(INVALID_REQUEST, "invalid request")))
        ident, method = request.get("id"), request.get("method")
        if request.get("jsonrpc") != "2.0" or not isinstance(method, str) or not method:
            return Reply(200, _error(ident, RpcError(INVALID_REQUEST, "invalid request")))
        self.requests += 1
        fault = self.faults.take(method)
        if fault is not None:
            spoiled = await self._misbehave(fault, ident)
            if spoiled is not None:
                return spoiled
        try:
            result = self._answer(method, request.get("params"), fault)
        except RpcError as error:
            return Reply(200, _error(ident, error))
        framed = b"".join((b'{"jsonrpc":"2.0","id":', msgspec.json.encode(ident), b',"result":', result, b"}"))
        return Reply(200, framed, truncated=fault is not None and fault.truncate_body)

    def _answer(self, method: str, params: object, fault: Misbehaviour | None) -> bytes:
        if method != "getEvents":
            return answer(self._view, method, params)
        if fault is not None and fault.duplicate_pages and self._last_page is not None:
            return self._last_page
        self._last_page = answer(self._view, method, params)
        return self._last_page

    async def _misbehave(self, fault: Misbehaviour, ident: object) -> Reply | None:
        if fault.slow_s:
            await trio.sleep(fault.slow_s)
        if fault.drop_connection:
            raise Dropped
        if fault.status is not None:
            headers = () if fault.retry_after is None else (("Retry-After", f"{fault.retry_after:g}"),)
            body, kind = _error_body(fault)
            return Reply(fault.status, body, kind, headers, fault.truncate_body)
        if fault.jsonrpc_error is not None:
            framed = {"jsonrpc": "2.0", "id": ident, "error": fault.jsonrpc_error}
            return Reply(200, msgspec.json.encode(framed), truncated=fault.truncate_body)
        return None


def _error_body(fault: Misbehaviour) -> tuple[bytes, str]:
    if fault.body is not None:
        return fault.body.encode(), "text/html" if fault.html else "application/json"
    if fault.html:
        page = f"<html><head><title>{fault.status}</title></head><body><h1>{fault.status}</h1></body></html>\r\n"
        return page.encode(), "text/html"
    return (b'{"error":"Too Many Requests"}' if fault.status == 429 else b""), "application/json"


def _error(ident: object, error: RpcError) -> bytes:
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return msgspec.json.encode({"jsonrpc": "2.0", "id": ident, "error": body})


Handler = Callable[[str, str, str, bytes], Awaitable[Reply]]


class _Connection:
    """One client's connection, request after request, until either side closes it."""

    def __init__(self, stream: trio.SocketStream, handle: Handler) -> None:
        self._stream = stream
        self._handle = handle
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        """Serve until the client leaves, stalls or breaks the protocol; never raises for what a client does."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                with trio.move_on_after(SEND_TIMEOUT_S):
                    await self._send(Reply(error.error_status_hint, b"", headers=(("Connection", "close"),)))
        except Dropped:
            pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _exchange(self) -> bool:
        """One request and its answer; False when there is none to follow."""
        received: tuple[h11.Request, bytes | None] | None = None
        with trio.move_on_after(IDLE_TIMEOUT_S):
            received = await self._receive()
        if received is None:
            return False
        request, body = received
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        if body is None:
            reply = Reply(413, b"request body too large", "text/plain", (("Connection", "close"),))
        else:
            try:
                target, kind = request.target.decode("latin-1"), headers.get("content-type", "")
                reply = await self._handle(request.method.decode(), target, kind, body)
            except Dropped:
                raise
            except Exception:
                log.exception("localnet.request_failed")
                reply = Reply(500)
        with trio.move_on_after(SEND_TIMEOUT_S) as sending:
            await self._send(reply)
        if body is None:
            await self._linger()
        if sending.cancelled_caught or reply.truncated:
            return False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _receive(self) -> tuple[h11.Request, bytes | None] | None:
        """The next request and its body; None when the client is gone."""
        request = await self._next_event()
        return (request, await self._body(request)) if isinstance(request, h11.Request) else None

    async def _body(self, request: h11.Request) -> bytes | None:
        """The request's body; None when it is longer than MAX_BODY_BYTES."""
        declared = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
        if declared > MAX_BODY_BYTES:
            return None
        if self._http.they_are_waiting_for_100_continue:
            await self._stream.send_all(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        parts: list[bytes] = []
        size = 0
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MAX_BODY_BYTES:
                    return None
            else:
                return b"".join(parts)

    async def _linger(self) -> None:
        """Read on for a moment: closing on unread bytes would reset the connection and take the answer with it."""
        with trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_BYTES):
                pass

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._stream.receive_some(_READ_BYTES))

    async def _send(self, reply: Reply) -> None:
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            *reply.headers,
        ]
        head = self._http.send(h11.Response(status_code=reply.status, headers=headers))
        if reply.truncated:
            await self._stream.send_all(head + reply.body[: len(reply.body) // 2])
            return
        data = self._http.send_with_data_passthrough(h11.Data(data=reply.body)) or []
        end = self._http.send_with_data_passthrough(h11.EndOfMessage()) or []
        await self._stream.send_all(b"".join([head, *data, *end]))


async def serve_endpoint(
    endpoint: Endpoint,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an endpoint until cancelled; starts with the port it listens on (0 takes a free one).

    Raises:
        OSError: the address cannot be bound.
    """

    async def serve_connection(stream: trio.SocketStream) -> None:
        await _Connection(stream, endpoint.handle).run()

    listeners = await trio.open_tcp_listeners(port, host=host)
    bound: int = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve_connection, listeners)
        task_status.started(bound)


async def serve_rpc(
    chain: Chain,
    faults: Faults | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a chain as one Stellar RPC node until cancelled; starts with the port. Several may serve one chain."""
    await serve_endpoint(
        Endpoint(chain, Faults() if faults is None else faults), host=host, port=port, task_status=task_status
    )
