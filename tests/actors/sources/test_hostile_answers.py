"""A node that answers in form and not in sense: whatever it says is a classified failure, never a crash."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from scripted_node import Answer, History, event, out_of_range, running
from test_headers_and_entries import Ledgers

from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.errors import SourceUnavailable

ONCE = RetryPolicy(attempts=1, base_s=0.001, cap_s=0.001, budget_s=5.0)
DEEP = b"[" * 100_000 + b"]" * 100_000


def health(**fields):
    return Answer(result={"status": "healthy", "latestLedger": 100, "oldestLedger": 1, **fields})


HEALTH = {
    "close time NaN": health(latestLedgerCloseTime="nan"),
    "close time Infinity": health(latestLedgerCloseTime="inf"),
    "close time beyond every calendar": health(latestLedgerCloseTime=1e300),
    "close time in the year 10000": health(latestLedgerCloseTime="253402300800"),
    "close time before 1970": health(latestLedgerCloseTime="-1"),
    "latest ledger beyond 32 bits": health(latestLedger=2**32),
    "latest ledger beyond 64 bits": health(latestLedger=2**70),
    "oldest ledger below zero": health(oldestLedger=-1),
    "deep result": Answer(body=b'{"jsonrpc":"2.0","id":1,"result":' + DEEP + b"}"),
    "deep stranger": Answer(body=b'{"jsonrpc":"2.0","id":1,"x":' + DEEP + b"}"),
    "deep error": Answer(body=b'{"jsonrpc":"2.0","id":1,"error":' + DEEP + b"}"),
    "deep error data": Answer(
        body=b'{"jsonrpc":"2.0","id":1,"error":{"code":0,"data":' + b"[" * 500 + b"]" * 500 + b"}}"
    ),
}


@pytest.mark.parametrize("answer", HEALTH.values(), ids=HEALTH.keys())
async def test_senseless_health_is_malformed(make_source, answer):
    history = History()
    history.faults["getHealth"] = answer
    async with running(history) as [node]:
        source = make_source(node, policy=ONCE)
        with pytest.raises(SourceUnavailable) as caught:
            await source.tip()
        assert caught.value.failure == "malformed_response"
        history.faults.clear()
        assert (await source.tip()).latest == 100


async def test_deep_error_page_keeps_the_class_of_its_status(make_source):
    history = History()
    history.faults["getHealth"] = Answer(status=500, body=b'{"error":' + DEEP + b"}")
    async with running(history) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await make_source(node, policy=ONCE).tip()
    assert caught.value.failure == "http_error"


@pytest.mark.parametrize("method", ["getHealth", "getNetwork", "getVersionInfo"])
async def test_range_where_no_ledger_was_asked_for_is_an_error_like_any_other(make_source, method):
    history = History()
    history.faults[method] = Answer(error={"code": -32600, "message": "ledger range: 1 - 5"})
    async with running(history) as [node]:
        source = make_source(node, policy=ONCE)
        if method == "getVersionInfo":  # a node may hide it
            assert (await source.tip()).latest == 100
            return
        with pytest.raises(SourceUnavailable) as caught:
            await source.tip()
    assert caught.value.failure == "rpc_error"


async def test_range_of_endless_digits_is_no_range(make_source):
    history = History()
    history.faults["getEvents"] = Answer(error={"code": -32600, "message": f"ledger range: {'9' * 5000} - 7"})
    async with running(history) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await collected(make_source(node, policy=ONCE), 10, 20)
    assert caught.value.failure == "rpc_error"


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("Mon, 20 Nov 1995 19:12:08 +99999999999999999", None),
        ("999999999", 300.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
    ],
)
async def test_nobody_makes_us_wait_for_years(make_source, value, wait_s):
    history = History()
    history.faults["getHealth"] = Answer(status=429, headers=[("Retry-After", value)], body=b"")
    async with running(history) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await make_source(node, policy=ONCE).tip()
    assert caught.value.failure == "throttled"
    assert (caught.value.retry_after_s or 0) <= 300
    if wait_s is not None:
        assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize("close_time", ["nan", "inf", 1e300, -1, "253402300800"])
async def test_header_closed_at_no_time_is_malformed(make_source, close_time):
    ledgers = Ledgers()
    ledgers.forge[9] = {"ledgerCloseTime": close_time}
    async with running(ledgers) as [node]:
        source = make_source(node, policy=ONCE)
        with pytest.raises(SourceUnavailable) as caught:
            await source.headers(7, 12)
        assert caught.value.failure == "malformed_response"


async def collected(source, first, last):
    found = []
    async with aclosing(source.events(first, last)) as pages:
        async for page in pages:
            found += page.events
    return found


@pytest.mark.parametrize(
    "closed_at",
    ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z"],
)
async def test_event_closed_outside_of_the_calendar_is_malformed(make_source, closed_at):
    history = History([event(50, ledgerClosedAt=closed_at)])
    async with running(history) as [node]:
        source = make_source(node, policy=ONCE)
        with pytest.raises(SourceUnavailable) as caught:
            await collected(source, 40, 60)
    assert caught.value.failure == "malformed_response"
    assert (source.status.state, source.status.failure) == ("failing", "malformed_response")


async def test_last_second_of_the_calendar_is_a_time(make_source):
    history = History(
        [event(50, ledgerClosedAt="9999-12-31T23:59:59Z"), event(51, ledgerClosedAt="1970-01-01T00:00:00Z")]
    )
    async with running(history) as [node]:
        found = await collected(make_source(node, policy=ONCE), 40, 60)
    assert [one.closed_at for one in found] == [253_402_300_799, 0]


async def test_range_beyond_32_bits_is_no_range(make_source):
    history = History()
    history.faults["getEvents"] = out_of_range(2**40, 2**41)
    async with running(history) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await collected(make_source(node, policy=ONCE), 10, 20)
    assert caught.value.failure == "rpc_error"
