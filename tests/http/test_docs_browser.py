"""The documentation in a real browser: it shows every operation, and its policy is never violated."""

from __future__ import annotations

import json
from typing import Any

import browser
from browser import Seen, in_browser, nothing_bad

pytestmark = browser.needed


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
