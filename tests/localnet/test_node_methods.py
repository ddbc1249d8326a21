"""getLedgers, getLedgerEntries, getHealth and JSON-RPC itself, over a real socket."""

from __future__ import annotations

import json

import pytest
import trio
from sdk_client import call
from stellar_sdk import xdr

from fluxora.localnet import Script, contract_address, open_localnet, stream_key


async def test_ledgers_page_by_the_last_sequence(busy, http):
    seen: list[int] = []
    page = await call(http, busy.url, "getLedgers", {"startLedger": 100, "pagination": {"limit": 7}})
    while True:
        seen += [ledger["sequence"] for ledger in page["ledgers"]]
        assert page["cursor"] == str(seen[-1])
        assert isinstance(page["latestLedgerCloseTime"], int)
        assert isinstance(page["oldestLedgerCloseTime"], int)
        assert isinstance(page["ledgers"][0]["ledgerCloseTime"], str)
        if seen[-1] == 130:
            break
        page = await call(http, busy.url, "getLedgers", {"pagination": {"cursor": page["cursor"], "limit": 7}})
    assert seen == list(range(100, 131))


RANGE = "must be between the oldest ledger: 100 and the latest ledger: 100 for this rpc instance"


@pytest.mark.parametrize(
    ("params", "code", "message"),
    [
        ({}, -32600, f"start ledger (0) {RANGE}"),
        ({"startLedger": 99}, -32600, f"start ledger (99) {RANGE}"),
        ({"startLedger": 101}, -32600, f"start ledger (101) {RANGE}"),
        ({"startLedger": 100, "pagination": {"limit": 201}}, -32600, "limit must not exceed 200"),
        (
            {"startLedger": 100, "pagination": {"cursor": "100"}},
            -32600,
            "startLedger and cursor cannot both be set",
        ),
        ({"pagination": {"cursor": "100"}}, -32602, f"cursor ('100') {RANGE}"),
        ({"pagination": {"cursor": "x"}}, -32602, 'strconv.ParseUint: parsing "x": invalid syntax'),
        ({"startLedger": "100"}, -32602, "invalid parameters"),
    ],
)
async def test_ledgers_outside_the_rules_are_refused(net, http, params, code, message):
    error = await call(http, net.url, "getLedgers", params)
    assert (error["code"], error["message"]) == (code, message)


async def test_health_writes_close_times_as_strings(net, http):
    health = await call(http, net.url, "getHealth")
    assert health["latestLedgerCloseTime"] == str(net.chain.latest.closed_at)
    assert isinstance(health["latestLedger"], int)


async def test_entries_keep_the_order_asked_and_leave_out_what_is_absent(busy, http):
    contract = busy.contract.contract_id
    first, second = sorted(busy.contract.model_streams())[:2]
    keys = [stream_key(contract, sid) for sid in (second, 10_000, first, second)]
    answer = await call(http, busy.url, "getLedgerEntries", {"keys": keys})
    assert [entry["key"] for entry in answer["entries"]] == [keys[0], keys[2]]
    assert answer["latestLedger"] == 130
    assert set(answer["entries"][0]) == {"key", "xdr", "extXdr", "lastModifiedLedgerSeq", "liveUntilLedgerSeq"}


async def test_entry_keys_are_checked(net, http):
    key = stream_key(contract_address(5, 0), 1)
    error = await call(http, net.url, "getLedgerEntries", {"keys": [key] * 201})
    assert error == {"code": -32602, "message": "key count (201) exceeds maximum supported (200)"}
    error = await call(http, net.url, "getLedgerEntries", {"keys": [key, "AAAA"]})
    assert error == {"code": -32602, "message": "cannot unmarshal key value AAAA at index 1"}
    ttl = xdr.LedgerKey(xdr.LedgerEntryType.TTL, ttl=xdr.LedgerKeyTtl(xdr.Hash(b"\x01" * 32))).to_xdr()
    error = await call(http, net.url, "getLedgerEntries", {"keys": [ttl]})
    assert error == {"code": -32602, "message": "ledger ttl entries cannot be queried directly"}
    assert await call(http, net.url, "getLedgerEntries", {}) == {"entries": [], "latestLedger": 100}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff", -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"id":1,"method":"getHealth"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"sendMoney"}', -32601),
    ],
)
async def test_broken_requests_get_a_jsonrpc_error(net, http, body, code):
    answer = await http.post(net.url, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == code


async def test_batches_are_answered_in_order(net, http):
    calls = [{"jsonrpc": "2.0", "id": i, "method": name} for i, name in enumerate(("getNetwork", "nothing"))]
    answer = (await http.post(net.url, json=calls)).json()
    assert [one["id"] for one in answer] == [0, 1]
    assert "result" in answer[0]
    assert "error" in answer[1]


async def test_http_rules_hold(net, http):
    assert (await http.get(net.url)).status_code == 405
    wrong = await http.post(net.url, content=b"{}", headers={"content-type": "text/plain"})
    assert wrong.status_code == 415


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_above_512_kib_is_refused(net, http, declared):
    call_body = {"jsonrpc": "2.0", "id": 1, "method": "getHealth", "params": {"p": "x" * (512 * 1024)}}
    large = json.dumps(call_body).encode()
    head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(large)}\r\n\r\n" if declared else "transfer-encoding: chunked\r\n\r\n"
    body = large if declared else f"{len(large):x}\r\n".encode() + large + b"\r\n0\r\n\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", net.nodes[0].port) as stream:
        await stream.send_all(head.encode() + body)
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 413 ")
    assert (await call(http, net.url, "getHealth"))["status"] == "healthy"


async def test_garbage_on_one_connection_leaves_the_others_alone(net, http):
    stream = await trio.open_tcp_stream("127.0.0.1", net.nodes[0].port)
    async with stream:
        await stream.send_all(b"\x16\x03\x01 nonsense\r\n\r\n")
        with trio.fail_after(5):
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
    half = await trio.open_tcp_stream("127.0.0.1", net.nodes[0].port)
    await half.send_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
    await half.aclose()
    assert (await call(http, net.url, "getHealth"))["status"] == "healthy"


async def test_a_connection_serves_many_requests(net):
    body = b'{"jsonrpc":"2.0","id":1,"method":"getNetwork"}'
    head = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", net.nodes[0].port) as stream:
        for _ in range(3):
            await stream.send_all(head.encode() + body)
            with trio.fail_after(5):
                assert b"passphrase" in await stream.receive_some()


async def test_ledgers_close_by_themselves_at_a_pace(http):
    async with open_localnet(seed=1, ledger_every_s=0.01, script=Script(1)) as net:
        first = net.chain.latest.sequence
        with trio.fail_after(10):
            while (await call(http, net.url, "getHealth"))["latestLedger"] < first + 3:
                await trio.lowlevel.checkpoint()
        closes = [ledger.closed_at for ledger in net.chain.ledgers(0, 10**9)]
        assert closes == sorted(closes)
