"""Autobahn's fuzzing client against our WebSockets: the frames of RFC 6455 as somebody else understands them.

It talks to the listener of the product, whose sockets echo here instead of following the log, with their caps raised:
some cases send messages of 16 MiB. It needs Python 2.7; CONTRIBUTING says how to install it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio
from wsproto.events import BytesMessage, TextMessage

from fluxora.actors.hub import Hub
from fluxora.config import HttpConfig, LimitConfig
from fluxora.http import direct_carrier, listener
from fluxora.http.backend import Backend
from fluxora.http.connection import Connection
from fluxora.http.websocket import WebSocket
from fluxora.protocol import frames

ROOT = Path(__file__).parents[2]
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]  # without compression, which is not spoken
COUNT = 301
MOST_BYTES = 1 << 26
DEADLINE_S = 1_500
RUN = """
import site, sys
site.addsitedir(sys.argv[1])  # as a path alone it would lack zope, a namespace of old
from autobahntestsuite import wstest
if len(sys.argv) > 2:
    sys.argv = ["wstest", "-m", "fuzzingclient", "-s", sys.argv[2]]
    wstest.run()
"""


@pytest.fixture
def python2() -> list[str]:
    """A Python 2.7 that can import the suite from FLUXORA_AUTOBAHN."""
    home = Path(os.environ.get("FLUXORA_AUTOBAHN", ROOT / ".autobahn")).resolve()
    command = os.environ.get("FLUXORA_PYTHON2", "python2.7")
    try:
        subprocess.run([command, "-c", RUN, home], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no autobahntestsuite for {command} in {home}: set FLUXORA_AUTOBAHN and FLUXORA_PYTHON2")
    return [command, "-c", RUN, str(home)]


class Echo(WebSocket):
    """Sends back what it gets, of whatever size."""

    __slots__ = ("_got",)

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self._got: list[str | bytes] = []

    def _may_go_on(self) -> bool:
        return True

    def _take(self, part: TextMessage | BytesMessage) -> None:
        self._got.append(part.data)
        if part.message_finished:
            got, self._got = self._got, []
            whole = b"".join(one.encode() if isinstance(one, str) else bytes(one) for one in got)
            frame = frames.text(whole)
            self._send(frame if isinstance(part, TextMessage) else b"\x82" + frame[1:])


@pytest.fixture
async def echo(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> int:
    """A running server: the port."""
    monkeypatch.setattr(direct_carrier, "WebSocket", Echo)
    monkeypatch.setattr(listener, "Connection", partial(Connection, max_offered_bytes=MOST_BYTES))
    monkeypatch.setattr(listener, "SOCKET_BYTES", 1 << 16)
    backend = Backend(
        config=HttpConfig(port=0, limits=LimitConfig(enabled=False), ws_ping_s=3_600),
        store=None,
        push=None,
        hub=Hub(None, None),
        health=None,
        version="0",
        cache=None,
        writes=None,
    )
    return (await nursery.start(listener.serve, backend)).port


@pytest.mark.proof
async def test_the_fuzzing_client_finds_no_fault(python2: list[str], echo: int, tmp_path: Path) -> None:
    spec = {
        "outdir": str(tmp_path / "reports"),
        "servers": [{"agent": "fluxora", "url": f"ws://127.0.0.1:{echo}/ws/streams", "options": {"version": 18}}],
        "cases": CASES,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with trio.fail_after(DEADLINE_S):
        done = await trio.run_process(
            [*python2, str(tmp_path / "spec.json")],
            cwd=tmp_path,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    results = json.loads((tmp_path / "reports" / "index.json").read_text())["fluxora"]
    behaviours = Counter(one["behavior"] for one in results.values())
    closes = Counter(one["behaviorClose"] for one in results.values())
    print(f"{len(results)} cases: {dict(behaviours)}, of their ends: {dict(closes)}")
    fine = {"OK", "NON-STRICT", "INFORMATIONAL"}
    faults = {case: one for case, one in results.items() if not {one["behavior"], one["behaviorClose"]} <= fine}
    assert not faults
    assert len(results) == COUNT
    assert behaviours["NON-STRICT"] <= 6
