from __future__ import annotations

import pytest
from story import ALICE, CAROL, FIRST, GENESIS_S, SECOND, batch, created, event, stream

from fluxora.http import events
from fluxora.protocol.chain import LedgerBatch
from fluxora.storage.records import EventQuery


@pytest.fixture
async def server(start, store, record):
    await record(
        batch(
            created(0, ledger=10),
            created(1, ledger=10, index=1),
            created(0, ledger=11, of=SECOND),
            event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=12),
            event("withdrew", {"stream_id": 1, "recipient": CAROL, "amount": "25000000"}, ledger=12, index=1),
            event("gl_pause", {"paused": True}, ledger=13),
            event("cancelled", {"stream_id": 1}, ledger=14),
        )
    )
    return await start(store=store)


def positions(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["position"] for item in answer.json()["events"]]


async def test_the_log_is_shown_in_position_order_with_its_causes(server):
    page = (await server.get("/api/events")).json()
    assert [(e["position"], e["event"], e["action"], e["streamId"], e["ledger"]) for e in page["events"]] == [
        ("1", "stream.created", "created", stream(0), 10),
        ("2", "stream.created", "created", stream(1), 10),
        ("3", "stream.created", "created", stream(0, SECOND), 11),
        ("4", "stream.updated", "paused", stream(0), 12),
        ("5", "stream.updated", "withdrew", stream(1), 12),
        ("6", "contract.updated", "gl_pause", None, 13),
        ("7", "stream.cancelled", "cancelled", stream(1), 14),
    ]
    assert (page["hasMore"], page["nextAfter"], page["position"]) == (False, "7", "7")
    withdrawal = page["events"][4]["payload"]
    assert (withdrawal["withdrawnAmount"], withdrawal["change"]["amount"]) == ("2.5000000", "2.5000000")
    assert withdrawal["asOf"] == GENESIS_S + 12


@pytest.mark.parametrize("path", ["/api/events?limit=1000", f"/api/streams/{stream(0)}/events?limit=1000"])
async def test_a_page_ends_where_its_payloads_are_large(start, store, record, path):
    """So that one answer has no more in memory however large the events are; `hasMore` says that there are more."""
    large = [event("paused", {"stream_id": 0, "reason": "x" * 60_000}, ledger=11 + n) for n in range(150)]
    for first in range(0, 150, 30):
        await record(batch(*([] if first else [created(0, ledger=10)]), *large[first : first + 30]))
    server = await start(store=store)
    after, found, pages = "0", [], []
    while True:
        answer = await server.get(f"{path}&after={after}")
        page = answer.json()
        found += positions(answer)
        pages.append(len(answer.content))
        after = page["nextAfter"]
        if not page["hasMore"]:
            break
        assert page["nextAfter"] == found[-1]
    assert found == [str(nth) for nth in range(1, 152)]
    largest = max(len(one.payload) for one in await store.events(EventQuery(limit=200)))
    assert all(events.PAGE_BYTES <= size < events.PAGE_BYTES + 2 * largest for size in pages[:-1])
    assert len(pages) > 2


async def test_payloads_go_out_as_they_are_stored(server, store):
    text = (await server.get("/api/events")).text
    for stored in await store.events(EventQuery(after=0, limit=100)):
        assert stored.payload.decode() in text


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (f"streamId={stream(0)}", ["1", "4"]),
        ("event=stream.created", ["1", "2", "3"]),
        ("event=stream.reverted", []),
        (f"contractId={SECOND}", ["3"]),
        ("ledgerFrom=11&ledgerTo=12", ["3", "4", "5"]),
        ("ledgerFrom=12&ledgerTo=12", ["4", "5"]),
        ("ledgerFrom=14", ["7"]),
        ("ledgerTo=10", ["1", "2"]),
        (f"event=stream.updated&streamId={stream(1)}", ["5"]),
        ("after=5", ["6", "7"]),
        ("after=7", []),
        ("after=9223372036854775807", []),
        (f"after=1&contractId={FIRST}&ledgerTo=12", ["2", "4", "5"]),
    ],
)
async def test_filters_narrow_the_log(server, query, wanted):
    assert positions(await server.get(f"/api/events?{query}")) == wanted


@pytest.mark.parametrize("query", ["", f"&streamId={stream(1)}", "&ledgerFrom=11&ledgerTo=13"])
async def test_pages_of_every_size_show_each_event_once(server, query):
    async with server.client() as client:
        wanted = positions(await client.get(f"/api/events?limit=1000{query}"))
        for limit in range(1, 9):
            seen: list[str] = []
            after, more = "0", True
            while more:
                answer = await client.get(f"/api/events?limit={limit}&after={after}{query}")
                seen += positions(answer)
                after, more = answer.json()["nextAfter"], answer.json()["hasMore"]
                assert len(answer.json()["events"]) == limit or not more
            assert seen == wanted


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("after=-1", {"after"}),
        ("after=9223372036854775808", {"after"}),
        ("limit=1001", {"limit"}),
        ("event=created", {"event"}),
        ("streamId=x", {"streamId"}),
        ("streamId=stream-%00", {"streamId"}),
        (f"contractId={ALICE}", {"contractId"}),
        ("ledgerFrom=5&ledgerTo=4", {"ledgerTo"}),
        ("ledgerFrom=x&ledgerTo=4294967296&sort=1&after=1&after=2", {"ledgerFrom", "ledgerTo", "sort", "after"}),
    ],
)
async def test_wrong_parameters_are_refused_by_name(server, query, wrong):
    answer = await server.get(f"/api/events?{query}")
    assert answer.status_code == 400
    assert {detail["field"] for detail in answer.json()["details"]} == wrong


async def test_one_streams_log_pages_alike(server):
    url = f"/api/streams/{stream(1)}/events"
    page = (await server.get(f"{url}?limit=2")).json()
    assert [e["position"] for e in page["events"]] == ["2", "5"]
    assert (page["hasMore"], page["nextAfter"]) == (True, "5")
    assert positions(await server.get(f"{url}?after=5")) == ["7"]
    assert positions(await server.get(f"{url}?after=7")) == []
    for wrong in ("streamId=x", f"streamId={stream(0)}", "event=stream.created"):
        assert (await server.get(f"{url}?{wrong}")).status_code == 400


async def test_a_stream_that_was_taken_back_keeps_its_log(server, record):
    await record(LedgerBatch(rollback_to=10))
    gone = stream(0, SECOND)
    assert (await server.get(f"/api/streams/{gone}")).status_code == 404
    log = (await server.get(f"/api/streams/{gone}/events")).json()
    assert [e["event"] for e in log["events"]] == ["stream.created", "stream.reverted"]
    assert log["events"][1]["payload"]["reverts"] == [log["events"][0]["eventId"]]
    assert positions(await server.get(f"/api/streams/{gone}/events?after={log['nextAfter']}")) == []


async def test_an_empty_log(start, store):
    server = await start(store=store)
    assert (await server.get("/api/events")).json() == {
        "events": [],
        "hasMore": False,
        "nextAfter": "0",
        "position": "0",
    }
    assert (await server.get("/api/streams")).json()["streams"] == []
