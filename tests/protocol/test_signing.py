"""Signatures against the contract's vectors, openssl and the libraries of Standard Webhooks (Python, JavaScript)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from fluxora.errors import DecodeError
from fluxora.protocol.signing import (
    MAX_POSITION,
    MAX_SECRET,
    Secret,
    delivery_id,
    fluxora_signature,
    headers,
    parse_delivery_id,
    standard_key,
    standard_signature,
)

NODE_MODULES = os.environ.get("FLUXORA_NODE_MODULES", "")
ENTROPY = bytes(range(32))
BODY = '{"event":"stream.updated","memo":"für später, 流"}'.encode()
TAG = "5f3a9c0be81d"
EVENT_IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
ENDPOINTS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=MAX_SECRET).filter(
    lambda text: not text.startswith("whsec_")
)
SECRETS = st.one_of(st.binary(min_size=24, max_size=64).map(Secret.from_bytes), TEXTS.map(Secret.parse))


@pytest.mark.parametrize(
    ("secret", "timestamp", "body", "signature"),
    [
        (
            "topsecret",
            1_710_000_000,
            b'{"event":"stream.updated"}',
            "925006549b879c8d9e91c10a153254fb4b6e2241820a1b072e28aa2fa8caeb79",
        ),
        ("s", 1, b"b", "8a24cdd4ca35ebc2922810a126f457252f7eaa83834bb009baafc362912addda"),
    ],
)
def test_the_vectors_of_the_contract(secret, timestamp, body, signature):
    assert fluxora_signature(Secret.parse(secret), timestamp, body) == signature


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_computes_the_same_hex():
    secret = Secret.from_bytes(ENTROPY)
    command = ["openssl", "dgst", "-sha256", "-hmac", secret.reveal(), "-hex"]
    done = subprocess.run(command, input=b"1710000000." + BODY, capture_output=True, check=True, timeout=30)
    assert fluxora_signature(secret, 1_710_000_000, BODY) == done.stdout.split()[-1].decode()


@given(SECRETS, ENDPOINTS, st.integers(0, MAX_POSITION), st.integers(0, 4_000_000_000), st.text(max_size=200))
def test_the_python_library_signs_alike(secret, endpoint, position, timestamp, body):
    text = secret.reveal()
    theirs = Webhook(text if text.startswith("whsec_") else text.encode())
    name = delivery_id(endpoint, position, "1-x")
    body = "".join(each for each in body if not "\ud800" <= each <= "\udfff")
    expected = theirs.sign(name, datetime.fromtimestamp(timestamp, tz=UTC), body)
    assert standard_signature(secret, name, timestamp, body.encode()) == expected


@given(SECRETS, SECRETS)
def test_the_python_library_verifies_under_each_active_secret_and_no_other(current, previous):
    now = int(time.time())  # the library asks the clock itself
    sent = dict(headers("msg_we_1_7", now, "stream.updated", BODY, [current, previous]))
    for secret in (current, previous):
        assert Webhook(standard_key(secret)).verify(BODY, sent) == json.loads(BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(b"another key of twenty-four bytes").verify(BODY, sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(standard_key(current)).verify(BODY + b" ", sent)


@pytest.mark.skipif(
    shutil.which("node") is None or not (Path(NODE_MODULES) / "standardwebhooks").is_dir(),
    reason="set FLUXORA_NODE_MODULES to a node_modules folder that has standardwebhooks",
)
def test_the_javascript_library_verifies_what_is_signed():
    current, previous, other = (
        Secret.from_bytes(ENTROPY),
        Secret.from_bytes(ENTROPY[::-1]),
        Secret.from_bytes(b"o" * 24),
    )
    cases = [
        (
            secret.reveal(),
            dict(headers("msg_we_1_7", int(time.time()) - age, "stream.updated", BODY, [current, previous])),
        )
        for age in (0, 400)
        for secret in (current, previous, other)
    ]
    script = """
        const { Webhook } = require("standardwebhooks");
        const { cases, body } = JSON.parse(require("fs").readFileSync(0, "utf8"));
        console.log(JSON.stringify(cases.map(([secret, headers]) => {
            try { return new Webhook(secret).verify(body, headers).event; } catch (error) { return error.message; }
        })));
    """
    done = subprocess.run(
        ["node", "-e", script],
        input=json.dumps({"cases": cases, "body": BODY.decode()}),
        env={**os.environ, "NODE_PATH": NODE_MODULES},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    fresh, old = ["stream.updated"] * 2 + ["No matching signature found"], ["Message timestamp too old"] * 3
    assert json.loads(done.stdout) == fresh + old


def test_the_headers_of_both_families():
    current, previous = Secret.from_bytes(ENTROPY), Secret.parse("topsecret")
    sent = headers("msg_default_9", 1_710_000_000, "stream.created", BODY, [current, previous])
    assert [name for name, _ in sent] == [
        "x-fluxora-delivery-id",
        "x-fluxora-timestamp",
        "x-fluxora-signature",
        "x-fluxora-event",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    values = dict(sent)
    assert values["x-fluxora-delivery-id"] == values["webhook-id"] == "msg_default_9"
    assert values["x-fluxora-timestamp"] == values["webhook-timestamp"] == "1710000000"
    assert values["x-fluxora-event"] == "stream.created"
    assert values["x-fluxora-signature"] == fluxora_signature(current, 1_710_000_000, BODY)
    signatures = values["webhook-signature"].split(" ")
    assert signatures == [
        standard_signature(each, "msg_default_9", 1_710_000_000, BODY) for each in (current, previous)
    ]
    assert all(
        version == "v1" and len(b64decode(mac)) == 32 for version, mac in (each.split(",") for each in signatures)
    )


# secrets


def test_a_secret_is_shown_by_nothing_but_reveal():
    secret = Secret.parse("topsecret")
    assert secret.reveal() == "topsecret"
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>30}",
        repr([secret]),
        str({"secret": secret}),
    ):
        assert "topsecret" not in shown
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_by_their_text_and_of_no_other_kind():
    assert Secret.parse("é") == Secret.parse("é")
    assert Secret.parse("a") != Secret.parse("b")
    assert Secret.parse("a") != "a"
    assert len({Secret.parse("a"), Secret.parse("a"), Secret.parse("b")}) == 2


@given(st.binary(min_size=24, max_size=64))
def test_a_new_secret_has_its_bytes_in_base64_and_can_be_read_again(entropy):
    secret = Secret.from_bytes(entropy)
    assert secret.reveal() == "whsec_" + b64encode(entropy).decode()
    assert Secret.parse(secret.reveal()) == secret
    assert standard_key(secret) == entropy


@pytest.mark.parametrize("length", [0, 23, 65])
def test_a_new_secret_of_the_wrong_size_is_not_made(length):
    with pytest.raises(ValueError, match="24 to 64"):
        Secret.from_bytes(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z" * (MAX_SECRET + 1),
        " zzz",
        "zzz\n",
        "zzz\t",
        "z\x00z",
        "z\nz",
        "z\x7fz",
        "zzz\udc80",
        "zzz\u2028",
        "whsec_",
        "whsec_zzz",
        "whsec_zzz*",
        "whsec_zz==zz",
        "whsec_zzz-_zzz",
        "whsec_zz z=",
        "whsec_zh==",  # its last four bits are thrown away
        "whsec_é",
    ],
)
def test_a_secret_that_cannot_be_meant_is_refused_without_being_repeated(text):
    with pytest.raises(DecodeError) as caught:
        Secret.parse(text)
    assert "zz" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["s", "z" * MAX_SECRET, "with space", "流れ", "WHSEC_zzz", "whsec_AA=="])
def test_a_secret_that_somebody_chose_is_taken_as_it_is(text):
    assert Secret.parse(text).reveal() == text


# delivery ids


@given(ENDPOINTS, st.integers(0, MAX_POSITION), EVENT_IDS)
def test_a_delivery_id_tells_endpoint_and_position_and_has_no_dot(endpoint, position, event):
    name = delivery_id(endpoint, position, event)
    assert "." not in name
    assert name == delivery_id(endpoint, position, event)
    assert parse_delivery_id(name) == (endpoint, position)


@given(*[st.tuples(ENDPOINTS, st.integers(0, MAX_POSITION), EVENT_IDS)] * 2)
def test_no_two_deliveries_have_one_id(one, other):
    assert (delivery_id(*one) == delivery_id(*other)) == (one == other)


@given(ENDPOINTS, st.integers(0, MAX_POSITION), EVENT_IDS, EVENT_IDS)
def test_another_event_at_the_same_position_has_another_id(endpoint, position, one, other):
    assert (delivery_id(endpoint, position, one) == delivery_id(endpoint, position, other)) == (one == other)


def test_ids_stay_what_they_are():
    """Receivers keep them: a new version makes the same. `printf '1-0000000042949677056-0000000000' | sha256sum`."""
    made = delivery_id("we_1", 7, "1-0000000042949677056-0000000000")
    assert made == "msg_we_1_7_7a8b3a479674"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "msg",
        "msg_",
        "msg_a",
        "msg_a_1",
        "msg_a_1_",
        f"msg__1_{TAG}",
        f"msg_a__{TAG}",
        f"msg_a_{TAG}",
        f"msg_a_01_{TAG}",
        f"msg_a_-1_{TAG}",
        f"msg_a_+1_{TAG}",
        f"msg_a_1_{TAG} ",
        f"msg_a_1_{TAG}\n",
        f" msg_a_1_{TAG}",
        f"msg_a_1_{TAG}0",
        f"msg_a_1_{TAG[1:]}",
        f"msg_a_1_{TAG.upper()}",
        f"msg_a.b_1_{TAG}",
        f"msg_é_1_{TAG}",
        f"msg_a_٣_{TAG}",
        f"MSG_a_1_{TAG}",
        f"msg_a_{MAX_POSITION + 1}_{TAG}",
        f"msg_a_{'9' * 5_000}_{TAG}",
        f"msg_{'a' * 65}_1_{TAG}",
    ],
)
def test_what_is_no_delivery_id_is_none(text):
    assert parse_delivery_id(text) is None


@given(st.one_of(st.text(max_size=60), st.from_regex(r"msg_[a-z_]+_[0-9]+_[0-9a-f]{12}", fullmatch=True)))
def test_any_text_is_an_id_that_could_be_made_or_none(text):
    parsed = parse_delivery_id(text)
    assert parsed is None or delivery_id(*parsed, "any")[:-12] == text[:-12]
