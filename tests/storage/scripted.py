"""Contract events for the store's tests, made through the decoder as the ingest endpoint makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
from stellar_sdk import StrKey

from fluxora.protocol import contract
from fluxora.protocol.chain import LedgerBatch, LedgerHeader
from fluxora.protocol.contract import ContractEvent
from fluxora.storage.bridge import open_bridge

CONTRACT = StrKey.encode_contract(b"\x07" * 32)
OTHER_CONTRACT = StrKey.encode_contract(b"\x09" * 32)
ACCOUNTS = [StrKey.encode_ed25519_public_key(bytes([n]) * 32) for n in range(1, 9)]
DECIMALS = {CONTRACT: 7, OTHER_CONTRACT: 7}
GENESIS_S = 1_700_000_000
DEPOSIT = 10**12


def close_time(ledger: int) -> int:
    return GENESIS_S + ledger * 5


def event(ledger: int, index: int, topic: str, contract_id: str = CONTRACT, **payload: Any) -> ContractEvent:
    return contract.decode_named(
        id=f"{(ledger << 32) | (index << 12):019d}-{0:010d}",
        ledger=ledger,
        closed_at=close_time(ledger),
        contract_id=contract_id,
        tx_hash=hashlib.sha256(f"{ledger}/{index}/{topic}".encode()).hexdigest(),
        topic=topic,
        payload=payload,
    )


def created(ledger: int, index: int, stream_id: int, **fields: Any) -> ContractEvent:
    start = close_time(ledger)
    return event(
        ledger,
        index,
        "created",
        **{
            "stream_id": stream_id,
            "sender": ACCOUNTS[0],
            "recipient": ACCOUNTS[1],
            "deposit_amount": str(DEPOSIT),
            "rate_per_second": "1000000",
            "start_time": start,
            "cliff_time": start,
            "end_time": start + 1_000_000,
            "withdraw_dust_threshold": "0",
            "memo": None,
            "metadata": None,
            **fields,
        },
    )


def withdrew(ledger: int, index: int, stream_id: int, amount: int = 1000, **fields: Any) -> ContractEvent:
    return event(
        ledger, index, "withdrew", **{"stream_id": stream_id, "recipient": ACCOUNTS[1], "amount": str(amount), **fields}
    )


def header(ledger: int, fork: int = 0) -> LedgerHeader:
    return LedgerHeader(ledger, hashlib.sha256(f"{ledger}/{fork}".encode()).hexdigest(), None, close_time(ledger))


def batch(events: Iterable[ContractEvent], through: int | None = None, **fields: Any) -> LedgerBatch:
    return LedgerBatch(events=tuple(events), complete_through=through, **fields)


async def query(url: str, text: str, *args: Any) -> list[asyncpg.Record]:
    """One statement on a connection of its own."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(text, *args)
        finally:
            await connection.close()

    async with open_bridge() as bridge:
        return await bridge.run(run, deadline_s=60)


async def execute(url: str, statements: Sequence[str]) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async with open_bridge() as bridge:
        await bridge.run(run, deadline_s=600)


async def wipe(url: str) -> None:
    """As after the migration."""
    await execute(
        url,
        [
            "TRUNCATE events, streams, ledgers, log_runs, entry_wants, idempotency_keys",
            "UPDATE log_head SET position = 0, run_position = NULL, run_ledger = NULL",
            "UPDATE ingest_cursor SET epoch = 1, complete_through = NULL, newest_event_id = ''",
        ],
    )
