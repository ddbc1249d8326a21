"""A Stellar RPC node of the tests' own: trio and h11 on a free port, every answer scripted by a function.

It knows nothing of the code under test. `History` answers getEvents by the node's documented rules.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio
from stellar_sdk import scval

PASSPHRASE = "Scripted Network ; 2026"
CONTRACT = "CASTMR2YNF5IXHFNX3H6B4ICCMSDKRSXNB4YVG5MXXHN74ABCIRTISIC"
STRANGER = "CBXYBENCWPCNLZXXBAMSUO2MLVXH7EFBWLB5JZPWA4MCSOSLLRWX5OUA"
WINDOW = 10_000


@dataclass
class Answer:
    """An HTTP answer. `result` and `error` make a JSON-RPC body; `body` replaces it."""

    result: object = None
    error: object = None
    status: int = 200
    headers: list = field(default_factory=list)
    body: bytes | None = None
    cut: int | None = None  # send only so many bytes of the body, then close
    drop: bool = False  # close without a byte
    hang: bool = False  # never answer
    close_after: bool = False  # close the connection silently after the answer
    gate: trio.Event | None = None  # wait for it before the answer


class ScriptedNode:
    """`answer(method, params)` returns an Answer, or a result. `requests` lists what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self.connections = 0
        self.open_connections = 0
        self.closed = trio.Event()  # set whenever a connection has ended
        self.url = ""

    def asked(self, method):
        return [params for name, params in self.requests if name == method]

    async def serve(self, *, ssl_context=None, task_status):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        if ssl_context is not None:
            self.url = f"https://node.test:{port}"
            listeners = [trio.SSLListener(listener, ssl_context) for listener in listeners]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            task_status.started()

    async def _connection(self, stream):
        self.connections += 1
        self.open_connections += 1
        try:
            connection = h11.Connection(h11.SERVER)
            while await self._exchange(stream, connection):
                connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)
            self.open_connections -= 1
            self.closed.set()

    async def _exchange(self, stream, connection):
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                self.last_head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        request = json.loads(body) if body.startswith(b"{") else {}
        self.last_body = body
        method, params = request.get("method"), request.get("params")
        self.requests.append((method, params))
        answer = self.answer(method, params)
        if not isinstance(answer, Answer):
            answer = Answer(result=answer)
        if answer.gate is not None:
            await answer.gate.wait()
        if answer.hang:
            await stream.receive_some(1)  # until the client gives up
            return False
        if answer.drop:
            return False
        payload = answer.body
        if payload is None:
            content = {"error": answer.error} if answer.error is not None else {"result": answer.result}
            payload = json.dumps({"jsonrpc": "2.0", "id": request.get("id"), **content}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(payload))), *answer.headers]
        head = connection.send(h11.Response(status_code=answer.status, headers=headers))
        if answer.cut is not None:
            await stream.send_all(head + payload[: answer.cut])
            return False
        rest = connection.send(h11.Data(data=payload)) + connection.send(h11.EndOfMessage())
        await stream.send_all(head + rest)
        return not answer.close_after and connection.our_state is h11.DONE


@asynccontextmanager
async def running(*answers, ssl_context=None):
    """One node for each answer function; they end with the block."""
    nodes = [ScriptedNode(answer) for answer in answers]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(lambda node=node, **kw: node.serve(ssl_context=ssl_context, **kw))
        yield nodes
        nursery.cancel_scope.cancel()


SYMBOL = scval.to_symbol("hello").to_xdr()
VALUE = scval.to_uint64(7).to_xdr()


def event_id(ledger, tx=1, op=0, index=0):
    return f"{ledger << 32 | tx << 12 | op:019d}-{index:010d}"


def window_end(ledger):
    return event_id(ledger, 1048575, 4095, 4294967295)


def event(ledger, tx=1, op=0, index=0, **fields):
    """One event as getEvents gives it; a field of None is left out."""
    whole = {
        "type": "contract",
        "ledger": ledger,
        "ledgerClosedAt": "2026-11-22T10:00:05Z",
        "contractId": CONTRACT,
        "id": event_id(ledger, tx, op, index),
        "operationIndex": op,
        "transactionIndex": tx,
        "inSuccessfulContractCall": True,
        "txHash": f"{ledger:064x}",
        "topic": [SYMBOL],
        "value": VALUE,
        **fields,
    }
    return {name: value for name, value in whole.items() if value is not None}


class History:
    """A node's getEvents over `events` by the documented rules: windows, full and short pages, cursors, errors."""

    def __init__(self, events=(), *, oldest=1, latest=100, cap=None, honours_end=True):
        self.events = sorted(events, key=lambda e: e["id"])
        self.oldest = oldest
        self.latest = latest
        self.cap = cap  # a provider's own limit
        self.honours_end = honours_end
        self.passphrase = PASSPHRASE
        self.version = "28.0.0"
        self.calls = defaultdict(int)
        self.faults = {}  # (method, number of the call from 1) -> Answer

    def __call__(self, method, params):
        self.calls[method] += 1
        fault = self.faults.get((method, self.calls[method])) or self.faults.get(method)
        if fault is not None:
            return fault() if callable(fault) else fault
        return getattr(self, method)(params)

    def getNetwork(self, _params):  # noqa: N802
        return {"passphrase": self.passphrase, "protocolVersion": 27}

    def getVersionInfo(self, _params):  # noqa: N802
        return {"version": self.version}

    def getHealth(self, _params):  # noqa: N802
        return {
            "status": "healthy",
            "latestLedger": self.latest,
            "oldestLedger": self.oldest,
            "ledgerRetentionWindow": 120960,
            "latestLedgerCloseTime": "1795341605",
        }

    def getEvents(self, params):  # noqa: N802
        page = params.get("pagination", {})
        cursor = page.get("cursor")
        if cursor is not None:
            assert "startLedger" not in params
            assert "endLedger" not in params
            start = int(cursor[:19]) >> 32
        else:
            start = params["startLedger"]
        if not self.oldest <= start <= self.latest:
            return out_of_range(self.oldest, self.latest)
        end = min(start + WINDOW, self.latest + 1)
        if self.honours_end and "endLedger" in params:
            end = min(end, params["endLedger"])
        limit = min(page.get("limit", 100), self.cap or WINDOW)
        wanted = {c for f in params["filters"] for c in f["contractIds"]}
        found = list(
            itertools.islice(
                (
                    e
                    for e in self.events
                    if start <= e["ledger"] < end and (cursor is None or e["id"] > cursor) and e["contractId"] in wanted
                ),
                limit,
            )
        )
        return {
            "events": found,
            "cursor": found[-1]["id"] if len(found) == limit else window_end(end - 1),
            "latestLedger": self.latest,
            "oldestLedger": self.oldest,
            "latestLedgerCloseTime": "1795341605",
            "oldestLedgerCloseTime": "1795000000",
        }


def out_of_range(oldest, latest):
    message = f"startLedger must be within the ledger range: {oldest} - {latest}"
    return Answer(error={"code": -32600, "message": message})
