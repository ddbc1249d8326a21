"""The live page in a real browser, its WebSocket played: what it makes of each message and of each end.

With a real server that is killed: tests/runtime/test_live_browser.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import browser
import pytest
import trio
from browser import Seen, nothing_bad

from fluxora.protocol import sockets
from fluxora.protocol.close_codes import CLOSE_CODES
from fluxora.protocol.messages import LogEvent

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
pytestmark = [browser.needed, pytest.mark.parametrize("carrier", ["direct"], indirect=True)]
REASONS = {close.code: close.reason for close in CLOSE_CODES}
STREAM = {"status": "active", "depositAmount": "100.0000000", "streamedAmount": "12.5000000"}


def update(position: int, payload: Any = None, stream_id: str = "stream-1", action: str = "withdrew") -> str:
    body = json.dumps(STREAM if payload is None else payload).encode()
    event = LogEvent(position, f"id-{position}", "stream.updated", action, stream_id, 7, None, None, 0, body)
    return sockets.stream_update(event).decode()


class Played:
    """What the page's WebSockets are told: `ends[n]` is how the connection n ends (None: it stays)."""

    def __init__(self, page: Any, told: list[list[str]], ends: list[int | None]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._told = told
        self._ends = ends
        page.route_web_socket("**/ws/streams", self._serve)

    def _serve(self, socket: Any) -> None:
        def hear(text: str) -> None:
            message = json.loads(text)
            if message["type"] != "subscribe":
                return
            nth = len(self.asked)
            self.asked.append(message)
            socket.send(sockets.ack(message["ref"], int(message["after"]), recovered=True).decode())
            for one in self._told[nth]:
                socket.send(one)
            if self._ends[nth] is not None:
                socket.close(code=self._ends[nth], reason=REASONS.get(self._ends[nth], ""))

        socket.on_message(hear)


def positions(page: Any) -> list[str]:
    return page.eval_on_selector_all("#events tr", "(rows) => rows.map((row) => row.dataset.position)")


def rows_come_to(page: Any, count: int) -> None:
    page.wait_for_function("(count) => document.querySelectorAll('#events tr').length === count", arg=count)


def state_comes_to(page: Any, text: str) -> None:
    page.wait_for_function("(text) => document.getElementById('state').textContent.includes(text)", arg=text)


@pytest.fixture(scope="module")
def chromium() -> Iterator[tuple[ThreadPoolExecutor, Any]]:
    """One browser for all, in the one thread that may speak to it."""
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(browser.playwright.sync_playwright().start).result()
        launch = started.chromium.launch
        opened = thread.submit(launch, executable_path=browser.CHROMIUM, headless=True, args=browser.FLAGS).result()
        yield thread, opened
        thread.submit(opened.close).result()
        thread.submit(started.stop).result()


@pytest.fixture
async def watch(start, chromium) -> Callable[[Callable[[Any, Seen, str], None]], Any]:
    """Work with a page of its own, beside a server."""
    thread, opened = chromium
    server = await start()

    def run(work: Callable[[Any, Seen, str], None]) -> None:
        context = opened.new_context()
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(browser.LISTEN)
        work(page, Seen(page), f"http://127.0.0.1:{server.port}")
        context.close()

    async def watched(work: Callable[[Any, Seen, str], None]) -> None:
        await trio.to_thread.run_sync(lambda: thread.submit(run, work).result())

    return watched


@pytest.mark.parametrize("code", [1001, 1011, 4001, 4002])
async def test_it_comes_back_behind_what_it_has(watch, code):
    def work(page: Any, seen: Seen, origin: str) -> None:
        played = Played(page, [[update(6), update(7)], [update(8)]], [code, None])
        page.goto(f"{origin}/live?after=5")
        rows_come_to(page, 3)
        assert positions(page) == ["8", "7", "6"]
        assert [one["after"] for one in played.asked] == ["5", "7"]
        state_comes_to(page, "connected")
        nothing_bad(page, seen, origin)

    await watch(work)


async def test_too_many_messages_are_followed_by_a_pause(watch):
    def work(page: Any, _seen: Seen, origin: str) -> None:
        played = Played(page, [[update(6)], [update(7)]], [1008, None])
        page.clock.install()
        page.goto(f"{origin}/live?after=5")
        state_comes_to(page, "connecting again in 10.")
        page.clock.fast_forward(9_900)
        assert len(played.asked) == 1
        page.clock.fast_forward(1_000)
        rows_come_to(page, 2)

    await watch(work)


@pytest.mark.parametrize("code", [4401, 4403])
async def test_it_stays_away_where_it_may_not_come_back(watch, code):
    def work(page: Any, seen: Seen, origin: str) -> None:
        played = Played(page, [[update(6)], []], [code, None])
        page.clock.install()
        page.goto(f"{origin}/live?after=5")
        state_comes_to(page, f"ended, {REASONS[code]}")
        page.clock.fast_forward(120_000)
        assert len(played.asked) == 1
        assert positions(page) == ["6"]
        nothing_bad(page, seen, origin)

    await watch(work)


async def test_a_reset_is_said_and_it_goes_on_from_there(watch):
    def work(page: Any, seen: Seen, origin: str) -> None:
        reset = sockets.reset(90, "The position is too far below").decode()
        played = Played(page, [[update(6)], [reset], [update(91)]], [1001, None, None])
        page.goto(f"{origin}/live?after=5")
        page.wait_for_selector("#notice:not([hidden])")
        rows_come_to(page, 1)
        page.wait_for_selector("tr[data-position='91']")
        assert positions(page) == ["91"]
        assert [one["after"] for one in played.asked] == ["5", "6", "90"]
        assert "cannot be shown" in page.inner_text("#notice")
        nothing_bad(page, seen, origin)

    await watch(work)


async def test_a_connection_that_is_silent_is_left(watch):
    """The server neither says anything nor answers a ping, as one does that has lost its power."""

    def work(page: Any, _seen: Seen, origin: str) -> None:
        played = Played(page, [[update(6)], [update(7)]], [None, None])
        page.clock.install()
        page.goto(f"{origin}/live?after=5")
        rows_come_to(page, 1)
        page.clock.fast_forward(30_001)  # a ping
        assert len(played.asked) == 1
        page.clock.fast_forward(30_001)  # no pong
        state_comes_to(page, "waiting")
        page.clock.fast_forward(1_000)
        rows_come_to(page, 2)
        assert [one["after"] for one in played.asked] == ["5", "6"]

    await watch(work)


async def test_what_the_server_does_not_take_is_said(watch):
    def work(page: Any, seen: Seen, origin: str) -> None:
        Played(page, [[sockets.error("INVALID_MESSAGE", "No such address").decode()]], [None])
        page.goto(f"{origin}/live?after=5&sender=Gx")
        state_comes_to(page, "ended, No such address")
        nothing_bad(page, seen, origin)

    await watch(work)


async def test_the_example_of_the_readme_follows(watch):
    [example] = re.findall(r"```js\n(.*?)```", README, re.DOTALL)

    def work(page: Any, seen: Seen, origin: str) -> None:
        played = Played(page, [[update(6)], [update(7)]], [1001, 4403])
        page.route("**/api/events?limit=1", lambda route: route.fulfill(json={"position": "5"}))
        body = example.replace("https://fluxora.example/", f"{origin}/").replace("./follow.js", "/live/follow.js")
        page.route("**/example.js", lambda route: route.fulfill(body=body, content_type="text/javascript"))
        html = "<script type=module src=example.js></script>"
        page.route("**/example.html", lambda route: route.fulfill(body=html, content_type="text/html"))
        with page.expect_console_message(lambda message: REASONS[4403] in message.text):
            page.goto(f"{origin}/example.html")
        told = [text for text in seen.told if not text.startswith(("connected", "waiting"))]
        assert [text.split(" ")[0] for text in told[:2]] == ["6", "7"]
        assert [(one["recipient"], one["after"]) for one in played.asked] == [("G…", "5"), ("G…", "6")]

    await watch(work)


async def test_what_it_shows_is_text_and_nothing_else(watch):
    hostile = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>"

    def work(page: Any, seen: Seen, origin: str) -> None:
        payload = {"status": hostile, "streamedAmount": hostile, "depositAmount": hostile}
        told = [update(6, payload, stream_id=hostile, action=hostile), update(7, {"stream": None}), update(8, 5)]
        Played(page, [told], [None])
        page.goto(f"{origin}/live?after=5")
        rows_come_to(page, 3)
        cells = page.eval_on_selector_all(
            "tr[data-position='6'] td", "(cells) => cells.map((cell) => cell.textContent)"
        )
        assert cells[2:] == [hostile] * 5
        assert page.locator("#events img, #events script").count() == 0
        assert page.evaluate("window.ran") is None
        href = page.get_attribute("tr[data-position='6'] a", "href")
        assert href.startswith("?streamId=%3Cimg")
        nothing_bad(page, seen, origin)

    await watch(work)


async def test_the_form_says_what_is_followed(watch):
    def work(page: Any, seen: Seen, origin: str) -> None:
        played = Played(page, [[], []], [None, None])
        page.goto(f"{origin}/live?after=5&recipient=GABC")
        state_comes_to(page, "connected")
        assert played.asked[0]["recipient"] == "GABC"
        assert page.input_value("[name=by]") == "recipient"
        assert page.input_value("[name=value]") == "GABC"
        page.select_option("[name=by]", "sender")
        page.fill("[name=value]", " G<b>&c ")
        with page.expect_navigation():
            page.click("button")
        assert page.evaluate("Object.fromEntries(new URLSearchParams(location.search))") == {
            "sender": "G<b>&c",
            "via": "ws",
        }
        assert page.evaluate("window.violations") == []

    await watch(work)
