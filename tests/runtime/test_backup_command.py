"""`fluxora backup` and `fluxora restore` as operators run them, on a server that is in use."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from processes import environment, run, serve

from fluxora.localnet import account

SENDER, RECIPIENT = account(5, "sender"), account(5, "recipient")


async def test_what_was_registered_before_a_backup_is_there_after_a_restore(bare_url: str, tmp_path: Path) -> None:
    environ = environment(DATABASE_URL=bare_url, PORT="0")
    async with (
        serve(environ, tmp_path / "serve.log") as served,
        httpx.AsyncClient(base_url=await served.ready()) as client,
    ):
        first = await register(client)
        made = await run("backup", f"{tmp_path}/kept/", "--keep", "2", environ=environ)
        assert made.returncode == 0, made.stderr
        result = json.loads(made.stdout)
        assert result["success"] is True
        second = await register(client)
        refused = await run("restore", "--yes", result["archive"], environ=environ)
        assert refused.returncode == 1
        told = json.loads(refused.stdout)
        assert told["success"] is False
        assert "stop every Fluxora" in told["error"]
        assert (await client.get(f"/api/streams/{second}")).status_code == 200
        assert await served.stop() == 0
    unasked = await run("restore", result["archive"], environ=environ)
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    restored = await run("restore", "--yes", result["archive"], environ=environ)
    assert restored.returncode == 0, restored.stdout
    assert json.loads(restored.stdout)["position"] == 1
    async with (
        serve(environ, tmp_path / "again.log") as served,
        httpx.AsyncClient(base_url=await served.ready()) as client,
    ):
        assert (await client.get(f"/api/streams/{first}")).status_code == 200
        assert (await client.get(f"/api/streams/{second}")).status_code == 404
        third = await register(client)
        events = (await client.get("/api/events")).json()["events"]
        assert [(event["streamId"], event["position"]) for event in events] == [(first, "1"), (third, "2")]


async def register(client: httpx.AsyncClient) -> str:
    body = {"sender": SENDER, "recipient": RECIPIENT, "depositAmount": "10.0000000", "ratePerSecond": "1.0000000"}
    answer = await client.post("/api/streams", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])
