"""http/reading.read_query, with the models of the lists: what is taken is within what they promise, and comes from one
parameter each; what is refused is refused for parameters that the answer names.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec
from stellar_sdk import StrKey

from bench.fuzz.findings import demand
from fluxora.errors import BadRequest
from fluxora.http.models import AllEvents, ListStreams, OneStream
from fluxora.http.reading import read_query

MODELS: tuple[type[msgspec.Struct], ...] = (ListStreams, AllEvents, OneStream)
_RANGES = {
    "limit": (1, 1000),
    "as_of": (0, 253_402_300_799),
    "after": (0, 2**63 - 1),
    "cursor": (0, 2**63 - 1),
    "ledger_from": (0, 2**32 - 1),
    "ledger_to": (0, 2**32 - 1),
}
_CHOICES = {"status": {"active", "paused", "completed", "cancelled"}, "order": {"asc", "desc"}}


def execute(data: bytes) -> bool:
    """The first byte chooses the model, the rest is a query string."""
    model = MODELS[data[0] % len(MODELS)] if data else OneStream
    try:
        pairs = parse_qsl(data[1:].decode("latin-1"), keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError:
        return False  # as the server does
    try:
        found = read_query(model, pairs)
    except BadRequest as error:
        demand(error.details, "refused and nothing named")
        names = {name[:100] for name, _ in pairs}
        strangers = [field for field, _, _ in error.details or () if field not in names]
        demand(not strangers, f"named what was not sent: {strangers}")
        return False
    _judge(model, found, dict(pairs), len(pairs))
    return True


def _judge(model: type[msgspec.Struct], found: msgspec.Struct, sent: dict[str, str], count: int) -> None:
    demand(len(sent) == count, "a repeated parameter was taken")
    by_wire = dict(zip(model.__struct_encode_fields__, model.__struct_fields__, strict=True))
    demand(set(sent) <= set(by_wire), "an unknown parameter was taken")
    for wire_name, name in by_wire.items():
        value = getattr(found, name)
        if wire_name in sent:
            demand(_fits(name, sent[wire_name], value), f"{wire_name} taken as {value!r}")
        else:
            demand(value == getattr(model(), name), f"{wire_name} was not sent and is {value!r}")


def _fits(name: str, text: str, value: Any) -> bool:
    if name in _RANGES:
        low, high = _RANGES[name]
        return isinstance(value, int) and low <= value <= high and (name == "cursor" or str(value) == _plain(text))
    if name in _CHOICES and value not in _CHOICES[name]:
        return False
    if name == "contract_id" and not StrKey.is_valid_contract(value):
        return False
    if name in {"sender", "recipient"} and not (
        StrKey.is_valid_ed25519_public_key(value) or StrKey.is_valid_contract(value)
    ):
        return False
    return bool(value == text)


def _plain(text: str) -> str:
    """Digits without the zeros in front."""
    return text.lstrip("0") or "0"
