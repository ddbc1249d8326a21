"""For who receives webhooks: is this request a delivery that Fluxora signed, fresh and not seen before?

::

    from fluxora.webhooks import Refused, verify

    try:
        delivery = verify(raw_body, request.headers, secret=SECRET, known=already_done)
    except Refused as refused:
        return refused.answer_status
    handle(delivery.json())

This file uses the standard library alone and imports nothing of Fluxora: it may be copied into another project. It fits
every framework: `raw_body` are the bytes as they came (never JSON that was parsed and written anew), `headers` whatever
the framework has.

What is checked, in this order; the first that fails is told
- the consumer has a secret: `missing_secret`, 500
- delivery id, timestamp and signature are there: `missing_delivery_id`, `missing_timestamp`, `missing_signature`, 401
- the body has at most 262,144 bytes: `payload_too_large`, 413
- the timestamp is a number: `invalid_timestamp`, 400
- it is at most 300 s from now: `timestamp_outside_tolerance`, 401
- a signature was made with the secret, or with the previous one while that counts: `signature_mismatch`, 401
- the delivery is not known: `duplicate_delivery`, 409

Deliveries carry the headers `x-fluxora-*` and those of Standard Webhooks. Where one of the first is absent, its
counterpart is read. Whichever family's signature matches, it has signed the timestamp that was checked.
`x-fluxora-signature` does not cover the delivery's id and `x-fluxora-event` is not signed at all, so go by the body:
its `event` is what happened, and its `eventId` is the same however often the event is sent.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_BODY_BYTES: Final = 262_144
TOLERANCE_S: Final = 300

_TIMESTAMP: Final = re.compile(r"[0-9]+", re.ASCII)
_MOST_DIGITS: Final = 15  # beyond them a number is no time of ours, and need not be parsed
_STATUS: Final = {
    "missing_secret": 500,
    "missing_delivery_id": 401,
    "missing_timestamp": 401,
    "missing_signature": 401,
    "payload_too_large": 413,
    "invalid_timestamp": 400,
    "timestamp_outside_tolerance": 401,
    "signature_mismatch": 401,
    "duplicate_delivery": 409,
}

Headers = Mapping[str, str] | Mapping[bytes, bytes] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]


class Refused(Exception):
    """The request is not to be acted on. `code` is stable, `status` the HTTP status that says the same."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = _STATUS[code]
        self.message = message

    @property
    def answer_status(self) -> int:
        """What to answer with: 200 to a duplicate, since whatever else is answered it is sent again; else `status`."""
        return 200 if self.code == "duplicate_delivery" else self.status


@dataclass(frozen=True)
class Delivery:
    """A delivery that passed. `id` is the same for all its attempts, `timestamp` (Unix s) is this attempt's."""

    id: str
    timestamp: int
    body: bytes

    def json(self) -> Any:
        """The event: an object with event, eventId, streamId, position, action, timestamp and payload.

        Raises:
            ValueError: the body is not JSON, which Fluxora never signs.
        """
        return json.loads(self.body)


def verify(
    body: bytes,
    headers: Headers,
    *,
    secret: str | None,
    previous_secret: str | None = None,
    previous_secret_until: float | None = None,
    known: Callable[[str], object] | Container[str] = (),
    tolerance_s: float = TOLERANCE_S,
    now: float | None = None,
) -> Delivery:
    """Check a request, in the order that the module's docstring gives.

    Args:
        body: the bytes as they came.
        headers: a mapping or pairs, names in whatever case; text or bytes.
        secret: the endpoint's secret, as it was shown when the endpoint was made or its secret rotated.
        previous_secret: the one before it, while it is being replaced.
        previous_secret_until: Unix seconds from when on `previous_secret` counts no more; None: while it is given.
        known: the ids of deliveries that were dealt with, as a container or as a function that says whether one was. It
            is asked last, about authentic deliveries only. A coroutine function cannot be asked: leave it out, and look
            the delivery's id up yourself.
        tolerance_s: how far the sender's clock and the way here may set the timestamp apart from `now`.
        now: Unix seconds; None: this machine's clock.

    Raises:
        Refused: the first check that failed.
        TypeError: the body is not bytes, or `known` is a coroutine function.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError("the body must be the raw bytes of the request: what is parsed or decoded has no signature")
    body = bytes(body)
    if not secret:
        raise Refused("missing_secret", "no webhook secret is configured; nothing can be verified without it")
    found = _Found(headers)
    if len(body) > MAX_BODY_BYTES:
        raise Refused("payload_too_large", f"the body has more than {MAX_BODY_BYTES} bytes")
    now = time.time() if now is None else now
    seconds = _seconds(found.timestamp)
    if seconds is None or abs(now - seconds) > tolerance_s:
        raise Refused("timestamp_outside_tolerance", f"the timestamp is more than {tolerance_s:g} s away from now")
    secrets = [secret]
    if previous_secret and (previous_secret_until is None or now < previous_secret_until):
        secrets.append(previous_secret)
    if not _signed(body, found, secrets):
        raise Refused("signature_mismatch", "no signature was made with the secret over these bytes")
    if _is_known(known, found.id):
        raise Refused("duplicate_delivery", "the delivery was dealt with before; answer it with 200")
    return Delivery(found.id, seconds, body)


class _Found:
    """What the headers say. The timestamp stays text, since text is what was signed.

    Raises:
        Refused: one is missing.
    """

    def __init__(self, headers: Headers) -> None:
        values = _wanted(headers)
        self.id = values.get("x-fluxora-delivery-id") or values.get("webhook-id") or ""
        self.timestamp = values.get("x-fluxora-timestamp") or values.get("webhook-timestamp") or ""
        self.hex_signature = values.get("x-fluxora-signature", "")
        self.signatures = values.get("webhook-signature", "").split()
        for code, value, name in (
            ("missing_delivery_id", self.id, "x-fluxora-delivery-id or webhook-id"),
            ("missing_timestamp", self.timestamp, "x-fluxora-timestamp or webhook-timestamp"),
            ("missing_signature", self.hex_signature or self.signatures, "x-fluxora-signature or webhook-signature"),
        ):
            if not value:
                raise Refused(code, f"the request has no header {name}")


def _wanted(headers: Headers) -> dict[str, str]:
    """Ours by lower-case name. One that stands twice is joined with commas, as HTTP has it, and so fits nothing."""
    joined: dict[str, str] = {}
    for key, value in _pairs(headers):
        name = _text(key).lower()
        if name.startswith(("x-fluxora-", "webhook-")):
            text = _text(value).strip()
            joined[name] = f"{joined[name]}, {text}" if name in joined else text
    return joined


def _pairs(headers: Any) -> Iterator[tuple[str | bytes, str | bytes]]:
    items = getattr(headers, "items", None)  # mappings, and what frameworks have that is nearly one
    return iter(headers if items is None else items())


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _seconds(text: str) -> int | None:
    """The timestamp as a number; None for one that is beyond every clock.

    Raises:
        Refused: it is no number.
    """
    if _TIMESTAMP.fullmatch(text) is None:
        raise Refused("invalid_timestamp", "the timestamp is not a number of seconds in digits")
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def _signed(body: bytes, found: _Found, secrets: Iterable[str]) -> bool:
    """True if one signature fits one secret. Each is compared with each, so that time tells nothing."""
    fits = False
    for secret in secrets:
        timed = f"{found.timestamp}.".encode() + body
        mine = hmac.new(_octets(secret), timed, hashlib.sha256).hexdigest()
        fits |= hmac.compare_digest(mine.encode(), _octets(found.hex_signature))
        key = _standard_key(secret)
        if key is None:
            continue
        digest = hmac.new(key, _octets(found.id) + b"." + timed, hashlib.sha256).digest()
        mine = "v1," + b64encode(digest).decode("ascii")
        for given in found.signatures:
            fits |= hmac.compare_digest(mine.encode(), _octets(given))
    return fits


def _standard_key(secret: str) -> bytes | None:
    """The key of Standard Webhooks: base64 behind `whsec_`, else the text's bytes; None for broken base64."""
    if not secret.startswith("whsec_"):
        return _octets(secret)
    text = secret.removeprefix("whsec_")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _octets(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _is_known(known: Callable[[str], object] | Container[str], delivery_id: str) -> bool:
    if not callable(known):
        return delivery_id in known
    answer = known(delivery_id)
    if hasattr(answer, "__await__"):  # it would count as yes, and each delivery as a duplicate
        getattr(answer, "close", lambda: None)()
        raise TypeError("known must be a plain function; look the delivery's id up after verify instead")
    return bool(answer)
