"""The server of the REST benchmarks and of the load profiles: the whole runtime over a database with streams in it.

Says its port once it serves and runs until its input ends; a line of it is answered with the CPU seconds of each actor,
where they are counted. Its access log (standard error) is on, at level info.
"""

from __future__ import annotations

import hashlib
import sys
from ipaddress import ip_network
from typing import Any

import msgspec
import trio
from stellar_sdk import StrKey

import fluxora
from bench.actor_clock import ActorClock
from bench.child import say
from fluxora import logs
from fluxora.config import AccessConfig, Config, HttpConfig, LimitConfig, SourceConfig, StorageConfig, WebhookConfig
from fluxora.protocol import api_keys, contract
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent
from fluxora.storage.migrate import migrate
from fluxora.storage.store import open_store

CONTRACT = StrKey.encode_contract(bytes(range(32)))
GENESIS_S = 1_785_000_000
LEDGER_S = 5
LIFETIME_S = 365 * 86_400  # none of the streams ends while it is measured
PER_LEDGER = 200
PEOPLE = 64
UNREACHED = 1_000_000_000  # requests a minute: the rate limits are on, and nothing meets them


class Task(msgspec.Struct, kw_only=True):
    """What to serve from where; the bounds are those of HttpConfig, None for its own.

    With a `worker_token` it takes pushed events, and has `sockets` for live events, all from one address. An
    `admin_key` (its entry) may make webhook endpoints on the loopback. `clocked`: the CPU of each actor is counted.
    """

    database_url: str
    streams: int
    read_head_timeout_s: float | None = None
    request_timeout_s: float | None = None
    write_timeout_s: float | None = None
    worker_token: str | None = None
    sockets: int | None = None
    admin_key: str | None = None
    clocked: bool = False


class Serving(msgspec.Struct, kw_only=True):
    """Where it serves."""

    port: int


class Used(msgspec.Struct, kw_only=True):
    """CPU seconds since the start by actor."""

    cpu_s: dict[str, float]


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("info", human=False)
    clock = ActorClock()
    trio.run(_serve, task, clock, instruments=[clock] if task.clocked else [])


async def _serve(task: Task, clock: ActorClock) -> None:
    storage = StorageConfig(database_url=task.database_url)
    await preload(storage, task.streams)
    async with fluxora.open_runtime(_config(task, storage)) as runtime:
        say(Serving(port=runtime.port))
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            say(Used(cpu_s=clock.seconds))


def _config(task: Task, storage: StorageConfig) -> Config:
    bounds: dict[str, Any] = {
        name: value
        for name in ("read_head_timeout_s", "request_timeout_s", "write_timeout_s")
        if (value := getattr(task, name)) is not None
    }
    sockets: dict[str, Any] = (
        {"max_websockets": task.sockets, "max_websockets_per_client": task.sockets} if task.sockets else {}
    )
    return Config(
        storage=storage,
        source=SourceConfig(kind="none" if task.worker_token is None else "push"),
        http=HttpConfig(
            port=0,
            limits=LimitConfig(anonymous_read=UNREACHED, anonymous_write=UNREACHED, key=UNREACHED, admin=UNREACHED),
            indexer_worker_token=task.worker_token,
            access=AccessConfig(api_keys=() if task.admin_key is None else (api_keys.parse_entry(task.admin_key),)),
            **bounds,
            **sockets,
        ),
        webhooks=WebhookConfig(allowed_networks=(ip_network("127.0.0.0/8"),)),
    )


async def preload(storage: StorageConfig, streams: int) -> None:
    """Record the creation of streams 1 to `streams`, as ingest does."""
    async with open_store(storage, decimals={}) as store:
        await migrate(store)
        lease = await store.try_lease()
        assert lease is not None  # nobody else knows the database
        try:
            for first in range(1, streams + 1, PER_LEDGER):
                ledger = 1 + first // PER_LEDGER
                numbers = range(first, min(first + PER_LEDGER, streams + 1))
                events = tuple(_created(ledger, number) for number in numbers)
                await store.append(
                    [LedgerBatch(events=events, headers=(), complete_through=ledger)], lease=lease.number
                )
        finally:
            await lease.aclose()


def _created(ledger: int, number: int) -> ContractEvent:
    start = GENESIS_S + ledger * LEDGER_S
    return contract.decode_named(
        id=f"{(ledger << 32) + (1 << 12):019d}-{number:010d}",
        ledger=ledger,
        closed_at=start,
        contract_id=CONTRACT,
        tx_hash=hashlib.sha256(str(number).encode()).hexdigest(),
        topic="created",
        payload={
            "stream_id": number,
            "sender": account(number % PEOPLE),
            "recipient": account(PEOPLE + number % PEOPLE),
            "deposit_amount": str(10**6 * LIFETIME_S + number),
            "rate_per_second": str(10**6),
            "start_time": start,
            "cliff_time": start,
            "end_time": start + LIFETIME_S,
            "withdraw_dust_threshold": "0",
            "memo": "payroll",
            "metadata": None,
        },
    )


def account(number: int) -> str:
    """The address of person `number`."""
    return StrKey.encode_ed25519_public_key(hashlib.sha256(str(number).encode()).digest())


if __name__ == "__main__":
    main()
