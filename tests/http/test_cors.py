from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.http.cors import Cors

APP = "https://app.example"
ASKED = ("access-control-request-method", "POST")
HEADERS = st.lists(st.tuples(st.sampled_from(["origin", ASKED[0], "host"]), st.text(max_size=20)), max_size=5)


def test_off_nothing_is_said():
    cors = Cors([])
    assert cors.headers(APP) == ()
    assert cors.headers(None) == ()
    assert cors.preflight("OPTIONS", [("origin", APP), ASKED]) is None


def test_an_allowed_origin_may_read_the_answer():
    headers = dict(Cors([APP, "http://localhost:5173"]).headers(APP))
    assert headers["access-control-allow-origin"] == APP
    assert headers["vary"] == "origin"
    assert set(headers["access-control-expose-headers"].split(", ")) == {
        "etag",
        "location",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-request-id",
        "idempotency-replayed",
    }
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", [None, "null", "", "*", "https://app.example.evil", "http://app.example", APP + "/"])
def test_no_other_origin_is_told_anything(origin):
    assert Cors([APP]).headers(origin) == (("vary", "origin"),)


def test_a_preflight_of_an_allowed_origin():
    reply = Cors([APP]).preflight("OPTIONS", [("host", "h"), ("origin", APP), ASKED])
    headers = dict(reply.headers)
    assert (reply.status, reply.body) == (204, b"")
    assert headers["access-control-allow-origin"] == APP
    assert set(headers["access-control-allow-methods"].split(", ")) == {"GET", "HEAD", "POST", "PATCH", "DELETE"}
    needed = {"authorization", "x-api-key", "content-type", "idempotency-key", "if-none-match"}
    assert needed <= set(headers["access-control-allow-headers"].split(", "))
    assert headers["access-control-max-age"] == "600"
    assert headers["vary"] == "origin"


def test_a_preflight_of_another_origin_is_told_nothing():
    reply = Cors([APP]).preflight("OPTIONS", [("origin", "https://other.example"), ASKED])
    assert (reply.status, reply.headers) == (204, (("vary", "origin"),))


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("OPTIONS", [("origin", APP)]),
        ("OPTIONS", [ASKED]),
        ("OPTIONS", []),
        ("POST", [("origin", APP), ASKED]),
        ("options", [("origin", APP), ASKED]),
    ],
)
def test_what_is_no_preflight_goes_on_to_the_routes(method, headers):
    assert Cors([APP]).preflight(method, headers) is None


@given(HEADERS, st.text(max_size=30))
def test_what_a_client_sends_is_never_sent_back(headers, origin):
    cors = Cors([APP])
    reply = cors.preflight("OPTIONS", headers)
    assert reply is None or reply.headers == (("vary", "origin"),)
    assert cors.headers(origin) == (("vary", "origin"),)
