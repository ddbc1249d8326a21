"""The program as an operator tries webhooks: a server on embedded PostgreSQL, receivers, and commands beside it."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from processes import Served, environment, run, serve
from waiting import eventually

from fluxora.protocol.signing import delivery_id

SECRET = "the secret of the one receiver"
NEW = {
    "sender": "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK",
    "recipient": "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE",
    "depositAmount": "10.0000000",
    "ratePerSecond": "1.0000000",
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@asynccontextmanager
async def receiver(
    log: Path, *, secret: str, port: int, count: int, slow_s: float = 0
) -> AsyncIterator[tuple[Served, str]]:
    """`fluxora webhooks listen` until it has accepted `count`; with its URL."""
    options = ("--port", str(port), "--count", str(count), "--slow", str(slow_s), "--json")
    words = ("-m", "fluxora", "webhooks", "listen", *options)
    async with serve(environment(FLUXORA_WEBHOOK_SECRET=secret), log, words) as served:

        def listening() -> str | None:
            assert served.code is None, served.text
            found = re.search(r"Listening on (http://[^;\s]+)", served.text)
            return None if found is None else found[1]

        yield served, str(await eventually(listening, "the receiver listens"))


def accepted(served: Served) -> set[str]:
    lines = [json.loads(line) for line in served.text.splitlines() if line.startswith("{")]
    return {line["id"] for line in lines if line["outcome"] == "accepted"}


def ids(endpoint_id: str, events: list[dict[str, Any]]) -> set[str]:
    """Those of the deliveries of events, as REST lists them."""
    return {delivery_id(endpoint_id, int(event["position"]), event["eventId"]) for event in events}


async def command(environ: dict[str, str], *words: str) -> Any:
    done = await run("webhooks", *words, "--json", environ=environ)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


async def test_what_is_registered_reaches_both_receivers(short_dir: Path, tmp_path: Path) -> None:
    async with receiver(tmp_path / "one.log", secret=SECRET, port=0, count=2) as (one, url):
        environ = environment(
            PORT="0",
            FLUXORA_DATA_DIR=str(short_dir),
            FLUXORA_WEBHOOK_URL=url,
            FLUXORA_WEBHOOK_SECRET=SECRET,
            FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
        )
        async with serve(environ, tmp_path / "serve.log") as served:
            server = await served.ready()
            port = free_port()
            made = await command(environ, "add", f"http://127.0.0.1:{port}/", "--event", "stream.created")
            async with receiver(tmp_path / "two.log", secret=made["secret"], port=port, count=2) as (two, _):
                async with httpx.AsyncClient(base_url=server, timeout=30) as client:
                    for _ in range(2):
                        (await client.post("/api/streams", json=NEW)).raise_for_status()
                assert [await one.ended(), await two.ended()] == [0, 0]
                recorded = (await served.get("/api/events")).json()["events"]
                assert accepted(one) == ids("default", recorded)
                assert accepted(two) == ids(made["id"], recorded)

            async def settled() -> bool:
                page = await command(environ, "deliveries", made["id"], "--status", "delivered")
                return len(page["deliveries"]) == 2

            await eventually(settled, "both are settled")
            await eventually(lambda: no_backlog(served), "nothing is pending")
            metrics = (await served.get("/metrics")).text
            assert 'fluxora_webhook_attempts_total{outcome="delivered"} 4.0' in metrics
            listed = await command(environ, "list")
            assert [each["id"] for each in listed["endpoints"]] == ["default", made["id"]]
            served.signal(signal.SIGTERM)
            assert await served.ended() == 0
        for secret in (SECRET, made["secret"]):
            assert secret not in served.text
        events = [json.loads(line)["event"] for line in served.text.splitlines()]
        assert not {"supervisor.drain_cut_short", "supervisor.actor_crashed"} & {*events}


async def no_backlog(served: Served) -> bool:
    return bool((await served.health())["webhooks"] == {"pending": 0, "oldestPendingMs": None, "deadLettered": 0})


async def test_what_is_on_its_way_at_the_stop_arrives_and_is_settled(postgres_url: str, tmp_path: Path) -> None:
    async with receiver(tmp_path / "one.log", secret=SECRET, port=0, count=1, slow_s=1.5) as (one, url):
        environ = environment(
            PORT="0",
            DATABASE_URL=postgres_url,
            FLUXORA_WEBHOOK_URL=url,
            FLUXORA_WEBHOOK_SECRET=SECRET,
            FLUXORA_WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
        )
        async with serve(environ, tmp_path / "serve.log") as served:
            async with httpx.AsyncClient(base_url=await served.ready(), timeout=30) as client:
                (await client.post("/api/streams", json=NEW)).raise_for_status()
                await eventually(lambda: on_its_way(served), "the delivery is on its way")
            assert await served.stop() == 0
        events = [json.loads(line)["event"] for line in served.text.splitlines()]
        assert not {"supervisor.drain_cut_short", "supervisor.actor_crashed"} & {*events}
        assert await one.ended() == 0
        (taken,) = accepted(one)
    page = await command(environ, "deliveries", "default")
    assert [(item["status"], item["attemptCount"]) for item in page["deliveries"]] == [("delivered", 1)]
    assert page["deliveries"][0]["id"] == taken


async def on_its_way(served: Served) -> bool:
    return "fluxora_webhook_in_flight 1.0" in (await served.get("/metrics")).text


async def test_an_unusable_endpoint_stops_the_start(tmp_path: Path) -> None:
    environ = environment(FLUXORA_WEBHOOK_URL="https://127.0.0.1/hunter22", FLUXORA_WEBHOOK_SECRET="hunter22")
    done = await run("serve", environ=environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fluxora: FLUXORA_WEBHOOK_URL: 127.0.0.1 is not on the public Internet")
    assert "hunter22" not in done.stderr


async def test_what_is_not_there_is_one_line_and_code_1(postgres_url: str) -> None:
    environ = environment(DATABASE_URL=postgres_url)
    done = await run("webhooks", "show", "default", environ=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fluxora: NotFound: there is no such webhook endpoint; `fluxora webhooks list` shows all\n"
    done = await run("webhooks", "add", "https://10.0.0.1/", environ=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("fluxora: webhooks: url: 10.0.0.1 is not on the public Internet")
    with trio.fail_after(30):
        done = await run("webhooks", "listen", environ=environment())
    assert done.returncode == 2
    assert done.stderr.startswith("fluxora: FLUXORA_WEBHOOK_SECRET: ")
