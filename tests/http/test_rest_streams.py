from __future__ import annotations

from decimal import Decimal

import pytest
from story import ALICE, BOB, CAROL, FIRST, GENESIS_S, SECOND, batch, created, event, stream


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["streams"]]


def fields(answer) -> set[str]:
    assert answer.status_code == 400
    assert answer.json()["error"] == "VALIDATION_ERROR"
    return {detail["field"] for detail in answer.json()["details"]}


@pytest.fixture
async def server(start, store, record):
    """Seven streams: 0-4 of the first contract, 0-1 of the second; one paused, one cancelled."""
    await record(
        batch(
            *(created(n, ledger=10 + n) for n in range(3)),
            created(3, ledger=13, sender=BOB, recipient=CAROL),
            created(4, ledger=14, sender=CAROL, recipient=ALICE),
            created(0, ledger=15, of=SECOND),
            created(1, ledger=16, of=SECOND, sender=BOB),
            event("paused", {"stream_id": 1, "reason": "Operational"}, ledger=20),
            event("cancelled", {"stream_id": 2}, ledger=100),
        )
    )
    return await start(store=store, clock=lambda: GENESIS_S + 250.75)


async def test_one_stream_is_shown_as_of_now_and_of_any_second(server):
    now = (await server.get(f"/api/streams/{stream(0)}")).json()
    assert (now["id"], now["origin"], now["contractId"], now["chainStreamId"]) == (stream(0), "chain", FIRST, "0")
    assert (now["sender"], now["recipient"], now["status"], now["kind"]) == (ALICE, BOB, "active", "linear")
    assert now["asOf"] == GENESIS_S + 250
    assert now["streamedAmount"] == now["withdrawableAmount"] == "250.0000000"
    assert now["remainingAmount"] == "750.0000000"
    for as_of, streamed in ((0, 0), (GENESIS_S, 0), (GENESIS_S + 1, 1), (GENESIS_S + 999, 999), (253402300799, 1000)):
        then = (await server.get(f"/api/streams/{stream(0)}?asOf={as_of}")).json()
        assert then["asOf"] == as_of
        assert Decimal(then["streamedAmount"]) == streamed
        assert Decimal(then["streamedAmount"]) + Decimal(then["remainingAmount"]) == 1000


async def test_the_list_shows_the_same_streams_in_creation_order(server):
    answer = await server.get("/api/streams")
    page = answer.json()
    assert ids(answer) == [*(stream(n) for n in range(5)), stream(0, SECOND), stream(1, SECOND)]
    assert (page["hasMore"], page["nextCursor"], page["position"]) == (False, None, "9")
    for shown in page["streams"]:
        assert shown == (await server.get(f"/api/streams/{shown['id']}")).json()


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("status=paused", [1]),
        ("status=cancelled", [2]),
        ("status=completed", []),
        (f"sender={BOB}&contractId={FIRST}", [3]),
        (f"recipient={ALICE}", [4]),
        (f"contractId={FIRST}&order=desc", [4, 3, 2, 1, 0]),
        (f"sender={ALICE}&recipient={BOB}&contractId={FIRST}&status=active", [0]),
        (f"sender={ALICE}&recipient={ALICE}", []),
    ],
)
async def test_filters_narrow_the_list(server, query, numbers):
    assert ids(await server.get(f"/api/streams?{query}")) == [stream(n) for n in numbers]


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("status=sleeping", {"status"}),
        (f"sender={ALICE[:-1]}A", {"sender"}),
        (f"sender={ALICE.lower()}", {"sender"}),
        (f"contractId={ALICE}", {"contractId"}),
        ("limit=0", {"limit"}),
        ("limit=101", {"limit"}),
        ("limit=", {"limit"}),
        ("order=up", {"order"}),
        ("asOf=-1", {"asOf"}),
        ("asOf=253402300800", {"asOf"}),
        ("cursor=zzz", {"cursor"}),
        ("offset=5", {"offset"}),
        ("limit=5&limit=5", {"limit"}),
        ("status=x&limit=x&recipient=x&cursor=x&y=x", {"status", "limit", "recipient", "cursor", "y"}),
    ],
)
async def test_wrong_parameters_are_refused_by_name(server, query, wrong):
    assert fields(await server.get(f"/api/streams?{query}")) == wrong


@pytest.mark.parametrize("query", ["asOf=x", "asOf=1&asOf=1", "limit=1"])
async def test_the_single_stream_is_as_strict(server, query):
    assert fields(await server.get(f"/api/streams/{stream(0)}?{query}")) == {query.partition("=")[0]}


async def test_a_query_that_is_no_text_is_refused(server):
    assert (await server.get("/api/streams?status=%ff")).status_code == 400


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("filters", ["", f"&contractId={FIRST}", f"&sender={ALICE}", f"&recipient={BOB}&status=active"])
async def test_pages_of_every_size_and_order_show_each_stream_once(server, order, filters):
    async with server.client() as client:
        whole = (await client.get(f"/api/streams?limit=100{filters}")).json()["streams"]
        wanted = [item["id"] for item in whole]
        for limit in range(1, 9):
            assert await walk(client, f"/api/streams?limit={limit}&order={order}{filters}", limit) == (
                wanted if order == "asc" else wanted[::-1]
            )


async def walk(client, url: str, limit: int) -> list[str]:
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await client.get(url + cursor)).json()
        seen += [item["id"] for item in page["streams"]]
        assert page["hasMore"] == (page["nextCursor"] is not None)
        if not page["hasMore"]:
            assert len(page["streams"]) <= limit
            return seen
        assert len(page["streams"]) == limit
        cursor = f"&cursor={page['nextCursor']}"


async def test_a_cursor_is_bound_to_its_filters_but_not_to_the_page_size(server):
    cursor = (await server.get("/api/streams?limit=2&status=active")).json()["nextCursor"]
    assert len(ids(await server.get(f"/api/streams?limit=1&status=active&asOf=5&cursor={cursor}"))) == 1
    for other in ("", "status=paused&", "status=active&order=desc&", f"status=active&sender={ALICE}&"):
        assert fields(await server.get(f"/api/streams?{other}cursor={cursor}")) == {"cursor"}


@pytest.mark.parametrize("missing", ["stream-none-1", "x", "stream-%00", "stream-" + "a" * 5000, "%ff", "stream-a%2Fb"])
async def test_an_unknown_stream_is_404(server, missing):
    for url in (f"/api/streams/{missing}", f"/api/streams/{missing}/events"):
        answer = await server.get(url)
        assert (answer.status_code, answer.json()["error"]) == (404, "NOT_FOUND")


async def test_the_etag_names_the_state_and_the_second(server, record):
    url = f"/api/streams/{stream(0)}?asOf={GENESIS_S + 500}"
    first = await server.get(url)
    etag = first.headers["etag"]
    assert etag.startswith('W/"')
    for sent in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        same = await server.get(url, headers={"if-none-match": sent})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        assert "content-length" not in same.headers
    other_second = await server.get(f"/api/streams/{stream(0)}?asOf={GENESIS_S + 501}", headers={"if-none-match": etag})
    assert other_second.status_code == 200
    await record(batch(event("paused", {"stream_id": 0, "reason": "Emergency"}, ledger=200)))
    changed = await server.get(url, headers={"if-none-match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "paused")


async def test_head_is_get_without_its_body(server):
    for url in ("/api/streams", f"/api/streams/{stream(0)}", "/api/events", "/", "/health", "/health/ready"):
        got, head = await server.get(url), await server.request("HEAD", url)
        assert (head.status_code, head.content) == (got.status_code, b"")
        if "ready" not in url:  # its latency differs
            assert head.headers["content-length"] == got.headers["content-length"]
        assert head.headers["content-type"] == "application/json"
