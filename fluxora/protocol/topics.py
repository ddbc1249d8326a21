"""The contract's event topics: which fields each carries, their types, and how older shapes are lifted to today's.

A topic's fields are written as `name:type` words: u32 u64 i128 bool text address bytes hash entries (a map of bytes to
bytes). `?` after the type lets it be null (the contract's Option); `=value` is what an older event without the field
means. Fields that are not listed are kept and ignored: the contract only ever appends. Sources: the contract's
events at version 9, and its history for what older deployments sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from fluxora.errors import DecodeError
from fluxora.protocol.addresses import is_account_or_contract

UNKNOWN: Final = "unknown"
"""The action of an event that is kept as it came: an unknown topic, or a known one whose data cannot be used."""

CORRECTED: Final = "corrected"
"""The action of a state correction that was read from a ledger entry."""

AMOUNT_FIELDS: Final = frozenset(
    {
        "amount",
        "attempted_rate",
        "checkpointed_amount",
        "child_rate",
        "deposit_amount",
        "keeper_fee",
        "max_rate_per_second",
        "new_deposit_amount",
        "new_parent_rate",
        "new_rate_per_second",
        "old_rate_per_second",
        "rate_per_second",
        "recipient_amount",
        "refund_amount",
        "remaining_balance",
        "sender_refund",
        "top_up_amount",
        "withdraw_dust_threshold",
        "withdrawn_amount",
    }
)
"""Names of data fields that are token amounts in base units (rates: base units per second)."""

_BOUNDS: Final = {
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "i128": (-(2**127), 2**127 - 1),
}
_HASH_BYTES: Final = 32
_LONGEST_INT: Final = 40  # characters of the smallest i128


def _is_entries(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, bytes) and isinstance(v, bytes) for k, v in value.items())


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "bool": lambda value: value is True or value is False,
    "text": lambda value: isinstance(value, str | bytes),  # a contract String need not be UTF-8
    "address": lambda value: type(value) is str and is_account_or_contract(value),
    "bytes": lambda value: isinstance(value, bytes),
    "hash": lambda value: isinstance(value, bytes) and len(value) == _HASH_BYTES,
    "entries": _is_entries,
}


def _from_json(kind: str, value: Any) -> Any:
    """Native value of a decoded (JSON) payload's field; what does not fit comes back as it is and fails its check."""
    if isinstance(value, str):
        if kind in _BOUNDS:
            digits = value.removeprefix("-")
            if digits.isascii() and digits.isdigit() and len(value) <= _LONGEST_INT:
                return int(value)
        elif kind == "bytes":
            return value.encode("utf-8", "surrogatepass")
        elif kind == "hash":
            try:
                return bytes.fromhex(value)
            except ValueError:
                return value
    elif kind == "entries" and isinstance(value, Mapping):
        return {_from_json("bytes", k): _from_json("bytes", v) for k, v in value.items()}
    return value


class Topic(msgspec.Struct, frozen=True):
    """One topic of the contract.

    `id_field` is the data field that repeats the topic's id; `is_stream` says whether that id is a stream's.
    `holder` is the data field that takes the topic's address. `variants` are the names of the enum variant
    `[variant, id]` that stands for {id_field: id}; `tuple_fields` name the items of a tuple; `bare_field` names a bare
    value (the first contracts sent amounts that way); `void` says that no data at all is fine.
    """

    name: str
    ints: tuple[tuple[str, int, int], ...]
    others: tuple[tuple[str, Callable[[Any], bool], bool], ...]
    kinds: dict[str, str]
    defaults: tuple[tuple[str, Any], ...]
    id_field: str | None
    is_stream: bool
    holder: str | None
    variants: frozenset[str]
    tuple_fields: tuple[str, ...]
    bare_field: str | None
    void: bool

    def lift(self, value: Any, topic_id: int | None) -> tuple[dict[str, Any], bool]:
        """Data of a decoded value under today's names, and whether it has today's whole field set.

        Raises:
            DecodeError: no shape that this topic ever had.
        """
        if isinstance(value, dict):
            return value, True
        if isinstance(value, list):
            if (
                len(value) == 2
                and isinstance(value[0], str)
                and value[0] in self.variants
                and self.id_field is not None
            ):
                return {self.id_field: value[1]}, False
            if self.tuple_fields and len(value) == len(self.tuple_fields):
                return dict(zip(self.tuple_fields, value, strict=True)), True
        elif value is None:
            if self.void and self.id_field is not None and topic_id is not None:
                return {self.id_field: topic_id}, False
        elif self.bare_field is not None:
            return {self.bare_field: value}, False
        raise DecodeError(f"{self.name}: data is of no known shape")

    def check(self, data: dict[str, Any]) -> None:
        """Hold `data` against the field table and fill in what older events lack.

        Raises:
            DecodeError: a field is missing or not of its type.
        """
        for name, default in self.defaults:
            if name not in data:
                data[name] = default
        try:
            for name, low, high in self.ints:
                value = data[name]
                if type(value) is not int or not low <= value <= high:
                    raise DecodeError(f"{self.name}: {name} is not an integer in its range")
            for name, accepts, optional in self.others:
                value = data[name]
                if not (accepts(value) or (optional and value is None)):
                    raise DecodeError(f"{self.name}: {name} is not what it must be")
        except KeyError as error:
            raise DecodeError(f"{self.name}: {error.args[0]} is missing") from None

    def check_present(self, data: dict[str, Any]) -> None:
        """`check` of the numbers that an older shape has; the fields it lacks are not asked for.

        Raises:
            DecodeError: one is not an integer in its range.
        """
        for name, low, high in (*self.ints, (self.bare_field, *_BOUNDS["i128"])):
            if name in data and (type(data[name]) is not int or not low <= data[name] <= high):
                raise DecodeError(f"{self.name}: {name} is not an integer in its range")

    def from_payload(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Native data of a decoded payload: integers may be digit strings, bytes are text (a hash: 64 hex digits).

        Raises:
            DecodeError: a field is missing or not of its type.
        """
        kinds = self.kinds
        data = {key: _from_json(kinds.get(key, ""), value) for key, value in payload.items()}
        self.check(data)
        return data


def _topic(
    name: str,
    fields: str,
    *,
    id_field: str | None = "stream_id",
    is_stream: bool = True,
    holder: str | None = None,
    variants: str = "",
    tuple_fields: str = "",
    bare_field: str | None = None,
    void: bool = False,
) -> Topic:
    ints: list[tuple[str, int, int]] = []
    others: list[tuple[str, Callable[[Any], bool], bool]] = []
    kinds: dict[str, str] = {}
    defaults: list[tuple[str, Any]] = []
    for word in fields.split():
        field, _, kind = word.partition(":")
        kind, has_default, default = kind.partition("=")
        optional = kind.endswith("?")
        kind = kind.rstrip("?")
        kinds[field] = kind
        if has_default:
            defaults.append((field, int(default) if default else None))
        if kind in _BOUNDS and not optional:
            ints.append((field, *_BOUNDS[kind]))
        elif kind in _BOUNDS:
            others.append((field, _in_bounds(*_BOUNDS[kind]), optional))
        else:
            others.append((field, _CHECKS[kind], optional))
    return Topic(
        name,
        tuple(ints),
        tuple(others),
        kinds,
        tuple(defaults),
        id_field,
        is_stream,
        holder,
        frozenset(variants.split()),
        tuple(tuple_fields.split()),
        bare_field,
        void,
    )


def _in_bounds(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


_SCHEDULE: Final = (
    "sender:address recipient:address deposit_amount:i128 rate_per_second:i128"
    " start_time:u64 cliff_time:u64 end_time:u64"
)
_RATE_CHANGE: Final = "stream_id:u64 old_rate_per_second:i128 new_rate_per_second:i128 effective_time:u64"
_PAUSED_FLAG: Final = "paused:bool"

_ALL: Final = (
    _topic(
        "created",
        f"stream_id:u64 {_SCHEDULE} withdraw_dust_threshold:i128=0 memo:bytes?= metadata:entries?=",
        bare_field="deposit_amount",
    ),
    _topic("withdrew", "stream_id:u64 recipient:address amount:i128", bare_field="amount"),
    _topic("wdraw_to", "stream_id:u64 recipient:address destination:address amount:i128"),
    _topic("completed", "stream_id:u64", variants="StreamCompleted Completed", void=True),
    _topic("paused", "stream_id:u64 reason:text?=", variants="Paused StreamPaused", void=True),
    _topic("resumed", "stream_id:u64", variants="Resumed StreamResumed", void=True),
    # The first contracts sent what went back to the sender, a bare amount.
    _topic("cancelled", "stream_id:u64", variants="StreamCancelled Cancelled", bare_field="refund_amount"),
    _topic("kp_cncl", "stream_id:u64 keeper:address keeper_fee:i128 recipient_amount:i128 sender_refund:i128"),
    _topic("closed", "stream_id:u64", variants="StreamClosed Closed", void=True),
    _topic("rate_upd", _RATE_CHANGE),
    _topic("rate_dec", f"{_RATE_CHANGE} checkpointed_amount:i128 refund_amount:i128"),
    _topic("rate_cap", "stream_id:u64 attempted_rate:i128 max_rate_per_second:i128"),
    _topic("end_shrt", "stream_id:u64 old_end_time:u64 new_end_time:u64 refund_amount:i128"),
    _topic("end_ext", "stream_id:u64 old_end_time:u64 new_end_time:u64"),
    _topic("top_up", "stream_id:u64 top_up_amount:i128 new_deposit_amount:i128 new_end_time:u64"),
    _topic("recp_upd", "stream_id:u64 old_recipient:address new_recipient:address"),
    _topic("claim_own", "stream_id:u64 old_owner:address? new_owner:address"),
    _topic(
        "del_share",
        "parent_stream_id:u64 child_stream_id:u64 delegator:address delegatee:address share_bps:u32"
        " new_parent_rate:i128 child_rate:i128",
        id_field="parent_stream_id",
    ),
    _topic(
        "cloned",
        f"new_stream_id:u64 source_stream_id:u64 {_SCHEDULE} withdraw_dust_threshold:i128=0",
        id_field="new_stream_id",
    ),
    _topic("renewed", "old_stream_id:u64 new_stream_id:u64", id_field="old_stream_id"),
    _topic("decomm", "stream_id:u64 decommissioned:bool"),
    _topic("health", "stream_id:u64 is_underfunded:bool remaining_balance:i128 seconds_remaining:u64"),
    _topic("ac_set", "stream_id:u64 destination:address"),
    _topic("ac_revoke", "stream_id:u64"),
    _topic("ac_trig", "stream_id:u64 destination:address amount:i128"),
    _topic("sndr_xfr", "stream_id:u64 old_sender:address new_sender:address"),
    # Proposals of a new recipient: they change nothing until recp_upd, so only the stream is asked for.
    _topic("recp_prp", "stream_id:u64"),
    _topic("recp_cxl", "stream_id:u64"),
    # An offer's id becomes the stream's when it is accepted; until then there is no stream.
    _topic(
        "offr_crt",
        f"offer_id:u64 {_SCHEDULE} expiry_time:u64?= created_at:u64",
        id_field="offer_id",
        is_stream=False,
    ),
    _topic("offr_acc", "offer_id:u64 effective_start_time:u64 recipient:address", id_field="offer_id"),
    _topic("offr_cxl", "offer_id:u64 by:address refund_amount:i128", id_field="offer_id", is_stream=False),
    _topic("gl_pause", _PAUSED_FLAG, id_field=None, bare_field="paused"),
    _topic("gl_resume", "resumed_at:u64", id_field=None, bare_field="resumed_at"),
    _topic("ct_pause", _PAUSED_FLAG, id_field=None, bare_field="paused"),
    _topic("pr_pause", "reason:text paused_at:u64 admin:address?=", id_field=None, holder="admin"),
    _topic("pr_resume", "resumed_at:u64 admin:address?=", id_field=None, holder="admin"),
    _topic("ex_swept", "to:address amount:i128", id_field=None),
    _topic("AdminUpd", "old_admin:address new_admin:address", id_field=None, tuple_fields="old_admin new_admin"),
    _topic("upgraded", "new_wasm_hash:hash new_version:u32 upgraded_at:u64 upgraded_by:address", id_field=None),
    _topic(
        "upgrade",
        "new_wasm_hash:hash old_version:u32 new_version:u32 upgraded_by:address",
        id_field=None,
        tuple_fields="new_wasm_hash old_version new_version upgraded_by",
    ),
    _topic(
        "tmpl_def",
        "template_id:u64 owner:address start_delay:u64 cliff_delay:u64 duration:u64",
        id_field="template_id",
        is_stream=False,
    ),
    _topic(
        "res_rel",
        "start_id:u64 count:u64 consumed:u64 reclaimed:u64 holder:address?=",
        id_field=None,
        holder="holder",
        tuple_fields="start_id count consumed reclaimed",
    ),
)

ALIASES: Final = {
    "AdminUpdated": "AdminUpd",
    "paused_ctl": "ct_pause",
    "toppedup": "top_up",
    "complete": "completed",
    "hlth_chg": "health",
    "rcpt_upd": "recp_upd",
    "g_paused": "gl_pause",
    "g_resume": "gl_resume",
    "pr_rsm": "pr_resume",
    "excess_sw": "ex_swept",
    "ac_rev": "ac_revoke",
    "dlg_wdraw": "withdrew",  # a delegated withdrawal had a topic of its own before it became `withdrew`
}
"""Topics that were renamed at times, and the name they have today."""

TOPICS: Final[dict[str, Topic]] = {topic.name: topic for topic in _ALL}
ACTIONS: Final = frozenset({*TOPICS, UNKNOWN, CORRECTED})
"""Every value that a contract event's `action` can have."""


def topic_xdr(name: str) -> bytes:
    """XDR of the ScVal symbol `name`: what stands first among an event's topics."""
    encoded = name.encode("ascii")
    return b"\0\0\0\x0f" + len(encoded).to_bytes(4, "big") + encoded + b"\0" * (-len(encoded) % 4)


BY_NAME: Final[dict[str, Topic]] = TOPICS | {alias: TOPICS[name] for alias, name in ALIASES.items()}
BY_XDR: Final[dict[bytes, Topic]] = {topic_xdr(name): topic for name, topic in BY_NAME.items()}
