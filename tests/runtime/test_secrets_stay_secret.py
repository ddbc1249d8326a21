"""A whole run with every secret that there is, and with all that goes wrong: none of them is in anything that is said.

Each secret has a word in it that stands nowhere else. What is looked through for the words, as they are and in the
forms that Basic authentication, JSON and queries give them: the log at the level debug, PostgreSQL's own, /metrics,
/health, error bodies, what the commands of operators print, and the command lines of processes.
"""

from __future__ import annotations

import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest
from outages import Stopped, own_server
from processes import Served, environment, following, run, serve
from stellar_sdk import StrKey
from waiting import eventually
from webhook_consumer import Answer, consuming

from fluxora.localnet import Script, open_localnet
from fluxora.protocol import api_keys

SEED = 41
CONTRACT = StrKey.encode_contract(bytes(32))
NEW = {
    "sender": "GBTCYEJULCFIW2KAAJA6FHE5D7NZ3SYSYORZNI6MSBGYHT4H3ZPGDWZK",
    "recipient": "GBFTCKGB37APXZFUXIPZ2GCWIPO3FN5SRGNV5CWZZXVMVRF7EHXPZMHE",
    "depositAmount": "10.0000000",
    "ratePerSecond": "1.0000000",
}
ENDPOINTS = "/api/admin/webhooks/endpoints"

# One actor of the pipeline and one handler break once, as a defect would: their tracebacks go to the log.
BREAKING = """
import sys
from fluxora.actors.guard import Guard
from fluxora.http import writes
from fluxora.__main__ import main

judge, broken = Guard._judge, []

async def breaking(self, parcel):
    if not broken and parcel.batch.events:
        broken.append(1)
        raise ZeroDivisionError("injected")
    return await judge(self, parcel)

create = writes._create

async def failing(new, key, backend):
    if new.deposit_amount == 770_000_000:
        raise ZeroDivisionError("injected")
    return await create(new, key, backend)

Guard._judge, writes._create = breaking, failing
sys.exit(main(["serve"]))
"""


class Secrets:
    """Words by what they are in; `word` makes one."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def word(self, name: str) -> str:
        return self.known(name, f"Zq{token_hex(9)}qZ")

    def known(self, name: str, word: str) -> str:
        self.words[name] = word
        return word

    def found_in(self, text: str) -> set[str]:
        """The names of those that are in there, in whatever case."""
        text = text.lower()
        return {name for name, word in self.words.items() if any(form.lower() in text for form in forms(word))}


def forms(word: str) -> Iterator[str]:
    """The word as it may be found: as it is, in hexadecimal, and inside of base64, wherever it begins there."""
    raw = word.encode()
    yield word
    yield raw.hex()
    for before in range(3):
        encoded = b64encode(b"\0" * before + raw).decode()
        whole = encoded[(0, 2, 3)[before] : len(encoded) - 4]  # without what others have a part in
        yield whole
        yield whole.replace("+", "-").replace("/", "_")


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("behind", ["", "x", "yz"])
def test_a_word_is_found_in_each_of_its_forms(before: str, behind: str) -> None:
    secrets = Secrets()
    text = before + secrets.word("one") + behind
    for form in (text, quote(text, safe=""), b64encode(text.encode()).decode(), text.encode().hex(), json.dumps(text)):
        assert secrets.found_in(f"... {form} ...") == {"one"}
    assert secrets.found_in("nothing of it") == set()


def bearer(secret: str, **claims: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, **claims}, secret, algorithm="HS256")


class Credentials:
    """What the server is given and what its clients bring."""

    def __init__(self, secrets: Secrets) -> None:
        self.jwt_secret = f"{secrets.word('JWT_SECRET')} and more of it, as it has to be long"
        self.worker = secrets.word("INDEXER_WORKER_TOKEN")
        self.key, entry = api_keys.make("operator", ["admin", "streams:write"], entropy=os.urandom(48))
        secrets.known("an API key", self.key.rpartition("operator_")[2])
        secrets.known("an API key's hash", entry.entry.split(".")[2])
        self.entry = entry.entry
        self.token = bearer(self.jwt_secret, sub="reader", scope="streams:read")
        self.expired = bearer(self.jwt_secret, sub="reader", scope="streams:read", exp=1)
        secrets.known("a bearer token", self.token.rpartition(".")[2])
        secrets.known("an expired token", self.expired.rpartition(".")[2])

    @property
    def admin(self) -> dict[str, str]:
        return {"x-api-key": self.key}


def variables(secrets: Secrets, own: Credentials, *, database: str, rpc: str, hook: str) -> dict[str, str]:
    """Everything that can be configured with a secret in it."""
    user = quote(secrets.word("user of the RPC's URL") + "@:/", safe="")
    place = secrets.word("path of the RPC's URL")
    password, query = quote(secrets.word("password of the RPC's URL") + "@:/", safe=""), secrets.word("its query")
    at = rpc.replace("http://", f"http://{user}:{password}@")
    return {
        "LOG_LEVEL": "debug",
        "DATABASE_URL": database,
        "STELLAR_RPC_URL": f"{at}/{place}?apikey={query}",
        "INDEXER_WORKER_TOKEN": own.worker,
        "FLUXORA_SOURCE": "rpc",
        "JWT_SECRET": own.jwt_secret,
        "FLUXORA_API_KEYS": own.entry,
        "FLUXORA_WEBHOOK_URL": f"{hook}/{secrets.word('path of a webhook')}?token={secrets.word('query of a webhook')}",
        "FLUXORA_WEBHOOK_SECRET": secrets.word("FLUXORA_WEBHOOK_SECRET") + secrets.word("the rest of it"),
        "FLUXORA_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "FLUXORA_BACKUP_TARGET": "s3://bucket/prefix/",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1/",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIDOFTHETEST",
        "AWS_SECRET_ACCESS_KEY": secrets.word("AWS_SECRET_ACCESS_KEY"),
        "AWS_SESSION_TOKEN": secrets.word("AWS_SESSION_TOKEN"),
    }


async def refused_requests(client: httpx.AsyncClient, secrets: Secrets, own: Credentials) -> list[str]:
    """Bad credentials in every place where one can stand; the error bodies."""
    wrong, word = secrets.word("a wrong credential"), partial(secrets.word)
    bodies = []
    for method, path, headers in (
        ("GET", "/api/streams", {"x-api-key": wrong}),
        ("GET", "/api/streams", {"x-api-key": f"flx_operator_{word('a wrong key'):A<43}"}),
        ("GET", "/api/streams", {"authorization": f"Bearer {wrong}"}),
        ("GET", "/api/streams", {"authorization": f"Bearer {own.expired}"}),
        ("GET", "/api/streams", {"authorization": f"Basic {b64encode(wrong.encode()).decode()}"}),
        ("GET", "/api/streams?limit=0", {"authorization": f"Bearer {own.token}"}),
        ("POST", "/api/streams", {"authorization": f"Bearer {own.token}", "content-type": "application/json"}),
        ("GET", "/api/streams?limit=0", {"cookie": f"session={word('a cookie')}"}),
        ("POST", "/internal/indexer/contract-events", {"x-indexer-worker-token": wrong}),
        ("POST", "/internal/indexer/contract-events", {"x-indexer-worker-token": own.worker}),
        ("GET", f"/ws/streams?token={quote(word('token of a handshake'))}", upgrade()),
        ("GET", f"/ws/streams?token={own.token}&x=1", upgrade()),
        ("GET", "/ws/streams", upgrade(word("a subprotocol"))),
        ("GET", "/ws/streams", upgrade() | {"authorization": f"Bearer {wrong}"}),
        ("GET", "/nowhere", {"authorization": f"Bearer {own.token}"}),
        ("GET", f"/nowhere?token={word('token of a query')}", {}),
    ):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code >= 400, (method, path, answer.text)
        bodies.append(answer.text)
    return bodies


def upgrade(protocol: str | None = None) -> dict[str, str]:
    """A handshake that cannot be answered, for want of a key."""
    asked = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    more = {} if protocol is None else {"sec-websocket-protocol": protocol}
    return {**asked, "sec-websocket-key": "none", **more}


async def written(client: httpx.AsyncClient, secrets: Secrets, own: Credentials) -> list[str]:
    """Writes under idempotency keys, refused ones too; the error bodies."""
    key = {"idempotency-key": secrets.word("an idempotency key"), **own.admin}
    assert (await client.post("/api/streams", json=NEW, headers=key)).status_code == 201
    mismatched = await client.post("/api/streams", json=NEW | {"memo": None}, headers=key)
    defect = await client.post("/api/streams", json=NEW | {"depositAmount": "77.0000000"}, headers=key)
    assert (mismatched.status_code, defect.status_code) == (400, 500)
    return [mismatched.text, defect.text]


async def hooked(client: httpx.AsyncClient, secrets: Secrets, own: Credentials, dead_url: str) -> list[str]:
    """Endpoints made, rotated, refused, and one that nobody listens at; the error bodies."""
    url = f"{dead_url}/{secrets.word('path of an endpoint')}?token={secrets.word('query of an endpoint')}"
    made = (await client.post(ENDPOINTS, json={"url": url}, headers=own.admin)).raise_for_status().json()
    rotated = await client.post(f"{ENDPOINTS}/{made['id']}/rotate", json={}, headers=own.admin)
    for name, told in (("an endpoint's secret", made), ("its new secret", rotated.raise_for_status().json())):
        secrets.known(name, told["secret"].removeprefix("whsec_").rstrip("="))
    (await client.post(f"{ENDPOINTS}/{made['id']}/test", json={}, headers=own.admin)).raise_for_status()
    bodies = []
    for refused in (
        f"https://user:{secrets.word('password of an endpoint')}@hooks.example/",
        f"http://10.0.0.1/{secrets.word('path of a private endpoint')}",
        f"https://hooks.example/#{secrets.word('fragment of an endpoint')}",
    ):
        answer = await client.post(ENDPOINTS, json={"url": refused}, headers=own.admin)
        assert answer.status_code == 400, answer.text
        bodies.append(answer.text)
    return bodies


async def test_none_is_in_anything_that_is_said(short_dir: Path, tmp_path: Path) -> None:
    secrets, said = Secrets(), {}
    own = Credentials(secrets)
    with own_server(short_dir) as server:
        password = quote(secrets.word("password of the database") + "@:/", safe="")
        database = server.url.replace("://fluxora@", f"://fluxora:{password}@")
        assert password in database
        async with open_localnet(seed=SEED, script=Script(SEED)) as net, consuming(Answer(500)) as consumer:
            await net.close_ledgers(4)
            hook = consumer.url.removesuffix("/hook")
            told = variables(secrets, own, database=database, rpc=net.url.rstrip("/"), hook=hook)
            environ = environment(**{**following(net), **told, "TMPDIR": str(tmp_path)})
            async with serve(environ, tmp_path / "serve.log", ("-c", BREAKING)) as served:
                async with httpx.AsyncClient(base_url=await served.ready(), timeout=30) as client:
                    bodies = await refused_requests(client, secrets, own)
                    bodies += await hooked(client, secrets, own, "http://127.0.0.1:1")
                    bodies += await written(client, secrets, own)
                    await eventually(lambda: consumer.requests, "a webhook arrives")
                    await fail_the_rpc(net, served)
                    said["commands"] = await commands(environ, await served.ready())
                    said["command lines"] = command_lines()
                    away = Stopped(server)
                    away.leave()
                    bodies += [(await client.post("/api/streams", json=NEW, headers=own.admin)).text]
                    bodies += [(await client.get("/api/events")).text]
                    said["commands while it is away"] = await commands(environ, await served.ready())
                    away.come_back()
                    await eventually(partial(is_well, client), "all is well again")
                    said["health"] = (await client.get("/health")).text
                    said["metrics"] = (await client.get("/metrics")).text
                    said["error bodies"] = "\n".join(bodies)
                assert await served.stop() == 0
            said["log"] = served.text
        said["PostgreSQL's log"] = "".join(file.read_text(errors="replace") for file in logs_below(server.data))
    assert_it_was_worth_reading(said["log"])
    assert {where: found for where, text in said.items() if (found := secrets.found_in(text))} == {}


def assert_it_was_worth_reading(log: str) -> None:
    """What was to go wrong went wrong, and the log tells of it."""
    told = set(re.findall(r'"event": ?"([a-z_]+\.[a-z_]+)"', log))
    assert told >= {
        *("supervisor.actor_crashed", "http.request_failed", "http.request_served", "registrar.group_committed"),
        *("source.call_failed", "ingester.source_failed", "dispatcher.attempt_ended", "outbox.deliveries_added"),
        *("backups.failed", "monitor.database_unavailable", "recorder.batch_committed", "runtime.stopped"),
    }, told
    assert "Traceback" in log


def logs_below(data: Path) -> Iterable[Path]:
    found = [data / "start.log", *(data / "log").glob("*")]
    assert len(found) > 1
    return found


async def fail_the_rpc(net: Any, served: Served) -> None:
    """Refused, broken and dropped, until the log tells of it."""
    net.faults.status(401, times=3)
    net.faults.status(500, times=20)
    net.faults.drop_connection(times=3)
    await eventually(lambda: served.lines("ingester.source_failed"), "the node fails")
    net.faults.clear()


async def commands(environ: Mapping[str, str], url: str) -> str:
    """What operators' commands print, of whatever outcome."""
    printed = ""
    for words in (
        ("doctor",),
        ("doctor", "--json"),
        ("status", url),
        ("migrate",),
        ("webhooks", "dead-letters"),
        ("backup", "s3://bucket/prefix/"),
        ("backup", f"{environ['TMPDIR']}/kept/"),
    ):
        done = await run(*words, environ=environ)
        printed += done.stdout + done.stderr
    return printed


def command_lines() -> str:
    """Those of all processes, which every user of the machine may see."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return "\n".join(lines)


async def is_well(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("DATABASE_URL", "mysql://fluxora:{}@localhost/fluxora"),
        ("DATABASE_URL", "postgresql://fluxora:{}@localhost:port/fluxora"),
        ("DATABASE_URL", "postgresql://fluxora:{}@127.0.0.1:1/fluxora?{}={}"),
        ("DATABASE_URL", "postgresql://fluxora:{}@127.0.0.1:1/fluxora"),
        ("STELLAR_RPC_URL", "ftp://user:{}@rpc.example/{}"),
        ("STELLAR_RPC_URL", "https://user:{}@rpc.example:port/{}"),
        ("STELLAR_RPC_URL", "https://user:{}@rpc.example/\u00e9{}"),
        ("HORIZON_URL", "ftp://user:{}@horizon.example"),
        ("JWT_SECRET", "{}"),
        ("FLUXORA_API_KEYS", "{}"),
        ("FLUXORA_API_KEYS", "name.{}.{}.admin"),
        ("FLUXORA_WEBHOOK_SECRET", "whsec_{}"),
        ("FLUXORA_WEBHOOK_SECRET", "{}"),
        ("FLUXORA_WEBHOOK_URL", "https://user:{}@hooks.example/{}"),
        ("INDEXER_WORKER_TOKEN", "{}"),
    ],
)
async def test_a_value_that_cannot_be_used_is_not_repeated(name: str, form: str, tmp_path: Path) -> None:
    secrets = Secrets()
    word = secrets.word(name)
    short = word if name != "INDEXER_WORKER_TOKEN" else secrets.known(name, word[:15])
    net = {"NETWORK_PASSPHRASE": "p", "FLUXORA_CONTRACTS": CONTRACT} if name == "STELLAR_RPC_URL" else {}
    url = {} if name == "DATABASE_URL" else {"DATABASE_URL": "postgresql://fluxora@127.0.0.1:1/fluxora"}
    environ = environment(PORT="0", LOG_LEVEL="debug", **url, **net, **{name: form.replace("{}", short)})
    for words in (("serve",), ("doctor",)):
        done = await run(*words, environ=environ)
        assert done.returncode in {1, 2}, done
        assert secrets.found_in(done.stdout + done.stderr) == set(), done
