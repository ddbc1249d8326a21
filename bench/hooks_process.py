"""The runtime of the webhook benchmark in its own process: says its port, and delivers until its input ends."""

from __future__ import annotations

import sys
from ipaddress import ip_network

import msgspec
import trio

import fluxora
from bench.child import say
from fluxora import logs
from fluxora.config import Config, HttpConfig, LimitConfig, StorageConfig, WebhookConfig

LOOPBACK = (ip_network("127.0.0.0/8"),)


class Task(msgspec.Struct, kw_only=True):
    """What to deliver from, and how much of it at a time."""

    database_url: str
    concurrency: int


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("info", human=False)
    trio.run(_deliver, task)


async def _deliver(task: Task) -> None:
    config = Config(
        storage=StorageConfig(database_url=task.database_url),
        http=HttpConfig(port=0, limits=LimitConfig(enabled=False)),
        webhooks=WebhookConfig(allowed_networks=LOOPBACK, concurrency=task.concurrency),
    )
    async with fluxora.open_runtime(config) as runtime:
        say({"port": runtime.port})
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    main()
