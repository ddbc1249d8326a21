"""`fluxora status` and `fluxora doctor` against a server that runs, and against what does not."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from processes import environment, following, run, serve
from truth import Books, caught_up

from fluxora.localnet import Script, open_localnet
from fluxora.storage.bridge import open_bridge

SEED = 17
OpenBooks = Callable[[str], Awaitable[Books]]


async def findings(**variables: str) -> dict[str, dict[str, Any]]:
    done = await run("doctor", "--json", environ=environment(**variables))
    found = {one["check"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == int(any(one["verdict"] == "fail" for one in found.values())), done
    for one in found.values():
        assert ("fix" in one) == (one["verdict"] != "ok"), one
    return found


async def test_status_shows_what_health_says(bare_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    books = await books_of(bare_url)
    async with open_localnet(seed=SEED, script=Script(SEED)) as net:
        await net.close_ledgers(5)
        environ = following(net, url=bare_url)
        async with serve(environ, tmp_path / "serve.log") as served:
            url = await served.ready()
            await caught_up(books, net)
            report = await served.health()
            shown = await run("status", url, environ=environ)
            assert shown.returncode == 0, shown
            assert f"last ledger   {net.chain.latest.sequence}, safe" in shown.stdout
            assert all(f"\n{actor['name']}" in shown.stdout for actor in report["actors"])
            assert (
                json.loads((await run("status", url, "--json", environ=environ)).stdout)["status"] == report["status"]
            )
            quiet = await run("status", url, "--quiet", environ=environ)
            assert (quiet.returncode, quiet.stdout) == (0, "")
            by_port = await run("status", "--quiet", environ={**environ, "PORT": url.rpartition(":")[2]})
            assert by_port.returncode == 0, by_port
            found = await findings(
                **{name: environ[name] for name in environ if name.startswith(("STELLAR", "NETWORK"))},
                DATABASE_URL=bare_url,
                FLUXORA_CONTRACTS=environ["FLUXORA_CONTRACTS"],
            )
            assert found["endpoint 1"]["verdict"] != "fail", found  # the local network's ledgers may be of long ago
            assert str(net.chain.latest.sequence) in found["endpoint 1"]["found"]
            assert found["schema"]["found"] == "up to date"
            wrong = await findings(
                STELLAR_RPC_URL=net.url, DATABASE_URL=bare_url, FLUXORA_CONTRACTS=environ["FLUXORA_CONTRACTS"]
            )
            assert wrong["endpoint 1"]["verdict"] == "fail", "another network passes"
        gone = await run("status", url, environ=environ)
        assert gone.returncode == 1
        assert url in gone.stdout


async def test_doctor_before_the_first_start(bare_url: str) -> None:
    found = await findings(DATABASE_URL=bare_url)
    assert found["database"]["verdict"] == "ok"
    assert "migrations to go" in found["schema"]["found"]
    assert found["network"]["verdict"] == "warn"


async def test_doctor_of_a_newer_schema(bare_url: str) -> None:
    async with open_bridge() as bridge:

        async def ahead() -> None:
            connection = await asyncpg.connect(bare_url)
            await connection.execute(
                "CREATE TABLE schema_migrations (version int, name text, checksum text); "
                "INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', '')"
            )
            await connection.close()

        await bridge.run(ahead)
    found = await findings(DATABASE_URL=bare_url)
    assert found["schema"]["verdict"] == "fail"
    assert "9999_later.sql" in found["schema"]["found"]


@pytest.mark.parametrize(
    ("variables", "check"),
    [
        ({"FLUXORA_SOURCE": "sideways"}, "configuration"),
        ({"DATABASE_URL": "postgresql://fluxora:s3cret-word@127.0.0.1:1/x"}, "database"),
        ({"FLUXORA_DATA_DIR": "/proc/nowhere"}, "data directory"),
    ],
)
async def test_doctor_says_what_fails(variables: dict[str, str], check: str) -> None:
    found = await findings(**variables)
    assert found[check]["verdict"] == "fail"
    assert "s3cret-word" not in repr(found)
