"""The server that generated requests are thrown at: the whole runtime, every route open, a few streams of a contract.

Says its port once it serves and runs until its input ends. Its log goes to standard error.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Network
from typing import Any

import httpx
import msgspec
import trio

import fluxora
from bench.child import say
from bench.server_process import CONTRACT, GENESIS_S, LEDGER_S, LIFETIME_S, UNREACHED, account
from fluxora import logs
from fluxora.config import (
    AccessConfig,
    Config,
    Contract,
    HttpConfig,
    LimitConfig,
    SourceConfig,
    StorageConfig,
    WebhookConfig,
)
from fluxora.protocol.api_keys import ApiKey, parse_entry

PEOPLE = 3
STREAMS = 8
START_S = 60.0
TOKEN = "the worker's token, of these tests"
LIMITS = LimitConfig(
    anonymous_read=UNREACHED, anonymous_write=UNREACHED, key=UNREACHED, admin=UNREACHED
)  # on, so that their headers are there
INGEST = "/internal/indexer/contract-events"


class Task(msgspec.Struct, kw_only=True):
    """What to serve from where; `admin_key` is the entry of a key with the scope admin."""

    database_url: str
    admin_key: str


class Serving(msgspec.Struct, kw_only=True):
    """Where it serves."""

    port: int


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("warning", human=False)
    trio.run(_serve, task)


async def _serve(task: Task) -> None:
    async with fluxora.open_runtime(_config(task.database_url, parse_entry(task.admin_key))) as runtime:
        with trio.fail_after(START_S):
            await _plant(runtime.url)
        say(Serving(port=runtime.port))
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def _plant(url: str) -> None:
    """Push the streams, once the pipeline takes them."""
    async with httpx.AsyncClient(base_url=url, timeout=START_S) as client:
        while True:
            answer = await client.post(INGEST, json=batch(), headers={"x-indexer-worker-token": TOKEN})
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            await trio.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()


def _config(database_url: str, key: ApiKey) -> Config:
    return Config(
        contracts=(Contract(id=CONTRACT),),
        storage=StorageConfig(database_url=database_url),
        source=SourceConfig(kind="push"),
        http=HttpConfig(
            port=0,
            trusted_proxies=(IPv4Network("127.0.0.1/32"),),
            access=AccessConfig(api_keys=(key,)),
            limits=LIMITS,
            indexer_worker_token=TOKEN,
        ),
        webhooks=WebhookConfig(allowed_networks=(IPv4Network("127.0.0.0/8"),)),
    )


def stream_id(number: int) -> str:
    """What stream `number` of the contract is called."""
    return f"stream-{CONTRACT[:12].lower()}-{number}"


def batch() -> dict[str, Any]:
    """The creation of every stream, as a worker pushes it."""
    return {"events": [_event(number) for number in range(1, STREAMS + 1)]}


def created(number: int) -> dict[str, Any]:
    """What the contract says when it creates stream `number`."""
    start = GENESIS_S + number * LEDGER_S
    return {
        "stream_id": number,
        "sender": account(number % PEOPLE),
        "recipient": account((number + 1) % PEOPLE),
        "deposit_amount": str(10**6 * LIFETIME_S + number),
        "rate_per_second": str(10**6),
        "start_time": start,
        "cliff_time": start,
        "end_time": start + LIFETIME_S,
        "withdraw_dust_threshold": "0",
        "memo": "payroll",
        "metadata": None,
    }


def _event(number: int) -> dict[str, Any]:
    ledger = number
    return {
        "eventId": f"{(ledger << 32) + (1 << 12):019d}-0000000000",
        "ledger": ledger,
        "ledgerHash": f"{ledger:064x}",
        "contractId": CONTRACT,
        "topic": "created",
        "txHash": f"{number:064x}",
        "txIndex": 1,
        "operationIndex": 0,
        "eventIndex": 0,
        "happenedAt": "2026-07-25T17:00:00Z",
        "payload": created(number),
    }


if __name__ == "__main__":
    main()
