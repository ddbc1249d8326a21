"""The consumers that docs/webhooks.md shows: each runs, takes what Fluxora signs, once, and refuses all else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxora.protocol import signing
from fluxora.protocol.retries import DELAYS_S, MAX_ATTEMPTS
from fluxora.protocol.signing import Secret
from fluxora.webhooks import _STATUS, MAX_BODY_BYTES, TOLERANCE_S

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
NODE_MODULES = os.environ.get("FLUXORA_NODE_MODULES", "")
SECRET = Secret.from_bytes(bytes(range(32)))
EVENT = {"event": "stream.updated", "streamId": "stream-1", "position": "7"}
HANDLED = "stream.updated stream-1 7\n"
BODY = json.dumps(EVENT).encode()

Post = Callable[[bytes, dict[str, str]], Awaitable[int]]


def example(heading: str) -> str:
    [code] = re.findall(rf"^## {heading}\n.*?^```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return code


def headers(body: bytes, secret: Secret = SECRET) -> dict[str, str]:
    made = signing.headers("msg_we_1_7", int(time.time()), "stream.updated", body, [secret])
    return {"content-type": "application/json", **dict(made)}


async def check(post: Post) -> None:
    """What every consumer does. The event is handled once, after all the refused ones."""
    large = b'"' + b"x" * MAX_BODY_BYTES + b'"'
    assert await post(BODY, {"content-type": "application/json"}) == 401
    assert await post(BODY, headers(BODY, Secret.from_bytes(bytes(32)))) == 401
    assert await post(BODY + b" ", headers(BODY)) == 401
    assert await post(large, headers(large)) == 413
    assert await post(BODY, headers(BODY)) == 200
    assert await post(BODY, headers(BODY)) == 200


def run(code: str) -> Any:
    space: dict[str, Any] = {"__name__": "consumer"}
    exec(compile(code, "docs/webhooks.md", "exec"), space)
    return space["app"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXORA_WEBHOOK_SECRET", SECRET.reveal())
    return tmp_path


async def test_the_flask_consumer(place, capsys, monkeypatch):
    client = run(example("Flask")).test_client()

    async def post(body: bytes, sent: dict[str, str]) -> int:
        status: int = client.post("/fluxora", data=body, headers=sent).status_code
        return status

    await check(post)
    assert capsys.readouterr().out == HANDLED
    monkeypatch.delenv("FLUXORA_WEBHOOK_SECRET")
    assert await post(BODY, headers(BODY)) == 500


async def test_the_fastapi_consumer(place, capsys, monkeypatch):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    transport = httpx.ASGITransport(run(example("FastAPI")))
    async with httpx.AsyncClient(transport=transport, base_url="http://consumer") as client:

        async def post(body: bytes, sent: dict[str, str]) -> int:
            return (await client.post("/fluxora", content=body, headers=sent)).status_code

        await check(post)
        assert capsys.readouterr().out == HANDLED
        monkeypatch.delenv("FLUXORA_WEBHOOK_SECRET")
        assert await post(BODY, headers(BODY)) == 500


@pytest.fixture
def express(place: Path) -> Iterator[subprocess.Popen[str]]:
    missing = [name for name in ("express", "standardwebhooks") if not (Path(NODE_MODULES) / name).is_dir()]
    if shutil.which("node") is None or not NODE_MODULES or missing:
        pytest.skip("set FLUXORA_NODE_MODULES to a node_modules folder that has express and standardwebhooks")
    (place / "consumer.js").write_text(example("Express"), encoding="utf-8")
    process = subprocess.Popen(
        ["node", "consumer.js"],
        env={**os.environ, "NODE_PATH": NODE_MODULES, "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate(timeout=30)


async def test_the_express_consumer(express):
    port = express.stdout.readline().split()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

        async def post(body: bytes, sent: dict[str, str]) -> int:
            return (await client.post("/fluxora", content=body, headers=sent)).status_code

        await check(post)
    express.terminate()
    assert express.communicate(timeout=30)[0] == HANDLED


def test_the_page_tells_the_codes_the_schedule_and_the_bounds():
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+) \| (\d{3}) \|$", PAGE, re.MULTILINE)
    assert [(code, int(status)) for codes, status in rows for code in re.findall(r"`(\w+)`", codes)] == list(
        _STATUS.items()
    )
    assert f"{MAX_BODY_BYTES:,} bytes" in PAGE
    assert f"{TOLERANCE_S} s from now" in PAGE
    assert f"tried {MAX_ATTEMPTS} times" in PAGE
    told = re.search(r"at once, then after (.*?), each varied", PAGE, re.DOTALL)
    assert told is not None
    seconds = {"s": 1, "min": 60, "h": 3_600}
    assert tuple(int(n) * seconds[unit] for n, unit in re.findall(r"(\d+) (s|min|h)\b", told[1])) == DELAYS_S
