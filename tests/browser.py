"""A real browser for tests: Debian's Chromium, headless, driven by Playwright; what a page does is noted."""

from __future__ import annotations

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
needed = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


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


def nothing_bad(page: Any, seen: Seen, origin: str) -> None:
    assert page.evaluate("window.violations") == []
    assert seen.told == []
    assert [url for url in seen.requests if not url.startswith((f"{origin}/", "data:"))] == []
