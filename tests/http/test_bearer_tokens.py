"""Tokens made by PyJWT, by hand, and by the authors of RFC 7515; judged by a clock that only the test moves."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

import jwt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fluxora.errors import ConfigError
from fluxora.http.bearer_tokens import CLOCK_SKEW_S, KNOWN_TOKENS, MAX_TOKEN_BYTES, BearerTokens

SECRET = "correct horse battery staple and then some more, for HS512 wants 64"
NOW = 1_300_000_000
GOOD = {"exp": NOW + 60, "sub": "bob", "scope": "streams:read"}


class Clock:
    def __init__(self):
        self.now = float(NOW)

    def __call__(self):
        return self.now


def tokens(secret=SECRET, clock=None):
    return BearerTokens(secret, clock=clock or Clock())


def token(claims, secret=SECRET, **how):
    return jwt.encode(claims, secret, **{"algorithm": "HS256", **how})


def by_hand(payload: bytes, header=b'{"alg":"HS256","typ":"JWT"}', secret=SECRET):
    """A token with a good signature over whatever it is."""

    def encoded(data):
        return urlsafe_b64encode(data).rstrip(b"=")

    signed = encoded(header) + b"." + encoded(payload)
    return (signed + b"." + encoded(hmac.digest(secret.encode(), signed, "sha256"))).decode()


def test_a_good_token():
    bearer = tokens().read(token({**GOOD, "scope": "streams:read admin openid", "iat": NOW, "nbf": NOW, "iss": "me"}))
    assert (bearer.id, bearer.scopes) == ("jwt:bob", {"streams:read", "admin"})


def test_without_a_subject_it_is_named_by_its_hash():
    text = token({"exp": NOW + 60})
    bearer = tokens().read(text)
    assert bearer.id == "jwt:" + hashlib.sha256(text.encode()).hexdigest()[:16]
    assert bearer.scopes == frozenset()


def test_the_token_of_rfc_7515_appendix_a1():
    key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
    text = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    clock = Clock()
    under_test = tokens(urlsafe_b64decode(key + "==").decode("utf-8", "surrogateescape"), clock)
    assert under_test.read(text).expires_at == 1_300_819_380
    clock.now = 1_300_819_380.0
    assert under_test.read(text) is None


@pytest.mark.parametrize(
    "text",
    [
        token(GOOD, "another secret, which is as long as the right one is, and not it"),
        token(GOOD, None, algorithm="none"),
        token(GOOD, algorithm="HS384"),
        token(GOOD, algorithm="HS512"),
        by_hand(json.dumps(GOOD).encode(), b'{"alg":"RS256","typ":"JWT"}'),
        by_hand(json.dumps(GOOD).encode(), b'{"alg":"hs256"}'),
        by_hand(json.dumps(GOOD).encode(), b'{"alg":["HS256"]}'),
        by_hand(json.dumps(GOOD).encode(), b'{"typ":"JWT"}'),
        by_hand(json.dumps(GOOD).encode(), b'{"alg":"HS256","crit":["exp"],"exp":1}'),
        by_hand(json.dumps(GOOD).encode(), b"[]"),
        by_hand(json.dumps(GOOD).encode(), b"[" * 1_500),
        by_hand(b"[" * 1_500),
        by_hand(b"[]"),
        by_hand(b"null"),
        by_hand(b"\xff"),
        token(GOOD).rsplit(".", 1)[0] + ".",
        token(GOOD) + "=",
        token(GOOD) + "\n",
        token(GOOD) + ".",
        " " + token(GOOD),
        "é" + token(GOOD),
        "\ud800",
        "",
        "..",
    ],
)
def test_what_is_not_signed_as_it_must_be_is_no_good(text):
    assert tokens().read(text) is None


def test_by_hand_is_good_where_the_header_is():
    assert tokens().read(by_hand(json.dumps(GOOD).encode())).id == "jwt:bob"


@pytest.mark.parametrize(
    "payload",
    [
        '{"sub":"bob"}',
        '{"exp":null}',
        '{"exp":true}',
        '{"exp":"1300000060"}',
        '{"exp":[1300000060]}',
        '{"exp":NaN}',
        '{"exp":Infinity}',
        '{"exp":1e999}',
        '{"exp":1300000000}',
        '{"exp":1299999999.5}',
        '{"exp":-1}',
        '{"exp":1300000060,"nbf":1300000060}',
        '{"exp":1300000060,"iat":1300000060}',
        '{"exp":1300000060,"nbf":null}',
        '{"exp":1300000060,"nbf":false}',
        '{"exp":1300000060,"iat":"1300000000"}',
        '{"exp":1300000060,"iat":NaN}',
        '{"exp":1300000060,"scope":["admin"]}',
        '{"exp":1300000060,"scope":null}',
        '{"exp":1300000060,"sub":7}',
        '{"exp":1300000060,"sub":null}',
        '{"exp":1300000060,"sub":""}',
        '{"exp":1300000060,"sub":"a\\u0000b"}',
        '{"exp":1300000060,"sub":"\\ud800"}',
        '{"exp":1300000060,"sub":"%s"}' % ("s" * 256),
        '{"exp":1300000060,"aud":"somebody"}',
    ],
)
def test_claims_of_a_wrong_type_or_time_are_no_good(payload):
    assert tokens().read(by_hand(payload.encode())) is None


@pytest.mark.parametrize("claims", [{}, {"nbf": NOW + CLOCK_SKEW_S}, {"iat": NOW + CLOCK_SKEW_S}, {"exp": NOW + 0.5}])
def test_times_at_the_edge(claims):
    assert tokens().read(token({**GOOD, **claims})) is not None


def test_a_token_that_begins_later_is_good_then():
    clock = Clock()
    under_test, text = tokens(clock=clock), token({"exp": NOW + 600, "nbf": NOW + 300})
    assert under_test.read(text) is None
    clock.now += 300 - CLOCK_SKEW_S
    assert under_test.read(text) is not None


def test_the_signature_is_checked_once_and_the_end_each_time(monkeypatch):
    clock, checked = Clock(), []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *args, **how: checked.append(args) or decode(*args, **how))
    under_test, text = tokens(clock=clock), token(GOOD)
    assert [under_test.read(text).id for _ in range(5)] == ["jwt:bob"] * 5
    clock.now = NOW + 59.999
    assert under_test.read(text) is not None
    assert len(checked) == 1
    clock.now = NOW + 60.0
    assert under_test.read(text) is None
    assert under_test.read(text) is None


def test_what_is_remembered_is_bounded_and_holds_no_token():
    under_test = tokens()
    texts = [token({"exp": NOW + 60, "jti": str(n)}) for n in range(KNOWN_TOKENS + 5)]
    assert all(under_test.read(text) for text in texts)
    assert len(under_test._known) == KNOWN_TOKENS
    assert texts[-1] not in repr(under_test._known)


def test_a_long_token_is_no_good_whatever_it_says():
    def padded(length):
        text = token({**GOOD, "pad": ""})
        return token({**GOOD, "pad": "x" * ((length - len(text)) * 3 // 4)})

    assert len(padded(MAX_TOKEN_BYTES)) <= MAX_TOKEN_BYTES
    assert tokens().read(padded(MAX_TOKEN_BYTES)) is not None
    assert len(padded(MAX_TOKEN_BYTES + 8)) > MAX_TOKEN_BYTES
    assert tokens().read(padded(MAX_TOKEN_BYTES + 8)) is None


@given(st.data())
def test_no_character_of_a_token_can_be_changed(data):
    text = token(GOOD)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii"))
    assume(other != text[at])
    assert tokens().read(text[:at] + other + text[at + 1 :]) is None


@given(st.text(max_size=300) | st.from_regex(r"[\w-]{0,60}\.[\w-]{0,60}\.[\w-]{0,60}", fullmatch=True))
def test_any_text_is_no_good(text):
    assert tokens().read(text) is None


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "sub", "scope", "aud", "jti", "iss"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10), st.lists
)))  # fmt: skip
def test_whatever_a_signed_token_claims_it_is_read_or_refused(claims):
    bearer = tokens().read(by_hand(json.dumps(claims).encode()))
    if bearer is not None:
        assert claims["exp"] > NOW
        assert bearer.id == f"jwt:{claims['sub']}" or "sub" not in claims


@pytest.mark.parametrize(
    "secret",
    [f"-----BEGIN PUBLIC KEY-----\n{'A' * 64}\n-----END PUBLIC KEY-----", "ssh-ed25519 " + "A" * 68],
)
def test_a_public_key_is_no_secret(secret):
    with pytest.raises(ConfigError, match="JWT_SECRET") as caught:
        tokens(secret)
    assert "AAAA" not in str(caught.value)
