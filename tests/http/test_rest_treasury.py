"""Treasuries over the wire, against sums over what GET /api/streams says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from planted import plant, state
from story import ALICE, BOB, CAROL, FIRST, GENESIS_S, SECOND, account, batch, created, event

from fluxora.protocol.streams import StreamKind, StreamState, StreamStatus
from fluxora.storage import portfolio

STATUSES = ("active", "paused", "completed", "cancelled")
SUMS = {
    "deposited": "depositAmount",
    "streamed": "streamedAmount",
    "withdrawn": "withdrawnAmount",
    "withdrawable": "withdrawableAmount",
    "remaining": "remainingAmount",
}


def states(seed: int, count: int, kinds: tuple[StreamKind, ...] = tuple(StreamKind)) -> Iterator[StreamState]:
    rng = random.Random(seed)
    for _ in range(count):
        start = GENESIS_S + rng.randrange(300)
        cliff = start + rng.choice([0, 0, rng.randrange(200)])
        sender, recipient = rng.sample([ALICE, BOB, CAROL], 2)
        yield state(
            sender=sender,
            recipient=recipient,
            start_time=start,
            cliff_time=cliff,
            checkpointed_at=start,
            end_time=cliff + rng.randrange(1, 600),
            deposit_amount=rng.randrange(1, 10**12),
            rate_per_second=rng.randrange(1, 10**9),
            withdrawn_amount=rng.randrange(1000),
            kind=rng.choice(kinds),
            status=rng.choice(list(StreamStatus)),
        )


@pytest.fixture
async def server(start, store):
    await plant(store, states(1, 40))
    await plant(store, states(2, 25), contract_id=SECOND, first=101)
    await plant(store, states(3, 15, (StreamKind.LINEAR,)), contract_id=None, first=201)
    await plant(store, [state(end_time=0, recipient=CAROL)], contract_id=None, first=301)
    return await start(store=store, clock=lambda: GENESIS_S + 250.75)


async def listed(client, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await client.get(f"/api/streams?limit=100&{query}{cursor}")).json()
        found += page["streams"]
        if not page["hasMore"]:
            return found
        cursor = f"&cursor={page['nextCursor']}"


def flowing(now: dict[str, Any], later: dict[str, Any]) -> bool:
    """Past its start and cliff, the stream has streamed more a second later."""
    past = now["asOf"] >= max(now["startTime"], now["cliffTime"])
    return past and Fraction(later["streamedAmount"]) > Fraction(now["streamedAmount"])


def added_up(now: list[dict[str, Any]], later: list[dict[str, Any]], rate_name: str) -> dict[str, Any]:
    rates = [Fraction(one["ratePerSecond"]) for one, then in zip(now, later, strict=True) if flowing(one, then)]
    ends = [one.get("depletionTime") for one in now if one["status"] in ("active", "paused")]
    return {
        **{ours: sum((Fraction(one[theirs]) for one in now), Fraction()) for ours, theirs in SUMS.items()},
        "streams": {status: sum(one["status"] == status for one in now) for status in STATUSES},
        rate_name: sum(rates, Fraction()),
        "nextDepletion": min((end for end in ends if end is not None and end > now[0]["asOf"]), default=None),
    }


def read(totals: dict[str, Any]) -> dict[str, Any]:
    return {name: Fraction(value) if isinstance(value, str) else value for name, value in totals.items()}


@pytest.mark.parametrize("address", [ALICE, BOB, CAROL])
async def test_totals_are_the_sums_of_the_listed_streams(server, address: str):
    async with server.client() as client:
        for second in (0, 150, 250, 431, 5000):
            await compared(client, address, GENESIS_S + second)


async def compared(client, address: str, as_of: int) -> None:
    answer = await client.get(f"/api/treasury/{address}?asOf={as_of}")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["address"], shown["asOf"], shown["position"]) == (address, as_of, "301")
    assert [one["contractId"] for one in shown["contracts"]] == [*sorted([FIRST, SECOND]), None]
    for side, rate_name, member in (
        ("sender", "outflowPerSecond", "asSender"),
        ("recipient", "inflowPerSecond", "asRecipient"),
    ):
        now = await listed(client, f"{side}={address}&asOf={as_of}")
        later = await listed(client, f"{side}={address}&asOf={as_of + 1}")
        assert len(now) >= 20
        for contract in shown["contracts"]:
            assert contract["decimals"] == 7
            group = [one.get("contractId") == contract["contractId"] for one in now]
            wanted = added_up(
                [one for one, ours in zip(now, group, strict=True) if ours],
                [one for one, ours in zip(later, group, strict=True) if ours],
                rate_name,
            )
            assert read(contract[member]) == wanted, (contract["contractId"], member)


async def test_the_members_and_their_forms(start, store, record):
    await record(batch(created(0, ledger=1), event("paused", {"stream_id": 0, "reason": "Operational"}, ledger=2)))
    server = await start(store=store, clock=lambda: GENESIS_S + 250.75)
    none = {
        "deposited": "0.0000000",
        "streamed": "0.0000000",
        "withdrawn": "0.0000000",
        "withdrawable": "0.0000000",
        "remaining": "0.0000000",
        "streams": {"active": 0, "paused": 0, "completed": 0, "cancelled": 0},
        "nextDepletion": None,
    }
    assert (await server.get(f"/api/treasury/{ALICE}")).json() == {
        "address": ALICE,
        "asOf": GENESIS_S + 250,
        "position": "2",
        "contracts": [
            {
                "contractId": FIRST,
                "decimals": 7,
                "asSender": {
                    "deposited": "1000.0000000",
                    "streamed": "250.0000000",
                    "withdrawn": "0.0000000",
                    "withdrawable": "0.0000000",  # while it is paused
                    "remaining": "750.0000000",
                    "streams": {"active": 0, "paused": 1, "completed": 0, "cancelled": 0},
                    "nextDepletion": GENESIS_S + 1000,
                    "outflowPerSecond": "1.0000000",  # a pause does not stop it
                },
                "asRecipient": {**none, "inflowPerSecond": "0.0000000"},
            }
        ],
    }


async def test_an_address_without_streams_has_no_contracts(server):
    stranger = account("stranger")
    answer = await server.get(f"/api/treasury/{stranger}?asOf=7")
    assert answer.status_code == 200
    assert answer.json() == {"address": stranger, "asOf": 7, "position": "301", "contracts": []}


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (f"{ALICE[:-1]}A", ["address"]),
        (ALICE.lower(), ["address"]),
        ("x%00", ["address"]),
        (f"{ALICE}?asOf=-1", ["asOf"]),
        (f"{ALICE}?asOf=253402300800", ["asOf"]),
        (f"{ALICE}?asOf=1&asOf=1", ["asOf"]),
        (f"{ALICE}?limit=5", ["limit"]),
        ("nobody?asOf=x&y=1", ["address", "asOf", "y"]),
    ],
)
async def test_what_is_wrong_is_named_in_one_answer(server, path: str, wrong: list[str]):
    answer = await server.get(f"/api/treasury/{path}")
    assert (answer.status_code, answer.json()["error"]) == (400, "VALIDATION_ERROR")
    assert sorted(detail["field"] for detail in answer.json()["details"]) == wrong


async def test_a_portfolio_that_cannot_be_added_up_in_time_is_503_and_says_so(server, monkeypatch):
    monkeypatch.setattr(portfolio, "BUDGET_S", 0.0)
    answer = await server.get(f"/api/treasury/{ALICE}")
    assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
    assert "too many streams" in answer.json()["message"]
    assert "retry-after" in answer.headers
