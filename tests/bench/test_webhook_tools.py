"""The processes of the webhook benchmark: what the consumer counts, and what the baseline sends."""

from __future__ import annotations

import time

import httpx

from bench import bare_hooks_process, consumer_process
from bench.child import Child

WITHIN_S = 60.0


def body(at_s: float) -> bytes:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
    return b'{"event":"stream.created","timestamp":"%s.000Z","payload":{}}' % stamp.encode()


def test_the_consumer_tells_doubles_from_deliveries_and_how_old_they_were(tmp_path):
    with Child(consumer_process.__name__, {}, log=tmp_path / "log") as consumer:
        url = f"http://127.0.0.1:{consumer.read(within_s=WITHIN_S)['port']}/hook"
        with httpx.Client() as client:
            for delivery in ("a", "b", "a"):
                answer = client.post(url, headers={"webhook-id": delivery}, content=body(time.time() - 100))
                assert answer.status_code == 204
        seen = consumer.ask({}, within_s=WITHIN_S)
        assert (seen["requests"], seen["distinct"], len(seen["ages_ms"])) == (3, 2, 3)
        assert all(100_000 <= age <= 160_000 for age in seen["ages_ms"])
        assert consumer.ask({}, within_s=WITHIN_S)["requests"] == 0


def test_the_baseline_sends_each_event_once(tmp_path):
    with Child(consumer_process.__name__, {}, log=tmp_path / "log") as consumer:
        url = f"http://127.0.0.1:{consumer.read(within_s=WITHIN_S)['port']}/hook"
        task = bare_hooks_process.Task(url=url, secret="secret", payload="{}", deliveries=100, concurrency=8)
        with Child(bare_hooks_process.__name__, task, log=tmp_path / "bare.log") as bare:
            done = bare.read(within_s=WITHIN_S)
        assert done["delivered"] == 100
        assert done["seconds"] > 0
        seen = consumer.ask({}, within_s=WITHIN_S)
        assert (seen["requests"], seen["distinct"]) == (100, 100)
