"""getEvents through a real socket: every trap of its paging, and of its range errors."""

from __future__ import annotations

from contextlib import aclosing

import pytest
import trio
from scripted_node import (
    CONTRACT,
    STRANGER,
    SYMBOL,
    Answer,
    History,
    event,
    event_id,
    out_of_range,
    running,
    window_end,
)

from fluxora.actors.sources.failures import HistoryPruned, NodeRange
from fluxora.errors import HistoryLost, SourceUnavailable


async def pages_of(source, first, last, into=None):
    got = [] if into is None else into
    async with aclosing(source.events(first, last)) as pages:
        async for page in pages:
            got.append(page)
    return got


def ids(pages):
    return [e.id for page in pages for e in page.events]


def marks(pages):
    return [page.complete_through for page in pages]


async def test_events_arrive_decoded_with_their_ledgers_close_time(make_source):
    history = History([event(5)])
    async with running(history) as [node]:
        [page] = await pages_of(make_source(node), 1, 100)
    [found] = page.events
    assert (found.id, found.ledger, found.closed_at, found.contract_id) == (event_id(5), 5, 1795341605, CONTRACT)
    assert page.complete_through == 100


async def test_zero_topics_and_five_topics_do_not_poison_the_page(make_source):
    odd = [event(5, index=0, topic=None), event(5, index=1, topic=[SYMBOL] * 5), event(5, index=2)]
    async with running(History(odd)) as [node]:
        [page] = await pages_of(make_source(node), 1, 10)
    assert [e.id for e in page.events] == [e["id"] for e in odd]
    assert {e.action for e in page.events} == {"unknown"}


async def test_undecodable_xdr_is_kept(make_source):
    async with running(History([event(5, value="AAAA"), event(6)])) as [node]:
        [page] = await pages_of(make_source(node), 1, 10)
    assert [e.action for e in page.events] == ["unknown", "unknown"]
    assert "error" in page.events[0].data


async def test_unknown_keys_and_numbers_as_strings_are_tolerated(make_source):
    history = History()
    reply = {
        "events": [{**event(5), "ledger": "5", "somethingNew": {"a": 1}}],
        "cursor": window_end(10),
        "latestLedger": "10",
        "oldestLedger": "1",
        "brandNew": [],
    }
    history.getEvents = lambda _params: reply
    async with running(history) as [node]:
        [page] = await pages_of(make_source(node), 5, 10)
    assert ids([page]) == [event_id(5)]


async def test_page_that_splits_a_ledger_completes_only_the_ledgers_below(make_source):
    events = [event(5), event(6, tx=1), event(6, tx=2), event(6, tx=3), event(9)]
    async with running(History(events)) as [node]:
        pages = await pages_of(make_source(node, page_limit=2), 1, 20)
    assert ids(pages) == [e["id"] for e in events]
    assert marks(pages) == [5, 5, 20]


async def test_full_page_that_ends_with_its_ledger_leaves_it_open(make_source):
    async with running(History([event(5, tx=1), event(5, tx=2)])) as [node]:
        pages = await pages_of(make_source(node, page_limit=2), 1, 20)
    assert marks(pages) == [4, 20]


async def test_empty_pages_advance_a_window_at_a_time(make_source):
    async with running(History([event(25_000)], latest=30_000)) as [node]:
        pages = await pages_of(make_source(node), 1, 30_000)
        cursors = [params["pagination"].get("cursor") for params in node.asked("getEvents")]
    assert marks(pages) == [10_000, 19_999, 29_998, 30_000]
    assert ids(pages) == [event_id(25_000)]
    assert cursors == [None, window_end(10_000), window_end(19_999), window_end(29_998)]


async def test_range_is_cut_where_the_node_forgets_its_end(make_source):
    events = [event(n) for n in range(5, 15)]
    for honours_end in (True, False):
        async with running(History(events, honours_end=honours_end)) as [node]:
            pages = await pages_of(make_source(node, page_limit=3), 1, 9)
        assert ids(pages) == [event_id(n) for n in range(5, 10)]
        assert marks(pages)[-1] == 9


async def test_limit_that_a_provider_caps_silently_loses_nothing(make_source):
    events = [event(n) for n in range(5, 45)]
    async with running(History(events, cap=7)) as [node]:
        pages = await pages_of(make_source(node, page_limit=1000), 1, 100)
    assert ids(pages) == [e["id"] for e in events]


async def test_limit_that_the_node_refuses_is_lowered_to_what_it_states(make_source):
    history = History([event(n) for n in range(5, 45)])
    answer = history.getEvents
    refusal = Answer(error={"code": -32602, "message": "limit must not exceed 10"})
    history.getEvents = lambda params: refusal if params["pagination"]["limit"] > 10 else answer(params)
    async with running(history) as [node]:
        source = make_source(node, page_limit=1000)
        assert len(ids(await pages_of(source, 1, 100))) == 40


async def test_page_longer_than_the_bound_is_asked_for_in_smaller_parts(make_source):
    events = [event(n) for n in range(5, 45)]
    async with running(History(events)) as [node]:
        source = make_source(node, page_limit=1000, max_reply_bytes=6000)
        assert ids(await pages_of(source, 1, 100)) == [e["id"] for e in events]


async def test_foreign_contracts_and_types_are_dropped(make_source):
    history = History()
    history.getEvents = lambda _params: {
        "events": [event(5, contractId=STRANGER), event(6, type="system"), event(7), event(8, contractId=None)],
        "cursor": window_end(10),
        "latestLedger": 10,
        "oldestLedger": 1,
    }
    async with running(history) as [node]:
        assert ids(await pages_of(make_source(node), 1, 10)) == [event_id(7)]


async def test_repeated_and_shuffled_events_come_once_and_in_order(make_source):
    history = History()
    history.getEvents = lambda _params: {
        "events": [event(7), event(5), event(7), event(6), event(5)],
        "cursor": window_end(10),
        "latestLedger": 10,
        "oldestLedger": 1,
    }
    async with running(history) as [node]:
        assert ids(await pages_of(make_source(node), 5, 10)) == [event_id(n) for n in (5, 6, 7)]


async def test_page_served_twice_is_not_taken_twice(make_source):
    history = History([event(n) for n in range(5, 12)])
    first_page = History(history.events).getEvents
    stale = {"startLedger": 5, "filters": [{"contractIds": [CONTRACT]}], "pagination": {"limit": 3}}
    history.faults["getEvents", 2] = lambda: Answer(result=first_page(stale))
    async with running(history) as [node]:
        source = make_source(node, page_limit=3)
        assert ids(await pages_of(source, 5, 20)) == [event_id(n) for n in range(5, 12)]
        assert source.status.failures == {"malformed_response": 1}


async def test_six_contracts_are_asked_for_in_filters_of_one_shape(make_source):
    contracts = [CONTRACT, STRANGER, *(f"C{n}" for n in range(4))]
    async with running(History([event(5), event(6, contractId=STRANGER)])) as [node]:
        pages = await pages_of(make_source(node, contracts=contracts), 1, 10)
        [params] = node.asked("getEvents")
    assert params["filters"] == [{"contractIds": contracts[:5]}, {"contractIds": contracts[5:]}]
    assert len(ids(pages)) == 2


async def test_more_contracts_than_one_request_can_name_are_walked_side_by_side(make_source):
    contracts = [CONTRACT, *(f"C{n}" for n in range(60)), STRANGER]
    history = History([event(n, contractId=CONTRACT if n % 3 else STRANGER) for n in range(5, 40)])
    async with running(history) as [node]:
        pages = await pages_of(make_source(node, contracts=contracts, page_limit=4), 1, 50)
        asked = {tuple(map(str, params["filters"])) for params in node.asked("getEvents")}
    assert ids(pages) == [event_id(n) for n in range(5, 40)]
    assert len(asked) == 3
    marks_ = marks(pages)
    assert marks_ == sorted(marks_)
    assert marks_[-1] == 50
    for page in pages:
        assert all(found.ledger <= page.complete_through for found in page.events)


async def test_long_page_is_handed_over_in_parts_with_exact_marks(make_source):
    events = [event(5 + n // 4, tx=1 + n % 4) for n in range(2_500)]
    async with running(History(events, latest=1000)) as [node]:
        pages = await pages_of(make_source(node), 1, 1000)
    assert ids(pages) == [e["id"] for e in events]
    assert [len(page.events) for page in pages] == [1000, 1000, 500]
    assert marks(pages) == [254, 504, 1000]
    assert pages[0].events[-1].ledger == 254


async def test_next_page_is_asked_for_before_the_first_is_consumed(make_source):
    asked = trio.Event()
    history = History([event(n) for n in range(5, 15)])
    answer = history.getEvents

    def watch(params):
        if "cursor" in params["pagination"]:
            asked.set()
        return answer(params)

    history.getEvents = watch
    async with running(history) as [node], aclosing(make_source(node, page_limit=4).events(1, 20)) as pages:
        await anext(pages)
        with trio.fail_after(2):
            await asked.wait()


async def test_closing_early_leaves_no_request_behind(make_source):
    history = History([event(n) for n in range(5, 15)])
    async with running(history) as [node]:
        source = make_source(node, page_limit=4)
        async with aclosing(source.events(1, 20)) as pages:
            await anext(pages)
        assert ids(await pages_of(source, 1, 20)) == [event_id(n) for n in range(5, 15)]
        assert node.connections == 2  # the abandoned answer took its connection with it


# The cursor and the tip


async def test_cursor_beyond_the_tip_is_drawn_back(make_source):
    history = History([event(12)], latest=10)
    answer = history.getEvents

    def beyond(params):
        reply = {**answer(params), "cursor": window_end(50)} if history.latest == 10 else answer(params)
        history.latest = 60
        return reply

    history.getEvents = beyond
    async with running(history) as [node]:
        pages = await pages_of(make_source(node), 1, 60)
    assert ids(pages) == [event_id(12)]
    assert marks(pages) == [10, 60]


async def test_range_beyond_the_tip_hands_over_what_there_is_then_says_node_behind(make_source):
    async with running(History([event(5)], latest=10)) as [node]:
        source = make_source(node)
        got = []
        with pytest.raises(NodeRange) as caught:
            await pages_of(source, 1, 15, into=got)
        assert caught.value.failure == "node_behind"
        assert (caught.value.requested, caught.value.oldest, caught.value.latest) == (11, 1, 10)
    assert marks(got) == [10]
    assert ids(got) == [event_id(5)]


@pytest.mark.parametrize("cursor", ["", "nonsense", "0000000000000000001", event_id(3)])
async def test_cursor_that_makes_no_sense_is_a_malformed_response(make_source, cursor):
    history = History()
    history.getEvents = lambda _params: {"events": [], "cursor": cursor, "latestLedger": 100, "oldestLedger": 1}
    async with running(history) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await pages_of(make_source(node), 5, 100)
    assert caught.value.failure == "malformed_response"


@pytest.mark.parametrize(
    "fields", [{"id": event_id(6)}, {"id": "5-0"}, {"ledgerClosedAt": "yesterday"}, {"value": "not base64!"}]
)
async def test_event_that_contradicts_itself_is_a_malformed_response(make_source, fields):
    async with running(History([event(5, **fields)])) as [node]:
        with pytest.raises(SourceUnavailable) as caught:
            await pages_of(make_source(node), 1, 10)
    assert caught.value.failure == "malformed_response"


# -32600 "A - B" and its four meanings


async def test_pruned_range_is_history_lost_with_its_numbers(make_source):
    async with running(History(oldest=50, latest=100)) as [node]:
        source = make_source(node)
        with pytest.raises(HistoryLost) as caught:
            await pages_of(source, 20, 100)
        assert isinstance(caught.value, HistoryPruned)
        assert (caught.value.requested, caught.value.oldest, caught.value.latest) == (20, 50, 100)
        assert source.status.state == "stalled"
        assert source.status.failure == "history_pruned"
        await source.tip()
        assert source.status.failure == "history_pruned"  # another kind of call does not cure it
        await pages_of(source, 50, 100)
        assert (source.status.state, source.status.failure) == ("ok", None)


async def test_pruned_on_one_node_is_read_from_another_that_keeps_more(make_source):
    async with running(History(oldest=50), History([event(20)])) as [short, long]:
        source = make_source(short, long)
        assert ids(await pages_of(source, 10, 100)) == [event_id(20)]
        assert source.status.failures == {"history_pruned": 1}
        assert source.status.state == "ok"


async def test_future_ledger_that_nobody_has_reported_is_node_behind(make_source):
    async with running(History(latest=100)) as [node]:
        source = make_source(node)
        await source.tip()
        with pytest.raises(NodeRange) as caught:
            await pages_of(source, 101, 101)
    assert (caught.value.failure, caught.value.meaning, caught.value.latest) == ("node_behind", "future", 100)


async def test_lagging_replica_is_rotated_away_from(make_source):
    ahead, behind = History([event(100)], latest=100), History(latest=97)
    async with running(ahead, behind) as [first, second]:
        source = make_source(first, second)
        await source.tip()
        ahead.faults["getEvents", 1] = Answer(status=503)
        assert ids(await pages_of(source, 99, 100)) == [event_id(100)]
        assert source.status.failures == {"overloaded": 1, "node_behind": 1}


async def test_lagging_replica_alone_is_node_behind(make_source):
    history = History(latest=100)
    async with running(history) as [node]:
        source = make_source(node)
        await source.tip()
        history.latest = 95
        with pytest.raises(NodeRange) as caught:
            await pages_of(source, 98, 100)
    assert (caught.value.failure, caught.value.meaning) == ("node_behind", "lagging")


async def test_range_that_ends_far_below_may_be_a_reset(make_source):
    async with running(History(latest=20)) as [node]:
        with pytest.raises(NodeRange) as caught:
            await pages_of(make_source(node), 5000, 5001)
    assert caught.value.failure == "network_reset"
    assert (caught.value.meaning, caught.value.oldest, caught.value.latest) == ("reset", 1, 20)


async def test_object_valued_error_data_tells_the_range_too(make_source):
    history = History()
    history.faults["getEvents"] = Answer(
        error={
            "code": -32602,
            "message": "ledger out of range",
            "data": {
                "reason": "ledger_out_of_range",
                "missingLedger": 5,
                "oldestLedger": 50,
                "latestLedger": 100,
            },
        }
    )
    async with running(history) as [node]:
        with pytest.raises(HistoryPruned) as caught:
            await pages_of(make_source(node), 5, 60)
    assert (caught.value.oldest, caught.value.latest) == (50, 100)


async def test_prune_in_the_middle_of_a_walk_is_history_lost(make_source):
    history = History([event(n) for n in range(5, 30)])
    history.faults["getEvents", 2] = lambda: out_of_range(60, 160)
    async with running(history) as [node]:
        got = []
        with pytest.raises(HistoryPruned):
            await pages_of(make_source(node, page_limit=4), 1, 100, into=got)
    assert ids(got) == [event_id(n) for n in range(5, 9)]


async def test_trim_between_range_check_and_query_is_noticed(make_source):
    history = History([event(50), event(60)], oldest=50)
    answer = history.getEvents

    def trimmed(params):
        reply = answer(params)  # the range check saw ledger 50
        reply["events"] = [e for e in reply["events"] if e["ledger"] > 50]  # the query no longer did
        history.oldest = 51
        return reply

    history.getEvents = trimmed
    async with running(history) as [node]:
        with pytest.raises(HistoryPruned) as caught:
            await pages_of(make_source(node), 50, 100)
    assert (caught.value.requested, caught.value.oldest) == (50, 51)
