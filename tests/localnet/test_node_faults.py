"""Faults through a real socket, scripted from code and over POST /faults."""

from __future__ import annotations

import httpx
import pytest
from sdk_client import call
from stellar_sdk import scval, xdr

from fluxora.localnet import EmittedEvent, Misbehaviour, Script, contract_address, open_localnet, stream_key
from fluxora.localnet.command import describe

EVENT = EmittedEvent(contract_id=contract_address(5, 1), topics=(), value=b"\x00\x00\x00\x01")
BODY = {"jsonrpc": "2.0", "id": 1, "method": "getHealth"}


async def post(http: httpx.AsyncClient, url: str) -> httpx.Response:
    return await http.post(url, json=BODY)


@pytest.mark.parametrize("html", [True, False])
async def test_429_with_html_and_with_json_then_well_again(net, http, html):
    net.faults.status(429, retry_after=2, html=html, times=2)
    for _ in range(2):
        answer = await post(http, net.url)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.text.startswith("<html>" if html else '{"error"')
    assert (await post(http, net.url)).status_code == 200


@pytest.mark.parametrize("status", [503, 504])
async def test_503_and_504_have_empty_bodies(net, http, status):
    net.faults.status(status)
    answer = await post(http, net.url)
    assert (answer.status_code, answer.content) == (status, b"")


async def test_a_fault_may_hit_certain_methods_only(net, http):
    net.faults.status(503, methods=["getEvents"])
    assert (await post(http, net.url)).status_code == 200
    answer = await http.post(net.url, json={**BODY, "method": "getEvents", "params": {"startLedger": 100}})
    assert answer.status_code == 503


async def test_a_jsonrpc_error_may_carry_an_object(net, http):
    data = {"reason": "ledger_out_of_range", "oldestLedger": 5}
    net.faults.jsonrpc_error(-32602, "out of range", data=data)
    assert await call(http, net.url, "getHealth") == {"code": -32602, "message": "out of range", "data": data}


async def test_a_truncated_body_breaks_off(net, http):
    net.faults.truncate_body()
    with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
        await post(http, net.url)
    assert (await post(http, net.url)).status_code == 200


async def test_a_dropped_connection_gives_nothing(net, http):
    net.faults.drop_connection()
    with pytest.raises(httpx.RemoteProtocolError, match="disconnected"):
        await post(http, net.url)
    assert (await post(http, net.url)).status_code == 200


async def test_a_slow_answer_comes_late(net):
    net.faults.slow(30)
    async with httpx.AsyncClient(timeout=0.2) as impatient:
        with pytest.raises(httpx.ReadTimeout):
            await post(impatient, net.url)
        assert (await post(impatient, net.url)).status_code == 200


async def test_a_duplicate_page_is_the_page_before(net, http):
    await net.close_ledger([EVENT] * 6)
    first = await call(http, net.url, "getEvents", {"startLedger": 100, "pagination": {"limit": 2}})
    net.faults.duplicate_pages()
    again = {"pagination": {"cursor": first["cursor"], "limit": 2}}
    assert await call(http, net.url, "getEvents", again) == first
    second = await call(http, net.url, "getEvents", again)
    assert second["events"][0]["id"] > first["events"][-1]["id"]


async def test_a_lagging_replica_is_behind_in_everything(http):
    async with open_localnet(seed=2, first_ledger=100, nodes=2, script=Script(2, streams_per_ledger=2)) as net:
        await net.close_ledgers(5)
        at_105 = net.contract.model_streams()
        await net.close_ledgers(5)
        good, bad = net.nodes
        bad.faults.lag = 5
        assert (await call(http, good.url, "getHealth"))["latestLedger"] == 110
        assert (await call(http, bad.url, "getHealth"))["latestLedger"] == 105
        assert (await call(http, bad.url, "getLatestLedger"))["id"] == net.chain.ledger(105).hash.hex()
        page = await call(http, bad.url, "getEvents", {"startLedger": 100, "pagination": {"limit": 10_000}})
        assert max(one["ledger"] for one in page["events"]) <= 105
        ahead = await call(http, bad.url, "getEvents", {"startLedger": 107})
        assert ahead["message"] == "startLedger must be within the ledger range: 100 - 105"
        keys = [stream_key(net.contract.contract_id, sid) for sid in at_105]
        answer = await call(http, bad.url, "getLedgerEntries", {"keys": keys})
        assert answer["latestLedger"] == 105
        assert {entry["lastModifiedLedgerSeq"] <= 105 for entry in answer["entries"]} == {True}
        values = [scval.to_native(xdr.LedgerEntryData.from_xdr(e["xdr"]).contract_data.val) for e in answer["entries"]]
        withdrawn = {value["stream_id"]: value["withdrawn_amount"] for value in values}
        assert withdrawn == {sid: fields["withdrawn_amount"] for sid, fields in at_105.items()}


async def test_pruned_history_and_a_wrong_passphrase(net, http):
    await net.close_ledgers(10)
    net.faults.prune_before = 105
    error = await call(http, net.url, "getEvents", {"startLedger": 104})
    assert error["message"] == "startLedger must be within the ledger range: 105 - 110"
    assert (await call(http, net.url, "getHealth"))["oldestLedger"] == 105
    net.faults.passphrase = "Another Network"
    assert (await call(http, net.url, "getNetwork"))["passphrase"] == "Another Network"


async def test_a_gap_misses_events_and_headers(net, http):
    for _ in range(5):
        await net.close_ledger([EVENT])
    net.faults.gap(102, 103)
    page = await call(http, net.url, "getEvents", {"startLedger": 101})
    assert [one["ledger"] for one in page["events"]] == [101, 104, 105]
    ledgers = await call(http, net.url, "getLedgers", {"startLedger": 101})
    assert [one["sequence"] for one in ledgers["ledgers"]] == [101, 104, 105]


async def test_orders_over_http_fork_and_reset_the_network(busy, http):
    tip = busy.chain.latest
    answer = await http.post(f"{busy.url}/faults", json={"fork": 3})
    assert answer.json()["latestLedger"] == tip.sequence
    assert busy.chain.latest.hash != tip.hash
    await http.post(f"{busy.url}/faults", json={"fork": 2, "regrow": False})
    assert busy.chain.latest.sequence == tip.sequence - 2
    await http.post(f"{busy.url}/faults", json={"fork": 2, "repeat": True})
    assert busy.chain.latest.sequence == tip.sequence - 2
    await http.post(f"{busy.url}/faults", json={"reset": True})
    assert (busy.chain.latest.sequence, busy.chain.passphrase) == (100, "Fluxora Localnet ; 2026")
    assert busy.contract.model_streams() == {}


async def test_every_fault_can_be_ordered_seen_and_cleared_over_http(net, http):
    await net.close_ledgers(12)
    control = f"{net.url}/faults"
    order = {"lag": 10, "prune_before": 101, "wrong_passphrase": "X", "gap": [1, 2]}
    seen = (await http.post(control, json=order)).json()
    assert {key: seen[key] for key in ("lag", "prune_before", "wrong_passphrase", "gaps")} == {
        "lag": 10,
        "prune_before": 101,
        "wrong_passphrase": "X",
        "gaps": [[1, 2]],
    }
    await http.post(control, json={"status": 429, "retry_after": 2, "html": True, "times": 3})
    await http.post(control, json={"jsonrpc_error": {"code": -1, "message": "m", "data": {"a": 1}}, "times": 0})
    script = (await http.get(control)).json()["script"]
    assert [one["times"] for one in script] == [3, 0]
    for _ in range(3):
        assert (await post(http, net.url)).status_code == 429
    for _ in range(4):
        assert (await call(http, net.url, "getHealth")) == {"code": -1, "message": "m", "data": {"a": 1}}
    await http.post(control, json={"clear": True})
    assert (await call(http, net.url, "getHealth"))["latestLedger"] == 112


@pytest.mark.parametrize("order", [{"frok": 3}, {"fork": 500}, {"lag": "x"}, [1]])
async def test_an_order_that_makes_no_sense_is_refused(net, http, order):
    answer = await http.post(f"{net.url}/faults", json=order)
    assert answer.status_code == 400
    assert "error" in answer.json()
    assert (await post(http, net.url)).status_code == 200


async def test_faults_of_one_node_leave_the_other_alone(http):
    async with open_localnet(nodes=2) as net:
        net.nodes[0].faults.add(Misbehaviour(status=503, times=0))
        assert (await post(http, net.nodes[0].url)).status_code == 503
        assert (await post(http, net.nodes[1].url)).status_code == 200
        assert net.nodes[0].endpoint.requests == net.nodes[1].endpoint.requests == 1
        assert net.url in describe(net)
