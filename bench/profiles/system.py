"""The system under load: the whole runtime in a process of its own over embedded PostgreSQL, or any by its URL."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench import server_process, tables
from bench.child import Child
from bench.harness import Run
from bench.profiles.endpoint import Endpoint, exchange, request
from bench.profiles.readback import Page, Reader
from bench.profiles.scene import GENESIS_S, LEDGER_S, Scene, pushed
from bench.profiles.traffic import webhooks
from bench.profiles.traffic.forms import Wrong
from bench.profiles.traffic.ingest import push
from fluxora.protocol import api_keys
from fluxora.storage.embedded import EmbeddedServer

START_S = 120.0
READY_S, RETRY_S = 30.0, 0.2
HOT = 200  # streams that pushed events are of
IDS = 100  # of the streams that were there before, to be read
FUTURE_S = 10 * 365 * 86_400


@dataclass(frozen=True)
class System:
    """What is loaded. Without a `server` (its process) and `postmaster` it is somebody else's, and only asked."""

    endpoint: Endpoint
    folder: Path
    worker_token: str | None
    headers: dict[str, str]
    admin_headers: dict[str, str] | None
    server: Child | None = None
    postmaster: int | None = None
    database_url: str | None = None

    @property
    def log(self) -> Path:
        """Where the server writes its log."""
        return self.folder / "server.log"


def start(stack: ExitStack, run: Run, *, url: Endpoint | None, streams: int, sockets: int) -> System:
    """The system that the options name, for as long as the stack is open.

    The credentials of another server come from the environment: FLUXORA_KEY or FLUXORA_TOKEN, INDEXER_WORKER_TOKEN.

    Raises:
        OSError: another server cannot be reached.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
    folder.chmod(0o755)  # the server runs as a user of its own when this one is root
    if url is not None:
        key, token = os.environ.get("FLUXORA_KEY"), os.environ.get("FLUXORA_TOKEN")
        headers = {"x-api-key": key} if key else {"authorization": f"Bearer {token}"} if token else {}
        run.note(f"the server is {url}: its CPU and memory are not seen from here")
        admin_headers = headers if headers and _takes_endpoints(url, headers) else None
        return System(url, folder, os.environ.get("INDEXER_WORKER_TOKEN") or None, headers, admin_headers)
    with run.stage("serve"):
        database = EmbeddedServer(folder / "data")
        database.open()
        stack.callback(database.close)
        postmaster = int((database.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
        served = asyncio.run(tables.create_database(database.url, "served"))
        worker_token = secrets.token_hex(16)  # of a server that nobody else reaches
        key, entry = api_keys.make("bench", ["admin"], entropy=os.urandom(api_keys.ENTROPY_BYTES))
        task = server_process.Task(
            database_url=served,
            streams=streams,
            worker_token=worker_token,
            sockets=sockets,
            admin_key=entry.entry,
            clocked=True,
        )
        server = stack.enter_context(Child(server_process.__name__, task, log=folder / "server.log"))
        endpoint = Endpoint("127.0.0.1", server.read(within_s=START_S)["port"])
    return System(endpoint, folder, worker_token, {}, {"x-api-key": key}, server, postmaster, served)


def _takes_endpoints(url: Endpoint, headers: dict[str, str]) -> bool:
    """Whether a server lets this credential make endpoints on this machine's loopback: asked with one that is off."""
    body = msgspec.json.encode({"url": "http://127.0.0.1:9/", "description": "of a load", "enabled": False})
    octets = request("POST", webhooks.PATH, host=url.authority, headers=headers, body=body)
    status, answer = exchange(url, octets, within_s=START_S)
    if status != 201:
        return False
    made = webhooks.Webhooks().registered(status, answer)
    path = f"{webhooks.PATH}/{made.id}"
    exchange(url, request("DELETE", path, host=url.authority, headers=headers), within_s=START_S)
    return True


def scene(system: System, reader: Reader, seed: int) -> Scene:
    """What the processes of the run are to know; makes the streams that pushed events are of.

    Raises:
        Wrong: the server did not take the first push; says what to look at.
        Unreadable, OSError: as `Reader`.
    """
    people = [server_process.account(number) for number in range(2 * server_process.PEOPLE)]
    began = time.time()
    ledger, offset_s = divmod(began - GENESIS_S, LEDGER_S)
    numbers = [int(began * 1e3) * 1000 + nth for nth in range(HOT)] if system.worker_token else []
    bare = Scene(
        endpoint=system.endpoint,
        zero=time.monotonic(),
        first_ledger=int(ledger),
        offset_s=offset_s,
        contract_id=server_process.CONTRACT,
        hot=[],
        hot_numbers=numbers,
        ids=[],
        people=people,
        headers=system.headers,
        admin_headers=system.admin_headers,
        worker_token=system.worker_token,
        seed=seed,
    )
    listed = [stream["id"] for stream in reader.get(f"/api/streams?limit={IDS}", dict)["streams"]]
    hot = _make_hot(bare, reader) if numbers else []
    if not listed + hot:
        raise Wrong("the server has no stream to read: set INDEXER_WORKER_TOKEN, or register one")
    return Scene(**{name: getattr(bare, name) for name in bare.__struct_fields__} | {"hot": hot, "ids": listed + hot})


def _make_hot(scene: Scene, reader: Reader) -> list[str]:
    before = reader.position()
    events = [
        pushed(scene, 0.0, nth, "created", creation(number, scene.people, nth))
        for nth, number in enumerate(scene.hot_numbers)
    ]
    asked = push(scene, events)
    until = time.monotonic() + READY_S
    while True:
        status, body = exchange(scene.endpoint, asked.octets, within_s=START_S)
        if status != 503 or time.monotonic() > until:
            break
        time.sleep(RETRY_S)  # ingest waits for its lease
    if status != 200:
        raise Wrong(f"the first push was answered with {status}: {body[:300].decode(errors='replace')}")
    asked.judge(status, body)
    ids = {asked_id: nth for nth, asked_id in enumerate(asked.ids)}
    found = [
        (ids[row.event_id.partition("-")[2]], row.stream_id)
        for row in reader.get(f"/api/events?after={before}&limit=1000", Page).events
        if row.stream_id is not None and row.event_id.partition("-")[2] in ids
    ]
    if len(found) != len(events):
        raise Wrong(f"{len(events)} streams were pushed, and {len(found)} of them are in the log")
    return [stream_id for _, stream_id in sorted(found)]


def creation(number: int, people: list[str], nth: int) -> dict[str, object]:
    """What the event says that creates the stream of this number."""
    start = int(time.time())
    return {
        "stream_id": number,
        "sender": people[nth % server_process.PEOPLE],
        "recipient": people[-1],
        "deposit_amount": str(FUTURE_S * 10**6),
        "rate_per_second": str(10**6),
        "start_time": start,
        "cliff_time": start,
        "end_time": start + FUTURE_S,
        "withdraw_dust_threshold": "0",
        "memo": hashlib.sha256(str(number).encode()).hexdigest()[:8],
        "metadata": None,
    }
