"""How a webhook is signed: the secrets, the two families of headers, and the id of a delivery.

Both families sign the same body at the same time. `x-fluxora-signature` is the lower-case hex HMAC-SHA256 of
`timestamp.body` under the bytes of the secret's text, as it was given. `webhook-signature` is Standard Webhooks 1.0:
the base64 HMAC-SHA256 of `id.timestamp.body`; its key is what stands in base64 behind `whsec_`, or the text's own bytes
where the secret has no such prefix.

While a secret is being replaced both are active. `webhook-signature` then lists one signature for each;
`x-fluxora-signature` has room for one, which is the current secret's.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

from fluxora.errors import DecodeError

PREFIX: Final = "whsec_"
ENTROPY_BYTES: Final = 32
"""What a new secret is made of, of the 24 to 64 that Standard Webhooks allows."""
MAX_SECRET: Final = 256
MAX_BODY_BYTES: Final = 262_144
"""Of a body that is sent: receivers refuse longer ones, `fluxora.webhooks.verify` among them."""
MAX_POSITION: Final = 2**63 - 1

_LEAST_ENTROPY, _MOST_ENTROPY = 24, 64
_TAG_BYTES: Final = 6
_DELIVERY: Final = re.compile(r"msg_([A-Za-z0-9_-]{1,64})_(0|[1-9][0-9]{0,18})_[0-9a-f]{12}")


class Secret:
    """A signing secret. Neither `repr` nor `str` shows it; `reveal` does, for the one reader who is to have it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def from_bytes(cls, entropy: bytes) -> Secret:
        """A new secret, `whsec_` and the base64 of `entropy`.

        Raises:
            ValueError: not 24 to 64 bytes.
        """
        if not _LEAST_ENTROPY <= len(entropy) <= _MOST_ENTROPY:
            raise ValueError(f"a secret is made of {_LEAST_ENTROPY} to {_MOST_ENTROPY} random bytes")
        return cls(PREFIX + b64encode(entropy).decode("ascii"))

    @classmethod
    def parse(cls, text: str) -> Secret:
        """A secret that somebody chose.

        Raises:
            DecodeError: empty, too long, or likely to have been damaged on its way here (white space at an end, control
                characters, no base64 behind `whsec_`). The message holds nothing of it.
        """
        if not text:
            raise DecodeError("a secret is needed; it is empty")
        if len(text) > MAX_SECRET:
            raise DecodeError(f"a secret has at most {MAX_SECRET} characters")
        if text != text.strip() or not text.isprintable():  # which lone surrogates are not either
            raise DecodeError("a secret has no white space at its ends and no control characters")
        if text.startswith(PREFIX) and not _is_base64(text.removeprefix(PREFIX)):
            raise DecodeError(f"a secret that begins with {PREFIX} goes on in base64, padded with =")
        return cls(text)

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))


def standard_key(secret: Secret) -> bytes:
    """The key of the Standard Webhooks signature: decoded behind `whsec_`, else the text's bytes."""
    text = secret.reveal()
    return b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else text.encode()


def fluxora_signature(secret: Secret, timestamp: int, body: bytes) -> str:
    """`x-fluxora-signature`: 64 lower-case hex digits. `timestamp` is in Unix seconds."""
    return hmac.new(secret.reveal().encode(), b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()


def standard_signature(secret: Secret, delivery_id: str, timestamp: int, body: bytes) -> str:
    """One entry of `webhook-signature`: `v1,` and 44 characters of base64. `timestamp` is in Unix seconds."""
    signed = b"%b.%d.%b" % (delivery_id.encode("ascii"), timestamp, body)
    return "v1," + b64encode(hmac.digest(standard_key(secret), signed, "sha256")).decode("ascii")


def headers(
    delivery_id: str, timestamp: int, event: str, body: bytes, secrets: Sequence[Secret]
) -> tuple[tuple[str, str], ...]:
    """Both families for one attempt at `timestamp` (Unix seconds). `secrets` are the active ones, the current first.

    The names are lower case; `event` is the event's name, such as `stream.created`.
    """
    return (
        ("x-fluxora-delivery-id", delivery_id),
        ("x-fluxora-timestamp", str(timestamp)),
        ("x-fluxora-signature", fluxora_signature(secrets[0], timestamp, body)),
        ("x-fluxora-event", event),
        ("webhook-id", delivery_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", " ".join(standard_signature(each, delivery_id, timestamp, body) for each in secrets)),
    )


def delivery_id(endpoint_id: str, position: int, event_id: str) -> str:
    """The id of the delivery of an event to an endpoint: the same whenever and by whom it is sent.

    It names the event beside its position, by the beginning of a hash: where a database goes back to an earlier state,
    the positions above that are given to other events, and receivers that remember ids must not take those for known.
    It has no dot, since dots separate what Standard Webhooks signs.
    """
    tag = hashlib.sha256(event_id.encode()).digest()[:_TAG_BYTES].hex()
    return f"msg_{endpoint_id}_{position}_{tag}"


def parse_delivery_id(text: str) -> tuple[str, int] | None:
    """The endpoint's id and the position in what looks like a `delivery_id`; None where it does not.

    Whether it is that of the event at the position is for the caller to compare.
    """
    match = _DELIVERY.fullmatch(text)
    if match is None:
        return None
    position = int(match[2])
    return (match[1], position) if position <= MAX_POSITION else None


def _is_base64(text: str) -> bool:
    """True for at least one byte, in the one way that every library reads: padded, and no bit left over."""
    try:
        decoded = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return bool(decoded) and b64encode(decoded).decode("ascii") == text
