"""The baseline of the webhook benchmark: the same signed POSTs over the same client, without a database.

A number of tasks send one event after the other, each under an id of its own, until all were sent; then it says how
long that took and how many were answered as they should be.
"""

from __future__ import annotations

import sys
import time

import msgspec
import trio

from bench.child import say
from bench.hooks_process import LOOPBACK
from fluxora import logs
from fluxora.actors.webhook_sender import WebhookSender, sign
from fluxora.config import WebhookConfig
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.signing import Secret, delivery_id


class Task(msgspec.Struct, kw_only=True):
    """How many to send where, and how many at a time."""

    url: str
    secret: str
    payload: str
    deliveries: int
    concurrency: int


class Done(msgspec.Struct, kw_only=True):
    """How it went."""

    seconds: float
    delivered: int


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("warning", human=False)
    say(trio.run(_send_all, task))


async def _send_all(task: Task) -> Done:
    sender = WebhookSender(WebhookConfig(allowed_networks=LOOPBACK, concurrency=task.concurrency))
    secrets = (Secret.parse(task.secret),)
    payload, positions = task.payload.encode(), iter(range(1, task.deliveries + 1))
    delivered = 0

    async def send() -> None:
        nonlocal delivered
        for position in positions:
            now_ms = time.time_ns() // 1_000_000
            event = LogEvent(
                position, f"bare-{position}", "stream.created", "created", "stream-0", None, None, None, now_ms, payload
            )
            message = sign(delivery_id("bare", position, event.event_id), event, secrets, now_s=now_ms // 1000)
            sent = await sender.send(task.url, message)
            delivered += sent.delivered

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(task.concurrency):
            nursery.start_soon(send)
    seconds = time.perf_counter() - began
    sender.close()
    return Done(seconds=seconds, delivered=delivered)


if __name__ == "__main__":
    main()
