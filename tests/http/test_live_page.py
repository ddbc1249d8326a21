"""GET /live and the files of the page, over a real socket. What a browser makes of them: test_live_page_browser.py."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from test_docs import Tags

import fluxora
from fluxora.http import replies

FOLDER = Path(fluxora.__file__).parent / "http" / "static" / "live"
CONTENT_TYPES = {"page.js": "text/javascript", "follow.js": "text/javascript", "page.css": "text/css"}


async def test_the_page_has_a_policy_of_its_own_and_all_other_common_headers(start):
    server = await start()
    answer = await server.get("/live?streamId=x&via=sse")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for name, value in replies.SECURITY_HEADERS:
        if name not in ("content-security-policy", "cache-control"):
            assert answer.headers.get_list(name) == [value]
    (policy,) = answer.headers.get_list("content-security-policy")
    assert "unsafe" not in policy
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    allowed = {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'", "img-src": "'self' data:"}
    closed = ["default-src", "frame-ancestors", "base-uri", "form-action"]
    assert directives == allowed | dict.fromkeys(closed, "'none'")


async def test_the_page_is_made_of_files_that_are_served_here_and_has_nothing_inline(start):
    server = await start()
    async with server.client() as client:
        page = await client.get("/live")
        tags = Tags(page.text)
        assert not tags.inline
        loaded = tags.urls - {"data:,"}
        assert loaded == {"live/page.css", "live/page.js"}
        for url in loaded:
            assert (await client.get(urljoin(str(page.url), url))).status_code == 200, url
        for module in re.findall(r'from "(.+?)"', (FOLDER / "page.js").read_text(encoding="utf-8")):
            assert (await client.get(urljoin(f"{page.url}/page.js", module))).status_code == 200, module


@pytest.mark.parametrize("name", CONTENT_TYPES)
async def test_each_file_is_what_the_package_has_under_its_type(start, *, name):
    server = await start()
    answer = await server.get(f"/live/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"{CONTENT_TYPES[name]}; charset=utf-8")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.content == (FOLDER / name).read_bytes()
    again = await server.get(f"/live/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("file", ["nothing.js", "index.html", "..%2Fdocs%2Findex.html", "%2E%2E", "%2Fetc%2Fpasswd"])
async def test_what_is_no_file_of_the_page_is_not_found(start, *, file):
    server = await start()
    answer = await server.exchange(b"GET /live/%b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % file.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_the_index_leads_to_it(start):
    server = await start()
    assert (await server.get("/")).json()["links"]["watch"] == "/live"
