"""The program as operators run it: exit codes, signals, single clear lines, and its other commands."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from processes import environment, following, run, serve
from truth import Books, caught_up, judge
from waiting import eventually

import fluxora
from fluxora.config import Config
from fluxora.localnet import Script, account, contract_address, open_localnet
from fluxora.protocol.api_keys import parse_entry, parse_key, verify

OpenBooks = Callable[[str], Awaitable[Books]]
SEED = 43
STOP_S = 5.0


async def test_version() -> None:
    done = await run("--version", environ=environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fluxora {fluxora.__version__}\n", "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "seventy"),
        ("FLUXORA_SOURCE", "rpc"),  # without an endpoint
        ("FLUXORA_CONTRACTS", "CABC"),
        ("FLUXORA_DATADIR", "elsewhere"),  # no such variable
        ("DATABASE_URL", "mysql://root:secret@db/x"),
    ],
)
async def test_a_bad_value_is_one_line_and_code_2(variable: str, value: str) -> None:
    done = await run("serve", environ=environment(**{variable: value}))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    named = "STELLAR_RPC_URL" if variable == "FLUXORA_SOURCE" else variable
    assert lines[0].startswith(f"fluxora: {named}: ")
    assert "secret" not in done.stderr


async def test_a_database_that_refuses_is_one_line_and_code_1(tmp_path: Path) -> None:
    done = await run("serve", environ=environment(PORT="0", DATABASE_URL=f"postgresql://fluxora@/x?host={tmp_path}"))
    assert done.returncode == 1
    plain = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1
    assert plain[0].startswith("fluxora: StorageUnavailable: PostgreSQL cannot answer: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_in_order(
    number: signal.Signals, postgres_url: str, books_of: OpenBooks, tmp_path: Path
) -> None:
    books = await books_of(postgres_url)
    async with open_localnet(seed=SEED, script=Script(SEED, streams_per_ledger=4)) as net:
        await net.close_ledgers(80)
        environ = following(net, url=postgres_url, page_limit=5)
        async with serve(environ, tmp_path / "serve.log") as served:
            await served.ready()
            await eventually(partial(grown, books, 1), "ingest is under way")
            asked = time.monotonic()
            served.signal(number)
            assert await served.ended() == 0
            assert time.monotonic() - asked < STOP_S
        events = [json.loads(line)["event"] for line in served.text.splitlines()]
        assert events[-1] == "runtime.stopped"
        assert not {"supervisor.actor_crashed", "supervisor.drain_cut_short", "supervisor.stop_disturbed"} & {*events}
        async with serve(environ, tmp_path / "again.log"):
            await caught_up(books, net)
        await judge(books, net, corrected=False)


async def grown(books: Books, least: int) -> bool:
    return await books.position() >= least


async def test_migrate_twice(bare_url: str) -> None:
    environ = environment(DATABASE_URL=bare_url)
    first = await run("migrate", environ=environ)
    assert (first.returncode, first.stdout[:13]) == (0, "applied: 0001")
    second = await run("migrate", environ=environ)
    assert (second.returncode, second.stdout) == (0, "nothing to apply\n")


# replay

CONTRACT = contract_address(SEED, 0)
BEGAN_S = 1_700_000_000


def pushed(ledger: int, index: int, topic: str, **payload: Any) -> dict[str, Any]:
    """One event in the form of the ingest endpoint."""
    return {
        "eventId": f"{(ledger << 32) | ((index + 1) << 12):019d}-{0:010d}",
        "ledger": ledger,
        "ledgerHash": sha256(str(ledger).encode()).hexdigest(),
        "contractId": CONTRACT,
        "txHash": sha256(f"{ledger}/{index}".encode()).hexdigest(),
        "txIndex": index,
        "operationIndex": 0,
        "eventIndex": 0,
        "happenedAt": datetime.fromtimestamp(BEGAN_S + 5 * ledger, UTC).isoformat(),
        "topic": topic,
        "payload": payload,
    }


def created(ledger: int, index: int, number: int) -> dict[str, Any]:
    start = BEGAN_S + 5 * ledger
    numbers = {"deposit_amount": "1000000", "rate_per_second": "10", "withdraw_dust_threshold": "0"}
    times = {"start_time": start, "cliff_time": start, "end_time": start + 100_000}
    people = {"sender": account(SEED, "a"), "recipient": account(SEED, "b")}
    return pushed(ledger, index, "created", stream_id=number, memo=None, metadata=None, **numbers, **times, **people)


def history(streams: int) -> list[dict[str, Any]]:
    """Five streams a ledger; each is withdrawn from twenty ledgers later."""
    events = [created(10 + number // 5, number % 5, number) for number in range(streams)]
    for number in range(streams):
        ledger = 30 + streams // 5 + number // 5
        paid = 10 * 5 * (ledger - 10 - number // 5)
        events.append(
            pushed(ledger, number % 5, "withdrew", stream_id=number, recipient=account(SEED, "b"), amount=str(paid))
        )
    return events


async def test_replay_a_file_twice(bare_url: str, books_of: OpenBooks, tmp_path: Path) -> None:
    books, environ = await books_of(bare_url), environment(DATABASE_URL=bare_url)
    events = history(1_200)
    file = tmp_path / "events.jsonl"
    file.write_text("\n\n".join(json.dumps(event) for event in events), encoding="utf-8")
    first = await run("replay", str(file), environ=environ)
    assert (first.returncode, first.stdout) == (0, "2400 recorded, 0 known already, position 2400\n"), first.stderr
    everything = "SELECT position, event_id, payload::text, raw FROM events ORDER BY position"
    states = "SELECT id, state, position FROM streams ORDER BY id"
    before = [tuple(row) for query in (everything, states) for row in await books.rows(query)]
    again = await run("replay", "-", environ=environ, text=file.read_text(encoding="utf-8"))
    assert (again.returncode, again.stdout) == (0, "0 recorded, 2400 known already, position 2400\n"), again.stderr
    assert [tuple(row) for query in (everything, states) for row in await books.rows(query)] == before
    live = await books.rows("SELECT event_id FROM events ORDER BY event_id")
    assert [row[0] for row in live] == sorted(f"1-{event['eventId']}" for event in events)
    withdrawn = await books.rows("SELECT DISTINCT withdrawn_amount > 0 FROM streams")
    assert [row[0] for row in withdrawn] == [True]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("{]", "line 1102: "),
        ('{"eventId": 5}', "line 1102: "),
        (json.dumps(created(10, 0, 1) | {"ledger": 11}), "line 1102: eventId: The id belongs to ledger 10, not 11"),
    ],
)
async def test_replay_names_the_bad_line(
    broken: str, told: str, bare_url: str, books_of: OpenBooks, tmp_path: Path
) -> None:
    lines = [json.dumps(event) for event in history(1_200)]
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join([*lines[:1_101], broken, *lines[1_101:]]), encoding="utf-8")
    done = await run("replay", str(file), environ=environment(DATABASE_URL=bare_url))
    assert done.returncode == 1
    plain = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(plain) == 1
    assert plain[0].startswith(f"fluxora: DecodeError: {told}")
    books = await books_of(bare_url)
    assert await books.position() == 1_000, "what went before in whole batches stays"


async def test_replay_of_what_cannot_be_read(bare_url: str, tmp_path: Path) -> None:
    done = await run("replay", str(tmp_path / "none.jsonl"), environ=environment(DATABASE_URL=bare_url))
    assert done.returncode == 2
    assert "none.jsonl: No such file or directory" in done.stderr
    following_rpc = {"STELLAR_RPC_URL": "http://127.0.0.1:1", "FLUXORA_CONTRACTS": CONTRACT, "FLUXORA_SOURCE": "rpc"}
    done = await run("replay", "-", environ=environment(DATABASE_URL=bare_url, **following_rpc), text="")
    assert done.returncode == 2
    assert done.stderr.startswith("fluxora: FLUXORA_SOURCE: ")


# keys


async def test_a_new_key_is_printed_once_with_the_line_that_lets_it_in() -> None:
    done = await run("keys", "new", "--name", "dash", environ=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be shown again" in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
    [text] = [line for line in lines if line.startswith("flx_dash_")]
    [line] = [line for line in lines if line.startswith("FLUXORA_API_KEYS=")]
    [key] = Config.from_env({"FLUXORA_API_KEYS": line.partition("=")[2]}).http.access.api_keys
    assert (key.name, key.scopes) == ("dash", {"streams:read", "streams:write"})
    assert verify(key, text.removeprefix("flx_dash_"))
    assert text.removeprefix("flx_dash_") not in line


async def test_new_keys_as_json_differ() -> None:
    command = ("keys", "new", "--scope", "admin", "streams:read", "--scope", "admin", "--json")
    made = [json.loads((await run(*command, environ=environment())).stdout) for _ in range(2)]
    assert made[0]["name"] != made[1]["name"]
    for one in made:
        assert one["scopes"] == ["streams:read", "admin"]
        name, secret = parse_key(one["key"])
        key = parse_entry(one["entry"])
        assert (name, key.scopes) == (one["name"], {"streams:read", "admin"})
        assert verify(key, secret)


@pytest.mark.parametrize("wrong", [["--name", "Dash"], ["--name", ""], ["--scope", "root"], ["--scope"], ["old"]])
async def test_a_key_that_cannot_be_made_is_code_2(wrong: list[str]) -> None:
    command = ["keys", *wrong] if wrong == ["old"] else ["keys", "new", *wrong]
    done = await run(*command, environ=environment())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: fluxora keys")


@pytest.mark.parametrize(
    ("variable", "value"), [("FLUXORA_API_KEYS", "flx_a_hunter22hunter22"), ("JWT_SECRET", "hunter22hunter22")]
)
async def test_a_bad_secret_stops_the_start_and_is_not_shown(variable: str, value: str) -> None:
    done = await run("serve", environ=environment(**{variable: value}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fluxora: {variable}: ")
    assert "hunter22" not in done.stderr
