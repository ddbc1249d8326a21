"""`fluxora webhooks`: each action on a real database, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
import trio

from fluxora.__main__ import _parser
from fluxora.config import Config, StorageConfig, WebhookConfig
from fluxora.errors import ConfigError, NotFound
from fluxora.protocol.lifecycle import NewStream
from fluxora.protocol.signing import Secret
from fluxora.storage.records import Create
from fluxora.storage.store import Store, open_store
from fluxora.storage.webhook_records import Result
from fluxora.webhook_commands import ACTIONS, run
from fluxora.webhooks import verify

URL = "https://consumer.example/hook"
UNKNOWN = "we_" + "0" * 32
ALICE = "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK"
BOB = "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE"


@pytest.fixture
def config(storage_config: StorageConfig) -> Config:
    return Config(storage=storage_config, webhooks=WebhookConfig(allowed_networks=(ip_network("127.0.0.0/8"),)))


class Shell:
    """What is typed behind `fluxora webhooks`, and what comes back."""

    def __init__(self, config: Config) -> None:
        self.config = config

    async def lines(self, *words: str, code: int = 0) -> str:
        asked = _parser("webhooks").parse_args(["webhooks", *words])
        text, exit_code = await run(self.config, asked)
        assert exit_code == code, text
        return text

    async def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(await self.lines(*words, "--json", code=code))


@pytest.fixture
def shell(config: Config) -> Shell:
    return Shell(config)


@pytest.fixture
async def store(config: Config) -> AsyncIterator[Store]:
    async with open_store(config.storage, decimals={}) as opened:
        yield opened


async def register(store: Store, *numbers: int) -> None:
    new = NewStream(
        sender=ALICE,
        recipient=BOB,
        deposit_amount=10_000_000,
        rate_per_second=1,
        start_time=1_700_000_000,
        cliff_time=None,
        end_time=None,
    )
    await store.register([Create(f"stream-{number}", f"event-{number}", new, None) for number in numbers])


async def settle(store: Store, outcome: str, **more: Any) -> None:
    """A worker takes all that is due, and each attempt ends like that."""
    await store.webhooks.enlist("worker", 60_000)
    turn = await store.webhooks.turn("worker", [], 1_000, [], [])
    results = [
        Result(
            endpoint_id=due.endpoint_id,
            position=due.event.position,
            outcome=outcome,  # type: ignore[arg-type]
            latency_ms=7,
            **({"status": 500, "error": None} | more),
        )
        for due in turn.deliveries
    ]
    await store.webhooks.turn("worker", results, 0, [], [])
    await store.webhooks.retire("worker")


def words_of(line: str) -> list[str]:
    return line.split()


async def test_an_endpoint_from_its_creation_to_its_end(shell: Shell) -> None:
    assert "`fluxora webhooks add URL` makes one" in await shell.lines("list")
    made = await shell.json("add", URL, "--event", "stream.created", "stream.cancelled", "--address", ALICE)
    assert Secret.parse(made["secret"])
    assert made["events"] == ["stream.created", "stream.cancelled"]
    listed = await shell.json("list")
    assert [each["id"] for each in listed["endpoints"]] == [made["id"]]
    text = await shell.lines("list")
    assert made["secret"] not in text
    assert words_of(text.splitlines()[1])[:3] == [made["id"], "enabled", URL]
    shown = await shell.lines("show", made["id"])
    assert "stream.created stream.cancelled" in shown
    assert made["secret"] not in shown
    changed = await shell.json(
        "change", made["id"], "--url", f"{URL}/2", "--event", "--ordered", "--rate-limit", "5", "--description", "x y"
    )
    assert (changed["url"], changed["events"], changed["ordered"]) == (f"{URL}/2", [], True)
    assert (changed["rateLimit"], changed["description"], changed["addresses"]) == (5, "x y", [ALICE])
    assert "disabled (operator)" in await shell.lines("disable", made["id"])
    assert "disabled (operator)" in await shell.lines("list")
    assert (await shell.json("enable", made["id"]))["enabled"] is True
    rotated = await shell.json("rotate", made["id"], "--grace", "60")
    assert rotated["secret"] != made["secret"]
    assert rotated["previousSecretUntil"]
    with pytest.raises(ConfigError, match="--yes"):
        await shell.lines("delete", made["id"])
    assert made["id"] in await shell.lines("delete", made["id"], "--yes")
    with pytest.raises(NotFound):
        await shell.lines("show", made["id"])
    log = await shell.json("log")
    assert [entry["subject"] for entry in log["entries"]] == [made["id"]] * 6
    assert all(entry["actor"].startswith("cli:") for entry in log["entries"])
    assert made["secret"] not in str(log)
    text = await shell.lines("log", "--limit", "2")
    assert "webhook.created" in text
    assert text.splitlines()[-1] == f"more: --after {log['entries'][1]['id']}"


async def test_a_new_secret_is_shown_in_lines_too(shell: Shell) -> None:
    text = await shell.lines("add", URL, "--disabled")
    [secret] = [line.strip() for line in text.splitlines() if line.startswith("  whsec_")]
    assert Secret.parse(secret)
    endpoint_id = words_of(text.splitlines()[0])[1]
    text = await shell.lines("rotate", endpoint_id, "--grace", "0")
    [other] = [line.strip() for line in text.splitlines() if line.startswith("  whsec_")]
    assert other != secret
    assert "previous" not in text


async def test_a_wrong_argument_is_one_line_that_names_it(shell: Shell) -> None:
    for words, told in (
        (["add", "ftp://consumer.example/"], "url: "),
        (["add", "https://10.0.0.1/"], "url: 10.0.0.1"),
        (["add", "consumer"], "url: "),
        (["add", URL, "--event", "stream.renamed"], "events: Item 1: One of stream.created"),
        (["add", URL, "--address", "G"], "addresses: Item 1"),
        (["add", URL, "--rate-limit", "-1", "--max-in-flight", "0"], "rateLimit: .*; maxInFlight: "),
        (["change", UNKNOWN], "say what is to be different"),
        (["change", UNKNOWN, "--url", "https://[::1]/"], "url: ::1"),
        (["rotate", UNKNOWN, "--grace", "-5"], "graceSeconds: "),
        (["deliveries", UNKNOWN, "--limit", "x", "--status", "lost"], "limit: .*"),
        (["dead-letters", "--endpoint", "5"], "endpointId: "),
        (["replay", UNKNOWN, "--after", "-1"], "after: "),
        (["log", "--after", "x"], "after: "),
    ):
        with pytest.raises(ConfigError, match=told) as caught:
            await shell.lines(*words)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "5"],
        ["show"],
        ["delivery", "msg_1"],
        ["redeliver", UNKNOWN],
        ["polish"],
        [],
        ["add", URL, "--max-in-flight", "x"],
    ],
)
def test_what_cannot_be_read_is_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _parser("webhooks").parse_args(["webhooks", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fluxora webhooks")


@pytest.mark.parametrize("action", [action.name for action in ACTIONS] + ["listen"])
def test_every_action_has_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _parser("webhooks").parse_args(["webhooks", action, "--help"])
    assert caught.value.code == 0
    assert f"usage: fluxora webhooks {action}" in capsys.readouterr().out


async def test_what_is_not_there_is_said(shell: Shell) -> None:
    for words in (
        ["show", UNKNOWN],
        ["change", UNKNOWN, "--rate-limit", "1"],
        ["rotate", "default"],
        ["enable", "default"],
        ["disable", UNKNOWN],
        ["delete", UNKNOWN, "--yes"],
        ["test", UNKNOWN],
        ["deliveries", UNKNOWN],
        ["delivery", f"msg_{UNKNOWN}_1_{'0' * 12}"],
        ["redeliver", f"msg_{UNKNOWN}_1_{'0' * 12}"],
        ["replay", UNKNOWN],
    ):
        with pytest.raises(NotFound, match="there is no such"):
            await shell.lines(*words)


async def test_deliveries_are_shown_and_sent_again(shell: Shell, store: Store) -> None:
    made = await shell.json("add", URL)
    assert await shell.lines("deliveries", made["id"]) == "no deliveries"
    await register(store, 1, 2, 3)
    await settle(store, "dead", response="<h1>Not\x1b[2J here</h1>\nat all")
    page = await shell.json("deliveries", made["id"], "--limit", "2", "--status", "dead")
    assert (len(page["deliveries"]), page["hasMore"]) == (2, True)
    text = await shell.lines("deliveries", made["id"], "--limit", "2")
    head, first, second, more = text.splitlines()
    assert words_of(head)[:4] == ["DELIVERY", "EVENT", "STATUS", "TRIES"]
    assert words_of(first)[:4] == [page["deliveries"][0]["id"], "stream.created", "dead", "1"]
    assert more == f"more: --before {words_of(second)[0]}"
    rest = await shell.json("dead-letters", "--before", page["nextBefore"])
    assert (len(rest["deliveries"]), rest["hasMore"]) == (1, False)
    assert rest == await shell.json("dead-letters", "--endpoint", made["id"], "--before", page["nextBefore"])
    delivery_id = rest["deliveries"][0]["id"]
    detail = await shell.json("delivery", delivery_id)
    assert [attempt["status"] for attempt in detail["attempts"]] == [500]
    text = await shell.lines("delivery", delivery_id)
    assert "dead after 1 attempts" in text
    assert "\x1b" not in text
    assert text.splitlines()[-1].endswith("<h1>Not [2J here</h1> at all")
    assert "pending after 0 attempts" in await shell.lines("redeliver", delivery_id)
    assert len((await shell.json("dead-letters"))["deliveries"]) == 2


async def test_a_replay_goes_through_the_whole_log(shell: Shell, store: Store) -> None:
    await register(store, 1, 2, 3)
    made = await shell.json("add", URL)
    done = await shell.json("replay", made["id"], "--until", "2")
    assert done == {"count": 2, "uncertain": 0, "through": "2", "hasMore": False}
    assert await shell.lines("replay", made["id"]) == "1 deliveries are pending, of the log up to 3"
    await settle(store, "delivered", status=200)
    assert (await shell.json("replay", made["id"]))["count"] == 0
    assert (await shell.json("replay", made["id"], "--only", "all", "--after", "1"))["count"] == 2


async def test_a_test_delivery_is_sent_from_here(shell: Shell, nursery: trio.Nursery) -> None:
    received: list[bytes] = []
    heard = trio.Event()

    async def consume(connection: trio.SocketStream) -> None:
        async with connection:
            data = b""
            while not data.endswith(b"}"):
                data += await connection.receive_some()
            received.append(data)
            await connection.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            heard.set()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, consume, [listener])
    made = await shell.json("add", f"http://127.0.0.1:{listener.socket.getsockname()[1]}/hook", "--disabled")
    text = await shell.lines("test", made["id"])
    assert [words_of(line) for line in text.splitlines()[:2]] == [["delivered", "yes"], ["answer", "204"]]
    head, _, body = received[0].partition(b"\r\n\r\n")
    headers = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
    verify(body, [(name, value) for name, value in headers], secret=made["secret"])


async def test_a_test_that_does_not_arrive_is_code_1(shell: Shell) -> None:
    made = await shell.json("add", "http://127.0.0.1:1/")
    told = await shell.json("test", made["id"], code=1)
    assert (told["delivered"], told["status"]) == (False, None)
    assert told["error"]
    assert "delivered  no" in await shell.lines("test", made["id"], code=1)


async def test_a_target_that_was_admitted_once_is_not_sent_to_for_ever(shell: Shell) -> None:
    made = await shell.json("add", "http://127.0.0.1:1/")
    shell.config = replace(shell.config, webhooks=WebhookConfig())
    told = await shell.json("test", made["id"], code=1)
    assert "FLUXORA_WEBHOOK_ALLOWED_NETWORKS" in told["error"]


async def test_a_database_without_tables_gets_them(postgres_run: Any, config: Config) -> None:
    url = postgres_run.create("template0")
    try:
        bare = Shell(replace(config, storage=replace(config.storage, database_url=url)))
        assert (await bare.json("list")) == {"endpoints": []}
    finally:
        await trio.to_thread.run_sync(postgres_run.drop, url)
