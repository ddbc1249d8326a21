"""The contract's own test runs through the whole system: over a Stellar RPC and over the ingest endpoint.

Each case has its own contract and its own ledgers. What REST and the tables say at the end must be the contract's own
storage; every event must be one row of the log; and feeding all of it again must change nothing.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import trio
from stellar_sdk import StrKey

import fluxora
from fluxora.localnet import Chain, EmittedEvent, Faults, serve_rpc, stream_entry
from fluxora.runtime import Runtime

TOKEN = "a token of more than 16 characters"
STATUSES = ("active", "paused", "completed", "cancelled")
LATEST_TIME = 253_402_300_799  # the end of the year 9999; some cases test the end of u64
BATCH = 200  # events in a request; about 200 KiB


@pytest.fixture(scope="module")
def cases(fixtures_dir: Path) -> list[dict[str, Any]]:
    with gzip.open(fixtures_dir / "contract_cases.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def contract_of(case: dict[str, Any]) -> str:
    return StrKey.encode_contract(hashlib.sha256(case["name"].encode()).digest())


def build_chain(cases: list[dict[str, Any]]) -> tuple[Chain, dict[str, tuple[int, int]]]:
    """A chain with a ledger for each call of each case; and the first and last ledger of each case."""
    chain = Chain(1, first_ledger=10, retention=None)
    spans = {}
    for case in cases:
        first = chain.next_sequence
        cancelled = [stream["cancelled_at"] for stream in case["final_streams"] if stream.get("cancelled_at")]
        calls: dict[int, list[EmittedEvent]] = {}
        for event in case["events"]:
            calls.setdefault(event["call"], []).append(
                EmittedEvent(
                    contract_id=contract_of(case),
                    topics=tuple(b64decode(topic) for topic in event["topic"]),
                    value=b64decode(event["value"]),
                    call=event["call"],
                )
            )
        cancels = {event["call"] for event in case["events"] if event["fn"] == "cancel_stream"}
        entries = {}
        for stream in case["final_streams"]:
            fields = {
                name: int(value) if str(value).isdigit() else value
                for name, value in stream.items()
                if name != "status_name"
            }
            key, entry = stream_entry(contract_of(case), fields)
            entries[key] = entry
        for number, call in enumerate(sorted(calls)):
            last = number == len(calls) - 1
            # A cancellation is dated by the contract's storage, the rest by the end of the run.
            at = cancelled.pop(0) if call in cancels and cancelled else case["timestamp"]
            closed_at = min(int(at), LATEST_TIME)
            chain.close_ledger(calls[call], closed_at=closed_at, entries=entries if last else {})
        spans[case["name"]] = (first, chain.latest.sequence)
    return chain, spans


def config(cases: list[dict[str, Any]], url: str, rpc_url: str, kind: Any, tmp_path: Path) -> fluxora.Config:
    return fluxora.Config(
        contracts=tuple(fluxora.Contract(id=contract_of(case)) for case in cases),
        storage=fluxora.StorageConfig(database_url=url, data_dir=tmp_path, pool_size=4),
        http=fluxora.HttpConfig(port=0, indexer_worker_token=TOKEN, limits=fluxora.LimitConfig(enabled=False)),
        source=fluxora.SourceConfig(
            kind=kind,
            rpc_urls=(rpc_url,),
            network_passphrase=Chain(1).passphrase,
            header_every=1,
            poll_interval_s=0.02,
        ),
        pipeline=fluxora.PipelineConfig(entry_reads_per_minute=6000),
    )


def sql(url: str, text: str) -> list[Any]:
    async def ask() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(text)
        finally:
            await connection.close()

    return asyncio.run(ask())


async def until_settled(url: str, position: int) -> None:
    """Until the log has grown to `position` at least and every wanted ledger entry has been read."""
    query = "SELECT position, (SELECT count(*) FROM entry_wants) AS wanted FROM log_head"
    with trio.fail_after(120):
        while True:
            [row] = await trio.to_thread.run_sync(sql, url, query)
            if row["position"] >= position and row["wanted"] == 0:
                return
            await trio.sleep(0.05)


async def assert_final(rt: Runtime, url: str, cases: list[dict[str, Any]]) -> None:
    async with httpx.AsyncClient(base_url=rt.url) as client:
        for case in cases:
            for expected in case["final_streams"]:
                path = f"/api/streams/stream-{contract_of(case)[:12].lower()}-{expected['stream_id']}"
                shown = (await client.get(path)).raise_for_status().json()
                assert {
                    "sender": shown["sender"],
                    "recipient": shown["recipient"],
                    "deposit_amount": shown["depositAmount"].replace(".", "").lstrip("0") or "0",
                    "rate_per_second": shown["ratePerSecond"].replace(".", "").lstrip("0") or "0",
                    "withdrawn_amount": shown["withdrawnAmount"].replace(".", "").lstrip("0") or "0",
                    "start_time": str(shown["startTime"]),
                    "cliff_time": str(shown["cliffTime"]),
                    "end_time": str(shown["endTime"]),
                    "status": str(STATUSES.index(shown["status"])),
                } == {
                    name: expected[name]
                    for name in (
                        "sender",
                        "recipient",
                        "deposit_amount",
                        "rate_per_second",
                        "withdrawn_amount",
                        "start_time",
                        "cliff_time",
                        "end_time",
                        "status",
                    )
                }, case["name"]
    columns = (
        "sender, recipient, deposit_amount::text, rate_per_second::text, withdrawn_amount::text, "
        "start_time::text, cliff_time::text, end_time::text, status"
    )
    rows = await trio.to_thread.run_sync(
        sql, url, f"SELECT contract_id, chain_stream_id::text AS stream_id, {columns} FROM streams"
    )
    stored = {(row["contract_id"], row["stream_id"]): row for row in rows}
    for case in cases:
        for expected in case["final_streams"]:
            row = stored[contract_of(case), expected["stream_id"]]
            for name in set(row.keys()) - {"contract_id", "status"}:
                assert row[name] == expected[name], (case["name"], name)
            assert row["status"] == STATUSES[int(expected["status"])], case["name"]


async def assert_one_row_per_event(url: str, cases: list[dict[str, Any]]) -> list[Any]:
    rows = await trio.to_thread.run_sync(
        sql,
        url,
        "SELECT position, event_id, contract_id, action, payload::text AS payload FROM events ORDER BY position",
    )
    assert [row["position"] for row in rows] == list(range(1, len(rows) + 1))
    assert len({row["event_id"] for row in rows}) == len(rows)
    for case in cases:
        mine = [row for row in rows if row["contract_id"] == contract_of(case) and row["action"] != "corrected"]
        assert len(mine) == len(case["events"]), case["name"]
    # The oldest shape of `created` does not tell the parties, and whether a rate change checkpoints is no event's word.
    oldest = {contract_of(case) for case in cases if case["schema"] == "v0"}
    rates = {contract_of(c) for c in cases if any(e["fn"] == "update_rate_per_second" for e in c["events"])}
    corrected = {row["contract_id"] for row in rows if row["action"] == "corrected"}
    assert oldest <= corrected <= oldest | rates
    return rows


def pushed_events(chain: Chain, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chain's events in the form of the ingest endpoint, as raw XDR."""
    events = []
    for ledger in chain.ledgers(chain.oldest.sequence, chain.latest.sequence):
        for text in ledger.events().rendered:
            event = json.loads(text)
            events.append(
                {
                    "eventId": event["id"],
                    "ledger": event["ledger"],
                    "ledgerHash": ledger.hash.hex(),
                    "contractId": event["contractId"],
                    "topicXdr": event["topic"],
                    "valueXdr": event["value"],
                    "txHash": event["txHash"],
                    "txIndex": event["transactionIndex"],
                    "operationIndex": event["operationIndex"],
                    "eventIndex": int(event["id"].partition("-")[2]),
                    "happenedAt": event["ledgerClosedAt"],
                }
            )
    assert len(events) == sum(len(case["events"]) for case in cases)
    return events


async def push(rt: Runtime, events: list[dict[str, Any]]) -> tuple[int, int]:
    inserted = duplicates = 0
    async with httpx.AsyncClient(base_url=rt.url, headers={"x-indexer-worker-token": TOKEN}, timeout=60) as client:
        for start in range(0, len(events), BATCH):
            with trio.fail_after(60):
                while True:
                    body = {"events": events[start : start + BATCH]}
                    answer = await client.post("/internal/indexer/contract-events", json=body)
                    if answer.status_code != 503:  # the pipeline is taking its lease
                        break
                    await trio.sleep(0.05)
            outcome = answer.raise_for_status().json()
            assert outcome["outcome"] == "persisted"
            inserted += outcome["insertedCount"]
            duplicates += outcome["duplicateCount"]
    return inserted, duplicates


async def test_all_cases_over_rpc(cases: list[dict[str, Any]], postgres_url: str, tmp_path: Path) -> None:
    chain, _ = build_chain(cases)
    total = sum(len(case["events"]) for case in cases)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda task_status: serve_rpc(chain, Faults(), task_status=task_status))
        settings = config(cases, postgres_url, f"http://127.0.0.1:{port}", "rpc", tmp_path)
        async with fluxora.open_runtime(settings) as rt:
            await until_settled(postgres_url, total)
            await assert_final(rt, postgres_url, cases)
        rows = await assert_one_row_per_event(postgres_url, cases)
        # Again from the first ledger: everything is known.
        await trio.to_thread.run_sync(sql, postgres_url, "UPDATE ingest_cursor SET complete_through = NULL")
        async with fluxora.open_runtime(settings) as rt:
            with trio.fail_after(120):
                while rt.health().indexer.last_ledger != chain.latest.sequence:
                    await trio.sleep(0.05)
            await until_settled(postgres_url, total)
            await assert_final(rt, postgres_url, cases)
        assert await assert_one_row_per_event(postgres_url, cases) == rows
        nursery.cancel_scope.cancel()


async def test_all_cases_over_the_ingest_endpoint(
    cases: list[dict[str, Any]], postgres_url: str, tmp_path: Path
) -> None:
    chain, _ = build_chain(cases)
    total = sum(len(case["events"]) for case in cases)
    events = pushed_events(chain, cases)
    async with trio.open_nursery() as nursery:
        # Beside the push source the RPC is asked for ledger entries alone.
        port = await nursery.start(lambda task_status: serve_rpc(chain, Faults(), task_status=task_status))
        settings = config(cases, postgres_url, f"http://127.0.0.1:{port}", "push", tmp_path)
        async with fluxora.open_runtime(settings) as rt:
            assert await push(rt, events) == (total, 0)
            await until_settled(postgres_url, total)
            await assert_final(rt, postgres_url, cases)
            rows = await assert_one_row_per_event(postgres_url, cases)
            assert await push(rt, events) == (0, total)
        async with fluxora.open_runtime(settings) as rt:
            assert await push(rt, events) == (0, total)
            await assert_final(rt, postgres_url, cases)
        assert await assert_one_row_per_event(postgres_url, cases) == rows
        nursery.cancel_scope.cancel()
