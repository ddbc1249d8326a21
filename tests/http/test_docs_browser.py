"""The documentation in a real browser: it shows every operation, and its policy is never violated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Violations as the browser reports them, kept where the test can ask for them.
LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


class Seen:
    """What a page did: console messages, uncaught errors and requests."""

    def __init__(self, page: Any) -> None:
        self.told: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.told.append(message.text))
        page.on("pageerror", lambda error: self.told.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@contextmanager
def browser_page(profile: Path) -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=FLAGS
        )
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(LISTEN)
        yield page
        browser.close()


async def in_browser(work: Callable[[Any, Seen, str], None], profile: Path, origin: str) -> None:
    def run() -> None:
        with browser_page(profile) as page:
            work(page, Seen(page), origin)

    await trio.to_thread.run_sync(run)


def operations_of(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}


def shown_operations(page: Any) -> set[tuple[str, str]]:
    page.wait_for_selector(".opblock")
    pairs = page.eval_on_selector_all(
        ".opblock",
        """(blocks) => blocks.map((block) => [
            block.querySelector(".opblock-summary-method").textContent,
            block.querySelector(".opblock-summary-path").dataset.path])""",
    )
    return {(method, path) for method, path in pairs}


def nothing_bad(page: Any, seen: Seen, origin: str) -> None:
    assert page.evaluate("window.violations") == []
    assert seen.told == []
    assert [url for url in seen.requests if not url.startswith((f"{origin}/", "data:"))] == []


async def test_every_operation_is_shown_and_the_policy_holds(start, tmp_path):
    server = await start()
    wanted = operations_of((await server.get("/openapi.json")).json())

    def work(page: Any, seen: Seen, origin: str) -> None:
        page.goto(f"{origin}/docs")
        assert shown_operations(page) == wanted
        nothing_bad(page, seen, origin)
        page.reload()  # now from the cache, asked for again
        assert shown_operations(page) == wanted
        nothing_bad(page, seen, origin)
        # The policy is in force, and a violation would have been seen: an inline script does not run.
        page.evaluate("""() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        }""")
        page.wait_for_function("window.violations.length > 0")
        assert page.evaluate("window.ran") is None

    await in_browser(work, tmp_path, f"http://127.0.0.1:{server.port}")


async def test_an_operation_can_be_tried_from_the_page(start, tmp_path):
    server = await start()

    def work(page: Any, seen: Seen, origin: str) -> None:
        page.goto(f"{origin}/docs")
        page.click("button.authorize")
        page.fill(".auth-container input >> nth=0", "fxk_not_a_key")
        page.click(".auth-btn-wrapper .authorize >> nth=0")
        page.click(".auth-btn-wrapper .btn-done >> nth=0")
        block = page.locator(".opblock", has=page.locator('[data-path="/health/live"]'))
        block.locator(".opblock-summary-control").click()
        block.locator(".try-out__btn").click()
        block.locator(".execute").click()
        body = block.locator(".live-responses-table .response-col_description code").first
        assert json.loads(body.inner_text()) == {"status": "ok"}
        nothing_bad(page, seen, origin)
        assert f"{origin}/health/live" in seen.requests

    await in_browser(work, tmp_path, f"http://127.0.0.1:{server.port}")
