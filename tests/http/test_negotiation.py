"""Accept: what a client will not take is refused with 406, and what cannot be understood forbids nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.http.negotiation import accepts

JSON = "application/json"


@pytest.mark.parametrize(
    ("accept", "allowed"),
    [
        ("*/*", True),
        ("application/*", True),
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/json; charset=utf-8", True),
        ("text/html, application/json;q=0.1", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("text/html", False),
        ("text/*, image/png", False),
        ("application/xml", False),
        ("application/json;q=0", False),
        ("application/json; q=0.000", False),
        ("application/json;q=0.001", True),
        ("*/*;q=0", False),
        ("*/*, application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("*/*;q=0, application/json", True),
        ("application/*;q=0, */*", False),
        ("application/json, application/*;q=0", True),
        ("", True),
        ("json", True),
        ("*", True),
    ],
)
def test_the_narrowest_range_decides(accept, allowed):
    assert accepts(accept, JSON) is allowed


@given(st.text(max_size=200))
def test_whatever_is_sent_has_an_answer(accept):
    assert accepts(accept, JSON) in {True, False}
    assert accepts(f"{accept}, application/json", JSON) or ";" in accept or JSON in accept.lower()


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("/", JSON),
        ("/health", JSON),
        ("/health/live", JSON),
        ("/openapi.json", JSON),
        ("/metrics", "text/plain"),
        ("/docs", "text/html"),
        ("/live", "text/html"),
    ],
)
async def test_a_route_gives_what_it_has_or_406(start, url, media_type):
    server = await start()
    kind = media_type.partition("/")[0]
    for accept in (media_type, f"{kind}/*", "*/*", f"image/png, {media_type};q=0.2"):
        answer = await server.get(url, headers={"accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)
    for accept in ("image/png", f"{media_type};q=0, image/*"):
        answer = await server.get(url, headers={"accept": accept})
        assert (answer.status_code, answer.json()["error"]) == (406, "NOT_ACCEPTABLE")
        assert answer.headers["content-type"] == JSON, "an error is what it is"
        assert media_type in answer.json()["message"]


async def test_two_accept_headers_are_one_list(start):
    server = await start()
    answer = await server.get("/", headers=[("accept", "text/html"), ("accept", "application/json")])
    assert answer.status_code == 200


@pytest.mark.parametrize("accept", ["text/html", "image/*"])
async def test_errors_do_not_depend_on_what_is_accepted(start, accept):
    server = await start()
    assert (await server.get("/nowhere", headers={"accept": accept})).json()["error"] == "NOT_FOUND"


@pytest.mark.parametrize("name", ["start.js", "swagger-ui.css", "LICENSE"])
async def test_files_of_the_docs_are_sent_as_they_are(start, name):
    server = await start()
    assert (await server.get(f"/docs/{name}", headers={"accept": "text/css,*/*;q=0.1"})).status_code == 200
