"""A rollback of thousands of events is told in rows that each receiver of webhooks takes."""

from __future__ import annotations

import json
from collections import Counter

from chain_script import check_log
from hooked import claim, endpoint, enlisted, opened
from scripted import batch, created, event, query, withdrew

from fluxora.config import StorageConfig
from fluxora.protocol.messages import encode_event
from fluxora.protocol.signing import Secret, headers
from fluxora.webhooks import MAX_BODY_BYTES, verify

MANY = 4_001
METADATA = {f"key-{number}": "\N{SNOWMAN}" * 60 for number in range(100)}


async def test_each_body_is_one_that_receivers_take_and_together_they_name_everything(
    storage_config: StorageConfig,
) -> None:
    secret = Secret.from_bytes(bytes(32))
    async with opened(storage_config) as (store, lease):
        await endpoint(store, max_in_flight=1_000, events=("stream.reverted",))
        await store.append([batch([created(10, 0, 1, metadata=METADATA)], 10)], lease=lease.number)
        withdrawals = [withdrew(11 + index // 100, index % 100, 1, 1) for index in range(MANY)]
        others = [event(60 + index // 100, index % 100, "gl_pause", paused=True) for index in range(2_001)]
        done = await store.append([batch([*withdrawals, *others], 90)], lease=lease.number)
        undone = {row.event_id for row in done.events}
        assert len(undone) == MANY + 2_001
        rolled = await store.append([batch((), rollback_to=10)], lease=lease.number)
        assert rolled.outcomes[0].rolled_back == MANY + 2_001
        await check_log(store.url)

        told: Counter[str] = Counter()
        await enlisted(store, "w")
        for due in (await claim(store)).deliveries:
            body = encode_event(due.event)
            signed = headers(due.id, 1_710_000_000, due.event.event, body, [secret])
            payload = verify(body, signed, secret=secret.reveal(), now=1_710_000_000).json()["payload"]
            told.update(payload["reverts"])
            if due.event.stream_id is not None:
                assert payload["stream"]["withdrawnAmount"] == "0.0000000"
                assert payload["stream"]["metadata"] == METADATA
        assert told == Counter(undone)
        [kept] = await query(store.url, "SELECT position FROM streams")
        last_of_stream = max(row.position for row in rolled.events if row.stream_id is not None)
        assert kept["position"] == last_of_stream
        assert max(len(json.loads(row.payload)["reverts"]) for row in rolled.events) < MANY
        assert max(len(encode_event(row)) for row in rolled.events) <= MAX_BODY_BYTES
