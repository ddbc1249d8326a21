"""Answers without an end where another server has the port: WebSockets and event streams over ASGI.

They are the same sessions and the same event streams as on connections of our own, each in the task of its request.
Frames, the handshake, pings and what becomes of clients that answer none are the server's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import msgspec
import trio

from fluxora.errors import RequestError
from fluxora.http.answer import Answer
from fluxora.http.asgi import Message, Receive, Scope, Send, encoded, has_connections, head_of, headers_for, peer_of
from fluxora.http.backend import Backend
from fluxora.http.event_stream import EventStream
from fluxora.http.exchange import Reply
from fluxora.http.hosted_line import HostedLine
from fluxora.http.outlet import ABNORMAL
from fluxora.http.routes import TABLE
from fluxora.http.session import Session
from fluxora.protocol import frames

OF_HTTP = "http.response"
OF_HANDSHAKE = "websocket.http.response"
_PART_BYTES = 1 << 14
_PROTOCOL = "sec-websocket-protocol"


async def serve_events(backend: Backend, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request of a route that opens event streams: with one, or with a refusal."""
    answer, reply = await _answered(backend, scope)
    if reply.opens is None or scope["method"] == "HEAD":
        await _respond(OF_HTTP, scope, send, answer, reply)
        return
    line = HostedLine(
        send,
        first=_start(OF_HTTP, scope, answer, reply),
        messages=_parts,
        last={"type": f"{OF_HTTP}.body", "body": b"", "more_body": False},
        write_timeout_s=backend.config.write_timeout_s,
    )
    stream = EventStream(line, reply.opens, backend.sockets)
    await line.carry(stream, partial(_wait_for_the_end, receive, line))


async def serve_websocket(backend: Backend, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake: with a session, or with a refusal before anything is upgraded."""
    await receive()  # the handshake itself: "websocket.connect"
    answer, reply = await _answered(backend, scope)
    if reply.opens is None:
        if OF_HANDSHAKE in scope.get("extensions", {}):
            await _respond(OF_HANDSHAKE, scope, send, answer, reply)
        else:
            await send({"type": "websocket.close"})  # which the server makes a 403
        return
    headers = headers_for(scope, reply, answer.request_id, close=False)
    accept = {
        "type": "websocket.accept",
        "subprotocol": next((value for name, value in headers if name == _PROTOCOL), None),
        "headers": encoded(pair for pair in headers if pair[0] != _PROTOCOL),
    }
    line = HostedLine(send, first=accept, messages=_unframed, write_timeout_s=backend.config.write_timeout_s)
    session = Session(line, reply.opens, backend.sockets)
    await line.carry(session, partial(_hear, receive, line, session))
    if not has_connections(scope) and not line.peer_has_left:
        await _hear_out(receive)


async def _answered(backend: Backend, scope: Scope) -> tuple[Answer, Reply]:
    """The answer to a request, whose body does not count. Nothing may be waited for between this and an opening."""
    head = head_of(scope)
    if scope["type"] == "websocket" and not _takes_sockets(head.raw_path, backend):
        head = msgspec.structs.replace(head, raw_path="")  # is nowhere; what has no WebSocket cannot answer a handshake
    answer = Answer(backend, head, peer_of(scope))
    reply = answer.at_once(b"")
    return answer, await answer.in_time(_no_body) if reply is None else reply


def _takes_sockets(path: str, backend: Backend) -> bool:
    try:
        return TABLE.match("GET", path, backend).route.access.socket
    except RequestError:
        return False


async def _no_body() -> bytes:
    await trio.lowlevel.checkpoint()
    return b""


async def _respond(kind: str, scope: Scope, send: Send, answer: Answer, reply: Reply) -> None:
    await send(_start(kind, scope, answer, reply))
    await send({"type": f"{kind}.body", "body": reply.body, "more_body": False})


def _start(kind: str, scope: Scope, answer: Answer, reply: Reply) -> Message:
    """The head of an answer behind which a connection of HTTP/1 ends."""
    headers = encoded(headers_for(scope, reply, answer.request_id, close=True))
    return {"type": f"{kind}.start", "status": reply.status, "headers": headers}


# -- what is sent ------------------------------------------------------------------------------------------------------


def _parts(data: bytes) -> Iterator[Message]:
    """Events as parts of a body, none so large that a slow reader would seem to take nothing."""
    for start in range(0, len(data), _PART_BYTES):
        yield {"type": f"{OF_HTTP}.body", "body": data[start : start + _PART_BYTES], "more_body": True}


def _unframed(data: bytes) -> Iterator[Message]:
    """Frames as what a server makes frames of."""
    for opcode, payload in frames.split(data):
        if opcode == frames.TEXT:
            yield {"type": "websocket.send", "text": payload.decode()}
        else:
            code, reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
            yield {"type": "websocket.close", "code": code, "reason": reason}


# -- what comes --------------------------------------------------------------------------------------------------------


async def _wait_for_the_end(receive: Receive, line: HostedLine) -> bool:
    """Nothing that a listening client sends is for us."""
    while (await receive())["type"] != "http.disconnect":
        continue
    line.peer_left()
    return False


async def _hear(receive: Receive, line: HostedLine, session: Session) -> bool:
    """Hand over messages until the client has left, or has closed."""
    while (message := await receive())["type"] != "websocket.disconnect":
        text = message.get("text")
        if text is None:
            session.heard("", len(message.get("bytes") or b""), binary=True)
        else:
            session.heard(text, len(text) if text.isascii() else len(text.encode()))
    line.peer_left()
    session.left(int(message.get("code") or ABNORMAL))
    return False


async def _hear_out(receive: Receive) -> None:
    """Until the client has left, which may take it as long as it likes: nothing is kept of it but this task.

    Its answer to our close may be late. In HTTP/2 Hypercorn (0.18) fails as a whole where that comes behind our end.
    """
    while (await receive())["type"] != "websocket.disconnect":
        continue
