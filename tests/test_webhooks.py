"""What a consumer checks: every row of the contract, each before the next, and that it agrees with the sender."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

import fluxora
from fluxora.protocol import signing
from fluxora.protocol.signing import Secret
from fluxora.webhooks import MAX_BODY_BYTES, Delivery, Refused, verify

NOW = 1_710_000_000
SECRET = Secret.from_bytes(bytes(range(32)))
OTHER = Secret.from_bytes(bytes(32))
CHOSEN = Secret.parse("topsecret")
BODY = b'{"event":"stream.updated"}'
DELIVERY = "msg_we_1_7"
OURS = ("x-fluxora-delivery-id", "x-fluxora-timestamp", "x-fluxora-signature")
STANDARD = ("webhook-id", "webhook-timestamp", "webhook-signature")


def sent(*secrets: Secret, body: bytes = BODY, at: int = NOW, without: tuple[str, ...] = ()) -> dict[str, str]:
    made = signing.headers(DELIVERY, at, "stream.updated", body, secrets or (SECRET,))
    return {name: value for name, value in made if name not in without}


def outcome(body: bytes, headers, secret: str | None = SECRET.reveal(), now: float = NOW, **options) -> str:
    try:
        delivery = verify(body, headers, secret=secret, now=now, **options)
    except Refused as refused:
        return refused.code
    assert isinstance(delivery, Delivery)
    return "ok"


# the rows, and their order

ROWS = [  # in the contract's order: code, status, and the fault that brings it about
    ("missing_secret", 500),
    ("missing_delivery_id", 401),
    ("missing_timestamp", 401),
    ("missing_signature", 401),
    ("payload_too_large", 413),
    ("invalid_timestamp", 400),
    ("timestamp_outside_tolerance", 401),
    ("signature_mismatch", 401),
    ("duplicate_delivery", 409),
]


def with_faults(codes: set[str], family: tuple[str, str, str]) -> None:
    """Verify a request with these faults, made of one family of headers."""
    oversized = b"x" * (MAX_BODY_BYTES + 1)
    body = oversized if "payload_too_large" in codes else BODY
    at = NOW - 301 if "timestamp_outside_tolerance" in codes else NOW
    headers = {name: value for name, value in sent(body=body, at=at).items() if name in family}
    delivery_id, timestamp, signature = family
    if "invalid_timestamp" in codes:
        headers[timestamp] = "soon"
    if "signature_mismatch" in codes:
        headers[signature] = headers[signature].replace("v1,", "v1,AAAA") if "," in headers[signature] else "0" * 64
    for code, name in (
        ("missing_delivery_id", delivery_id),
        ("missing_timestamp", timestamp),
        ("missing_signature", signature),
    ):
        if code in codes:
            del headers[name]
    verify(
        body,
        headers,
        secret=None if "missing_secret" in codes else SECRET.reveal(),
        known={DELIVERY} if "duplicate_delivery" in codes else (),
        now=NOW,
    )


@pytest.mark.parametrize("family", [OURS, STANDARD])
@pytest.mark.parametrize(("code", "status"), ROWS)
def test_each_fault_has_its_code_and_status(code, status, family):
    with pytest.raises(Refused) as caught:
        with_faults({code}, family)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.answer_status == (200 if code == "duplicate_delivery" else status)
    assert str(caught.value) == caught.value.message
    assert SECRET.reveal() not in str(caught.value)


@pytest.mark.parametrize("family", [OURS, STANDARD])
@pytest.mark.parametrize(("first", "second"), list(itertools.combinations([code for code, _ in ROWS], 2)))
def test_of_two_faults_the_earlier_is_told(first, second, family):
    with pytest.raises(Refused) as caught:
        with_faults({first, second}, family)
    assert caught.value.code == first


def test_all_faults_at_once_come_up_one_by_one():
    codes = [code for code, _ in ROWS]
    for nth, code in enumerate(codes):
        with pytest.raises(Refused) as caught:
            with_faults(set(codes[nth:]), OURS)
        assert caught.value.code == code
    with_faults(set(), OURS)


# what passes


@pytest.mark.parametrize(
    ("secret", "timestamp", "body", "signature"),
    [
        ("topsecret", 1_710_000_000, BODY, "925006549b879c8d9e91c10a153254fb4b6e2241820a1b072e28aa2fa8caeb79"),
        ("s", 1, b"b", "8a24cdd4ca35ebc2922810a126f457252f7eaa83834bb009baafc362912addda"),
    ],
)
def test_the_vectors_of_the_contract_pass(secret, timestamp, body, signature):
    headers = {OURS[0]: "d", OURS[1]: str(timestamp), OURS[2]: signature}
    assert verify(body, headers, secret=secret, now=timestamp) == Delivery("d", timestamp, body)
    assert outcome(body, {**headers, OURS[2]: signature.upper()}, secret, timestamp) == "signature_mismatch"


@given(
    st.binary(max_size=300),
    st.integers(0, 4_000_000_000),
    st.lists(st.sampled_from([SECRET, OTHER, CHOSEN, Secret.parse("流れ")]), min_size=1, max_size=2, unique=True),
    st.sampled_from([(), OURS, STANDARD, OURS[2:], STANDARD[2:], OURS[:1], STANDARD[1:2]]),
)
def test_what_the_sender_signs_passes_whatever_a_proxy_leaves_of_it(body, at, secrets, without):
    headers = sent(*secrets, body=body, at=at, without=without)
    assert verify(body, headers, secret=secrets[0].reveal(), now=at) == Delivery(DELIVERY, at, body)
    assert outcome(body + b".", headers, secrets[0].reveal(), at) == "signature_mismatch"
    # Whoever has another secret of the active ones goes by Standard Webhooks, which lists a signature for each.
    expected = "signature_mismatch" if "webhook-signature" in without and len(secrets) == 2 else "ok"
    assert outcome(body, headers, secrets[-1].reveal(), at) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.binary(min_size=1, max_size=64))
def test_what_the_library_of_standard_webhooks_signs_passes(body, key):
    signature = Webhook(key).sign("msg_1", datetime.fromtimestamp(NOW, tz=UTC), body)
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": f"v1a,x {signature} v2,y"}
    secret = "whsec_" + b64encode(key).decode()
    for each in (secret, secret.rstrip("=")):
        assert outcome(body.encode(), headers, each) == "ok"


@pytest.mark.parametrize("away", [0, 299, 300, -300])
def test_a_timestamp_within_the_tolerance_passes(away):
    assert outcome(BODY, sent(at=NOW - away)) == "ok"


@pytest.mark.parametrize(
    ("headers", "now", "tolerance"),
    [
        (sent(at=NOW - 301), NOW, 300),
        (sent(at=NOW + 301), NOW, 300),
        (sent(), NOW + 300.25, 300),
        (sent(at=NOW - 11), NOW, 10),
        ({**sent(), OURS[1]: "9" * 5_000}, NOW, 300),
        ({**sent(), OURS[1]: "0"}, NOW, 300),
    ],
)
def test_a_timestamp_outside_is_refused(headers, now, tolerance):
    assert outcome(BODY, headers, now=now, tolerance_s=tolerance) == "timestamp_outside_tolerance"


@pytest.mark.parametrize(
    "text", ["-1", "+1710000000", "1710000000.0", "1e9", "0x1", "\u0661\u0667", "1_000", "1710000000,1710000000"]
)
def test_a_timestamp_that_is_no_number_is_refused(text):
    assert outcome(BODY, {**sent(), OURS[1]: text}) == "invalid_timestamp"


def test_the_clock_is_the_machines_where_none_is_given():
    headers = sent(at=int(time.time()))
    assert verify(BODY, headers, secret=SECRET.reveal()).id == DELIVERY
    with pytest.raises(Refused, match="300 s away"):
        verify(BODY, sent(), secret=SECRET.reveal())


def test_an_old_signature_does_not_pass_with_a_new_timestamp_beside_it():
    old = sent(at=NOW - 10_000)
    for fresh in (OURS[1:2], STANDARD[1:2], OURS[1:2] + STANDARD[1:2]):
        assert outcome(BODY, {**old, **dict.fromkeys(fresh, str(NOW))}) != "ok"
    assert outcome(BODY, {**sent(at=NOW - 10_000, without=OURS), OURS[1]: str(NOW)}) == "signature_mismatch"


def test_an_id_that_was_exchanged_does_not_pass_by_standard_webhooks():
    headers = sent(without=OURS)
    assert outcome(BODY, {**headers, "webhook-id": "msg_other_1"}) == "signature_mismatch"
    assert outcome(BODY, {**headers, "x-fluxora-delivery-id": "msg_other_1"}) == "signature_mismatch"


@pytest.mark.parametrize(
    "headers",
    [
        {**sent(), OURS[2]: "", STANDARD[2]: "v1,"},
        {**sent(without=STANDARD), OURS[2]: "é" * 64},
        {**sent(without=STANDARD), OURS[2]: "\udc80"},
        {**sent(without=STANDARD), OURS[2]: sent()[OURS[2]][:-1]},
        {**sent(without=STANDARD), OURS[2]: "0x" + sent()[OURS[2]]},
        {**sent(without=OURS), STANDARD[2]: sent()[STANDARD[2]].removeprefix("v1,")},
        {**sent(without=OURS), STANDARD[2]: sent()[STANDARD[2]].replace("v1", "v2")},
        {**sent(without=OURS), STANDARD[2]: sent()[STANDARD[2]].rstrip("=")},
    ],
)
def test_what_is_nearly_a_signature_is_none(headers):
    assert outcome(BODY, headers) == "signature_mismatch"


# secrets


def test_the_previous_secret_counts_while_it_may():
    headers = sent(OTHER)
    previous = OTHER.reveal()
    assert outcome(BODY, headers) == "signature_mismatch"
    assert outcome(BODY, headers, previous_secret=previous) == "ok"
    assert outcome(BODY, headers, previous_secret=previous, previous_secret_until=NOW + 1) == "ok"
    assert outcome(BODY, headers, previous_secret=previous, previous_secret_until=NOW) == "signature_mismatch"
    assert outcome(BODY, headers, previous_secret="") == "signature_mismatch"
    assert outcome(BODY, sent(), previous_secret=previous) == "ok"


@pytest.mark.parametrize("secret", [None, ""])
def test_without_a_secret_nothing_passes_even_with_a_previous_one(secret):
    assert outcome(BODY, sent(), secret, previous_secret=SECRET.reveal()) == "missing_secret"


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!", "whsec_A", "whsec_é"])
def test_a_damaged_secret_verifies_by_its_text_alone(secret):
    made = Secret(secret)  # as no sender would take it
    legacy = {OURS[0]: DELIVERY, OURS[1]: str(NOW), OURS[2]: signing.fluxora_signature(made, NOW, BODY)}
    assert outcome(BODY, legacy, secret) == "ok"
    assert outcome(BODY, sent(without=OURS), secret) == "signature_mismatch"


# headers and bodies as frameworks have them


@pytest.mark.parametrize(
    "form",
    [
        dict,
        lambda headers: {name.upper(): value for name, value in headers.items()},
        lambda headers: {name.title(): f"  {value} \t" for name, value in headers.items()},
        lambda headers: list(headers.items()),
        lambda headers: iter([("host", "x"), *headers.items()]),
        lambda headers: [(name.encode(), value.encode()) for name, value in headers.items()],
        lambda headers: {name.encode(): value.encode() for name, value in headers.items()},
        httpx.Headers,
    ],
)
def test_headers_come_in_any_form(form):
    assert outcome(BODY, form(sent())) == "ok"
    assert outcome(BODY, form({**sent(), OURS[1]: "x"})) == "invalid_timestamp"


def test_a_header_that_stands_twice_fits_nothing():
    pairs = list(sent().items())
    assert outcome(BODY, [*pairs, (OURS[1].upper(), str(NOW))]) == "invalid_timestamp"
    assert outcome(BODY, [*sent(without=STANDARD).items(), (OURS[2], "0" * 64)]) == "signature_mismatch"
    assert outcome(BODY, [*sent(without=OURS).items(), (STANDARD[0], DELIVERY)]) == "signature_mismatch"


def test_an_empty_header_is_a_missing_one():
    assert outcome(BODY, {**sent(without=STANDARD), OURS[0]: " "}) == "missing_delivery_id"
    assert outcome(BODY, {**sent(), OURS[0]: ""}) == "ok"  # there is webhook-id


@pytest.mark.parametrize("body", [BODY, bytearray(BODY), memoryview(BODY)])
def test_bodies_are_bytes_of_any_kind(body):
    assert verify(body, sent(), secret=SECRET.reveal(), now=NOW).body == BODY


@pytest.mark.parametrize("body", [BODY.decode(), json.loads(BODY), None])
def test_what_was_parsed_is_no_body(body):
    with pytest.raises(TypeError, match="raw bytes"):
        verify(body, sent(), secret=SECRET.reveal(), now=NOW)


def test_the_largest_body_passes():
    body = b"x" * MAX_BODY_BYTES
    assert outcome(body, sent(body=body)) == "ok"


def test_a_delivery_gives_its_event_and_cannot_be_changed():
    delivery = verify(BODY, sent(), secret=SECRET.reveal(), now=NOW)
    assert delivery.json() == {"event": "stream.updated"}
    with pytest.raises(FrozenInstanceError):
        delivery.id = "x"
    with pytest.raises(ValueError, match="Expecting value"):
        Delivery("d", NOW, b"b").json()


# known deliveries


@pytest.mark.parametrize("known", [{DELIVERY}, {DELIVERY: 1}, [DELIVERY], lambda name: {name} & {DELIVERY}])
def test_a_known_delivery_is_a_duplicate(known):
    assert outcome(BODY, sent(), known=known) == "duplicate_delivery"


@pytest.mark.parametrize("known", [(), set(), {"msg_we_1_8"}, lambda _: False, lambda _: None])
def test_an_unknown_delivery_passes(known):
    assert outcome(BODY, sent(), known=known) == "ok"


def test_only_authentic_deliveries_are_asked_about():
    asked: list[str] = []
    assert outcome(BODY, sent(OTHER), known=asked.append) == "signature_mismatch"
    assert asked == []
    assert outcome(BODY, sent(), known=asked.append) == "ok"
    assert asked == [DELIVERY]


def test_a_coroutine_function_cannot_be_asked():
    async def known(_name: str) -> bool:
        return False

    with pytest.raises(TypeError, match="plain function"):
        verify(BODY, sent(), secret=SECRET.reveal(), now=NOW, known=known)


# it stands alone

ALONE = """
import sys
before = set(sys.modules)
{imported}
ours = {{name.partition(".")[0] for name in set(sys.modules) - before}}
foreign = ours - set(sys.stdlib_module_names) - {{{allowed}}}
assert not foreign, foreign
assert verify(b"b", {{"x-fluxora-delivery-id": "d", "x-fluxora-timestamp": "1", "x-fluxora-signature":
    "8a24cdd4ca35ebc2922810a126f457252f7eaa83834bb009baafc362912addda"}}, secret="s", now=1).id == "d"
print(sorted(name for name in sys.modules if name.startswith("fluxora")))
"""


def run(script: str, *flags: str, path: str) -> str:
    command = [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {path!r})\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_brings_the_standard_library_alone():
    script = ALONE.format(imported="from fluxora.webhooks import verify", allowed="'fluxora'")
    assert run(script, path=str(Path(fluxora.__file__).parent.parent)) == "['fluxora', 'fluxora.webhooks']"


def test_it_works_as_a_copy_where_nothing_is_installed(tmp_path):
    shutil.copy(Path(fluxora.__file__).parent / "webhooks.py", tmp_path / "copied_webhooks.py")
    script = ALONE.format(imported="from copied_webhooks import verify", allowed="'copied_webhooks'")
    assert run(script, "-I", "-S", path=str(tmp_path)) == "[]"


def test_it_is_reached_from_the_package():
    script = "import fluxora; print(fluxora.webhooks.verify.__name__)"
    assert run(script, path=str(Path(fluxora.__file__).parent.parent)) == "verify"
