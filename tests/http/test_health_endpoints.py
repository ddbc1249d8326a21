from __future__ import annotations

from dataclasses import replace

import trio
from front import report

from fluxora.config import StorageConfig
from fluxora.storage.store import open_store


async def test_the_report_goes_out_as_the_runtime_gives_it(start):
    server = await start(health=lambda: report("degraded"))
    answer = await server.get("/health?probe=1")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["service"], body["version"]) == ("degraded", "fluxora-backend", "1.2.3")
    assert body["indexer"]["status"] == "not_configured"
    assert body["dependencies"]["stellarRpc"]["status"] == "not_configured"
    assert body["wsConnections"] == 0


async def test_live_needs_nothing(start):
    server = await start(store=None)
    assert (await server.get("/health/live")).json() == {"status": "ok"}


async def test_ready_asks_the_database(start, store):
    server = await start(store=store)
    answer = await server.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert answer.json()["dependencies"]["database"]["latencyMs"] > 0


async def test_without_the_database_reads_are_503_within_two_seconds_and_live_stays_200(start, storage_config):
    away = replace(storage_config, database_url="postgresql://nobody@127.0.0.1:1/none")
    async with open_store(away, decimals={}) as store:
        server = await start(store=store)
        for url in ("/health/ready", "/api/streams", "/api/streams/stream-x", "/api/events"):
            with trio.fail_after(2):
                answer = await server.get(url)
            assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
            assert int(answer.headers["retry-after"]) > 0
        assert (await server.get("/health/live")).status_code == 200
        server.backend.stopping.set()


async def test_ready_is_bounded_where_the_database_hangs(start, nursery):
    async def accept_and_say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    listeners = await nursery.start(trio.serve_tcp, accept_and_say_nothing, 0)
    port = listeners[0].socket.getsockname()[1]
    config = StorageConfig(database_url=f"postgresql://nobody@127.0.0.1:{port}/none")
    async with open_store(config, decimals={}) as store:
        server = await start(store=store)
        with trio.fail_after(4):
            answer = await server.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
