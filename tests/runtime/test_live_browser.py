"""The live page in a real browser before a real server that is killed and stopped: each event once, in order.

Over WebSocket and over EventSource, in two pages of one browser.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import browser
import trio
from browser import browser_page
from processes import Served
from test_tail import register, served

pytestmark = browser.needed


def positions(page: Any) -> list[int]:
    """Those that it shows, the oldest first."""
    shown = page.eval_on_selector_all("#events tr", "(rows) => rows.map((row) => row.dataset.position)")
    return [int(position) for position in reversed(shown)]


def shows(page: Any, count: int) -> list[int]:
    page.wait_for_function("(count) => document.querySelectorAll('#events tr').length >= count", arg=count)
    return positions(page)


def is_(page: Any, state: str) -> None:
    page.wait_for_selector(f"#state[data-state='{state}']")


async def test_each_event_is_shown_once_whatever_becomes_of_the_server(postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    async with served(postgres_url, tmp_path) as writer, AsyncExitStack() as stack:
        writes = await writer.ready()

        async def serve_at(port: str) -> Served:
            return await stack.enter_async_context(served(postgres_url, tmp_path / "watched", PORT=port))

        server = await serve_at("0")
        url = await server.ready()
        await register(writes, 2)

        def work(server: Served) -> None:
            with browser_page(tmp_path / "profile") as page:
                pages = [page, page.context.new_page()]
                for one, via in zip(pages, ("ws", "sse"), strict=True):
                    one.set_default_timeout(30_000)
                    one.add_init_script(browser.LISTEN)
                    one.goto(f"{url}/live?via={via}")
                    is_(one, "connected")
                told = 2
                for end in (server.kill, None):
                    trio.from_thread.run(register, writes, 3)
                    told += 3
                    for one in pages:
                        assert shows(one, told) == list(range(1, told + 1))
                    trio.from_thread.run(end or server.stop)
                    for one in pages:
                        is_(one, "waiting")
                    trio.from_thread.run(register, writes, 4)
                    told += 4
                    server = trio.from_thread.run(serve_at, url.rpartition(":")[2])
                    for one in pages:
                        is_(one, "connected")
                        assert shows(one, told) == list(range(1, told + 1))
                trio.from_thread.run(register, writes, 1)
                for one, over in zip(pages, ("WebSocket", "EventSource"), strict=True):
                    assert shows(one, told + 1) == list(range(1, told + 2))
                    assert one.inner_text("#state") == f"connected, over {over}"
                    assert one.evaluate("window.violations") == []

        await trio.to_thread.run_sync(work, server)


async def test_where_no_websocket_may_be_opened_it_is_an_event_source(postgres_url: str, tmp_path: Path) -> None:
    """The server asks for a credential there, which the page has not; reading needs none."""
    variables = {"FLUXORA_AUTH": "required", "JWT_SECRET": "a shared secret of more than 32 bytes"}
    async with served(postgres_url, tmp_path) as writer, AsyncExitStack() as stack:
        (tmp_path / "closed").mkdir()
        server = await stack.enter_async_context(served(postgres_url, tmp_path / "closed", **variables))
        url = await server.ready()

        def work(events: int) -> None:
            with browser_page(tmp_path / "profile") as page:
                page.goto(f"{url}/live")
                page.wait_for_function(
                    "() => document.getElementById('state').textContent === 'connected, over EventSource'"
                )
                assert shows(page, events) == list(range(1, events + 1))

        await register(await writer.ready(), 3)
        await trio.to_thread.run_sync(work, 3)
