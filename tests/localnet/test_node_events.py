"""getEvents by its rules: windows, cursors, limits, filters, shapes and error texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sdk_client import call
from stellar_sdk import scval

from fluxora.localnet import Chain, EmittedEvent, Faults, contract_address
from fluxora.localnet.chain import NO_EVENTS
from fluxora.localnet.faults import FaultyView
from fluxora.localnet.methods import RpcError, answer

ONE, TWO = contract_address(5, 1), contract_address(5, 2)


def event(contract: str = ONE, *topics: str, call_number: int = -1, kind: str = "contract") -> EmittedEvent:
    encoded = tuple(scval.to_symbol(topic).to_xdr_bytes() for topic in topics)
    return EmittedEvent(
        contract_id=contract, topics=encoded, value=scval.to_void().to_xdr_bytes(), call=call_number, type=kind
    )


def symbols(*names: str) -> list[str]:
    return [name if name in ("*", "**") else scval.to_symbol(name).to_xdr() for name in names]


def max_cursor(ledger: int) -> str:
    return f"{(ledger << 32) + (1_048_575 << 12) + 4095:019d}-4294967295"


async def test_the_shape_of_an_event_and_of_a_page(net, http):
    ledger = await net.close_ledger([event(ONE, "created", call_number=1), event(ONE, "renewed", call_number=1)])
    page = await call(http, net.url, "getEvents", {"startLedger": 101})
    assert page["latestLedger"] == 101
    assert page["oldestLedger"] == 100
    assert page["latestLedgerCloseTime"] == str(ledger.closed_at)
    assert page["oldestLedgerCloseTime"] == str(net.chain.oldest.closed_at)
    first, second = page["events"]
    toid = 101 << 32 | 1 << 12
    assert first["id"] == f"{toid:019d}-0000000000"
    assert second["id"] == f"{toid:019d}-0000000001"
    assert first["txHash"] == second["txHash"]
    assert first["type"] == "contract"
    assert first["ledger"] == 101
    assert first["contractId"] == ONE
    assert first["ledgerClosedAt"] == "2026-07-25T17:20:05Z"
    assert first["transactionIndex"] == 1
    assert first["operationIndex"] == 0
    assert first["topic"] == symbols("created")


async def test_an_event_without_topics_has_no_topic_key(net, http, foreign):
    await net.close_ledger([foreign, event(ONE, "a", "b", "c", "d", "e")])
    page = await call(http, net.url, "getEvents", {"startLedger": 101})
    assert "topic" not in page["events"][0]
    assert len(page["events"][1]["topic"]) == 5


async def test_a_full_page_ends_with_its_last_id_and_splits_a_ledger(net, http):
    await net.close_ledger([event(ONE, "a") for _ in range(5)])
    page = await call(http, net.url, "getEvents", {"startLedger": 100, "pagination": {"limit": 3}})
    assert page["cursor"] == page["events"][-1]["id"]
    rest = await call(http, net.url, "getEvents", {"pagination": {"cursor": page["cursor"], "limit": 3}})
    assert len(rest["events"]) == 2
    assert rest["cursor"] == max_cursor(101)


async def test_at_the_tip_the_cursor_stays_and_the_page_is_empty_until_the_next_close(net, http):
    page = await call(http, net.url, "getEvents", {"startLedger": 100})
    assert page["cursor"] == max_cursor(100)
    again = await call(http, net.url, "getEvents", {"pagination": {"cursor": page["cursor"]}})
    assert (again["events"], again["cursor"]) == ([], page["cursor"])
    await net.close_ledger([event()])
    after = await call(http, net.url, "getEvents", {"pagination": {"cursor": page["cursor"]}})
    assert len(after["events"]) == 1
    assert after["cursor"] == max_cursor(101)


async def test_an_empty_page_advances_by_the_scan_limit():
    chain = Chain(1, first_ledger=100, retention=None)
    for _ in range(10_050):
        chain.close_rendered(lambda _: NO_EVENTS, b"")
    view = FaultyView(chain, Faults())
    page = answer(view, "getEvents", {"startLedger": 100})
    assert f'"cursor":"{max_cursor(10_099)}"'.encode() in page
    page = answer(view, "getEvents", {"pagination": {"cursor": max_cursor(10_099)}})
    assert f'"cursor":"{max_cursor(10_150)}"'.encode() in page


async def test_end_ledger_is_exclusive(net, http):
    for _ in range(4):
        await net.close_ledger([event()])
    page = await call(http, net.url, "getEvents", {"startLedger": 101, "endLedger": 103})
    assert [one["ledger"] for one in page["events"]] == [101, 102]
    assert page["cursor"] == max_cursor(102)


@pytest.mark.parametrize("start", [1, 99, 101, 2_000_000_000])
async def test_outside_the_range_one_error_names_the_bounds(net, http, start):
    expected = {"code": -32600, "message": "startLedger must be within the ledger range: 100 - 100"}
    assert await call(http, net.url, "getEvents", {"startLedger": start}) == expected
    assert await call(http, net.url, "getEvents", {"pagination": {"cursor": max_cursor(start)}}) == expected


BOTH = "ledger ranges and cursor cannot both be set"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"startLedger": 100, "pagination": {"cursor": max_cursor(100)}}, BOTH),
        ({"endLedger": 101, "pagination": {"cursor": max_cursor(100)}}, BOTH),
        ({}, "startLedger must be positive"),
        ({"startLedger": 0}, "startLedger must be positive"),
        ({"startLedger": None, "pagination": {"cursor": None, "limit": None}}, "startLedger must be positive"),
        ({"startLedger": 100, "pagination": {"limit": 10_001}}, "limit must not exceed 10000"),
        ({"startLedger": 100, "pagination": {"limit": -1}}, "invalid parameters"),
        ({"startLedger": "100"}, "invalid parameters"),
        ({"startLedger": -5}, "invalid parameters"),
        ([100], "invalid parameters"),
        ({"pagination": {"cursor": "abc"}}, "invalid parameters"),
        ({"pagination": {"cursor": ""}}, "invalid parameters"),
        ({"startLedger": 100, "filters": [{}] * 6}, "maximum 5 filters per request"),
        (
            {"startLedger": 100, "filters": [{"contractIds": [ONE] * 6}]},
            "filter 1 invalid: maximum 5 contract IDs per filter",
        ),
        ({"startLedger": 100, "filters": [{}, {"contractIds": ["a"]}]}, "filter 2 invalid: contract ID 1 invalid"),
        (
            {"startLedger": 100, "filters": [{"topics": [["*"]] * 6}]},
            "filter 1 invalid: maximum 5 topics per filter",
        ),
        (
            {"startLedger": 100, "filters": [{"topics": [[]]}]},
            "filter 1 invalid: topic 1 invalid: topic must have at least one segment",
        ),
        (
            {"startLedger": 100, "filters": [{"topics": [["**"]]}]},
            "filter 1 invalid: topic 1 invalid: topic must have at least one segment",
        ),
        (
            {"startLedger": 100, "filters": [{"topics": [["*"] * 5]}]},
            "filter 1 invalid: topic 1 invalid: topic cannot have more than 4 segments",
        ),
        (
            {"startLedger": 100, "filters": [{"topics": [["*"], ["**", "*"]]}]},
            "filter 1 invalid: topic 2 invalid: segment 1 invalid: wildcard must be '*'",
        ),
        ({"startLedger": 100, "filters": [{"topics": [["created"]]}]}, "invalid parameters"),
        (
            {"startLedger": 100, "filters": [{"type": "diagnostic"}]},
            "filter 1 invalid: filter type invalid: if set, type must be either 'system' or 'contract'",
        ),
        ({"startLedger": 100, "xdrFormat": "xml"}, "expected xdrFormat to be 'base64' or 'json'"),
    ],
)
async def test_wrong_parameters_are_refused_in_the_servers_words(net, http, params, message):
    error = await call(http, net.url, "getEvents", params)
    assert (error["code"], error["message"]) == (-32602, message)


MIXED = [
    event(ONE),
    event(ONE, "a"),
    event(TWO, "a"),
    event(ONE, "a", "b"),
    event(TWO, "b", "a"),
    event(ONE, "a", "b", "c", "d", "e"),
    event(TWO, "a", kind="system"),
]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6]),
        ([{}], [0, 1, 2, 3, 4, 5, 6]),
        ([{"type": "contract"}], [0, 1, 2, 3, 4, 5]),
        ([{"type": "system"}], [6]),
        ([{"type": "system,contract", "contractIds": [TWO]}], [2, 4, 6]),
        ([{"contractIds": [ONE]}], [0, 1, 3, 5]),
        ([{"contractIds": [ONE], "topics": [symbols("a")]}], [1]),
        ([{"topics": [symbols("*")]}], [1, 2, 6]),
        ([{"topics": [symbols("a", "**")]}], [1, 2, 3, 5, 6]),
        ([{"topics": [symbols("a", "*")]}], [3]),
        ([{"topics": [symbols("*", "a")]}], [4]),
        ([{"topics": [symbols("*", "*", "*", "*", "**")]}], [5]),
        ([{"contractIds": [TWO], "topics": [symbols("b", "*"), symbols("a")]}], [2, 4, 6]),
        ([{"contractIds": [TWO], "type": "contract"}, {"topics": [symbols("a", "b")]}], [2, 3, 4]),
    ],
)
async def test_filters_match_by_type_contract_and_exact_topic_count(net, http, filters, expected):
    await net.close_ledger(MIXED)
    page = await call(http, net.url, "getEvents", {"startLedger": 100, "filters": filters})
    assert [one["transactionIndex"] - 1 for one in page["events"]] == expected


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    limits=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    start=st.integers(100, 104),
    only_one=st.booleans(),
)
def test_paging_with_any_limits_yields_every_event_once(sizes, limits, start, only_one):
    chain = Chain(2, first_ledger=100)
    for size in sizes:
        chain.close_ledger([event(ONE if i % 3 else TWO, "a", call_number=i // 2) for i in range(size)])
    view = FaultyView(chain, Faults())
    filters = [{"contractIds": [ONE]}] if only_one else []
    expected = [
        text
        for ledger in chain.ledgers(start, 10_000)
        for text, contract in zip(ledger.events().rendered, ledger.events().contracts, strict=True)
        if contract == ONE or not only_one
    ]
    if start > chain.latest.sequence:
        with pytest.raises(RpcError, match="must be within the ledger range"):
            answer(view, "getEvents", {"startLedger": start})
        return
    seen: list[bytes] = []
    params: dict[str, object] = {"startLedger": start}
    for turn in range(500):
        limit = limits[turn % len(limits)]
        pagination = {**params.pop("pagination", {}), "limit": limit}  # type: ignore[dict-item]
        page = answer(view, "getEvents", {**params, "filters": filters, "pagination": pagination})
        rows, _, tail = page.removeprefix(b'{"events":[').rpartition(b'],"cursor":"')
        found = [b'{"type"' + row for row in rows.split(b'{"type"')[1:]]
        seen += [row.rstrip(b",") for row in found]
        cursor = tail[:30].decode()
        params = {"pagination": {"cursor": cursor}}
        if len(found) < limit:
            assert cursor == max_cursor(chain.latest.sequence)
            break
    assert seen == expected
