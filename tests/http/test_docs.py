"""GET /docs and the files of the page, over a real socket. What a browser makes of them: test_docs_browser.py."""

from __future__ import annotations

import gzip
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest

import fluxora
from fluxora.http import replies

ROOT = Path(fluxora.__file__).parent
VENDORED = ROOT / "http" / "static" / "docs" / "swagger-ui"
RECORD = (VENDORED / "VENDORED.md").read_text(encoding="utf-8")
# What the package has, from the record that was made when its integrity was checked.
PACKAGED = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", RECORD, re.MULTILINE)}
CONTENT_TYPES = {
    "start.js": "text/javascript; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js.LICENSE.txt": "text/plain; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
    "NOTICE": "text/plain; charset=utf-8",
}
LARGE = ["swagger-ui-bundle.js", "swagger-ui.css"]


class Tags(HTMLParser):
    """What a page loads or links to, and what of it is inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: set[str] = set()
        self.inline: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        for name, value in attrs:
            if name in ("src", "href"):
                self.urls.add(value)
            elif name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")

    def handle_endtag(self, _tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)


async def test_the_page_has_a_policy_of_its_own_and_all_other_common_headers(start):
    server = await start()
    answer = await server.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for name, value in replies.SECURITY_HEADERS:
        if name not in ("content-security-policy", "cache-control"):
            assert answer.headers.get_list(name) == [value]
    (policy,) = answer.headers.get_list("content-security-policy")
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    allowed = {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'", "img-src": "'self' data:"}
    closed = ["default-src", "frame-ancestors", "base-uri", "form-action"]
    assert directives == allowed | dict.fromkeys(closed, "'none'")


async def test_the_page_is_made_of_files_that_are_served_here_and_has_nothing_inline(start):
    server = await start()
    async with server.client() as client:
        page = await client.get("/docs")
        tags = Tags(page.text)
        assert not tags.inline
        loaded = tags.urls - {"data:,"}
        assert "docs/start.js" in loaded
        for url in loaded:
            answer = await client.get(urljoin(str(page.url), url))
            assert answer.status_code == 200, url


@pytest.mark.parametrize("name", CONTENT_TYPES)
async def test_each_file_is_what_the_package_has_under_its_type(start, *, name):
    server = await start()
    answer = await server.get(f"/docs/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == CONTENT_TYPES[name]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    own = ROOT / "http" / "static" / "docs" / name
    wanted = hashlib.sha256(own.read_bytes()).hexdigest() if own.exists() else PACKAGED[name]
    assert hashlib.sha256(answer.content).hexdigest() == wanted


def test_every_vendored_file_is_in_the_record():
    found = {}
    for path in VENDORED.iterdir():
        content = path.read_bytes()
        if path.suffix == ".gz":
            found[path.stem] = gzip.decompress(content)
        elif path.name != "VENDORED.md":
            found[path.name] = content
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == PACKAGED
    assert b"Apache License" in found["LICENSE"]


def test_the_record_is_of_the_version_that_is_pinned():
    script = (ROOT.parent / "scripts" / "vendor_docs.py").read_text(encoding="utf-8")
    pinned = dict(re.findall(r'^(PACKAGE|VERSION|INTEGRITY) = "(.+)"$', script, re.MULTILINE))
    assert f"`{pinned['PACKAGE']}@{pinned['VERSION']}`" in RECORD
    assert f"`{pinned['INTEGRITY']}`" in RECORD


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("deflate, gzip ; q=0.001", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("br, zstd", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("x-gzipped", False),
    ],
)
@pytest.mark.parametrize("name", LARGE)
async def test_a_large_file_is_sent_compressed_to_whoever_takes_that(start, *, name, accept_encoding, compressed):
    server = await start()
    answer = await server.get(f"/docs/{name}", headers={"accept-encoding": accept_encoding})
    assert answer.headers.get("content-encoding") == ("gzip" if compressed else None)
    assert answer.headers["vary"] == "accept-encoding"
    assert (int(answer.headers["content-length"]) < len(answer.content)) == compressed
    assert hashlib.sha256(answer.content).hexdigest() == PACKAGED[name]


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in CONTENT_TYPES)])
@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_who_has_it_already_is_told_so_with_the_headers_that_a_cache_keeps(start, *, path, coding):
    server = await start()
    async with server.client() as client:
        asked = {"accept-encoding": coding}
        first = await client.get(path, headers=asked)
        etag = first.headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{32}"', etag)
        again = await client.get(path, headers=asked | {"if-none-match": f'"other", {etag}'})
        assert (again.status_code, again.content) == (304, b"")
        # A cache replaces what it stored by the headers of the 304: a stricter policy would break the page.
        for name in ("etag", "cache-control", "content-security-policy", "vary"):
            assert again.headers.get_list(name) == first.headers.get_list(name)
        stale = await client.get(path, headers=asked | {"if-none-match": '"other"'})
        assert (stale.status_code, stale.content) == (200, first.content)


@pytest.mark.parametrize("name", LARGE)
async def test_two_codings_are_two_entities(start, *, name):
    server = await start()
    async with server.client() as client:
        compressed = await client.get(f"/docs/{name}", headers={"accept-encoding": "gzip"})
        plain = await client.get(f"/docs/{name}", headers={"accept-encoding": "identity"})
        assert compressed.headers["etag"] != plain.headers["etag"]
        headers = {"accept-encoding": "identity", "if-none-match": compressed.headers["etag"]}
        assert (await client.get(f"/docs/{name}", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/docs", *(f"/docs/{name}" for name in CONTENT_TYPES)])
async def test_head_says_what_get_says(start, *, path):
    server = await start()
    async with server.client() as client:
        get, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "etag", "cache-control", "content-security-policy"):
            assert head.headers.get_list(name) == get.headers.get_list(name)


@pytest.mark.parametrize(
    "file",
    [
        "nothing.js",
        "index.html",
        "swagger-ui",
        "swagger-ui%2FLICENSE",
        "VENDORED.md",
        "swagger-ui-bundle.js.gz",
        "..%2F..%2Fdocs.py",
        "%2E%2E",
        "%2Fetc%2Fpasswd",
        "LICENSE%00",
        "license",
    ],
)
async def test_what_is_no_file_of_the_page_is_not_found(start, *, file):
    server = await start()
    answer = await server.exchange(b"GET /docs/%b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % file.encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"NOT_FOUND"' in answer


async def test_nothing_but_reading_is_served(start):
    server = await start()
    for path in ("/docs", "/docs/start.js"):
        answer = await server.request("POST", path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
