"""Long histories for benchmarks: a million events in seconds, in a few bytes a ledger.

Nothing is stored but headers. Every stream of a bulk history lives the same life, one step every `STRIDE` ledgers:
created, withdrew, top_up, withdrew, paused, resumed, withdrew, cancelled. Which streams are at which step in a ledger
follows from its number, so its events are rendered when a page asks for them, always the same ones: ScVal templates
that stellar_sdk encoded once, with ids, times, amounts and keys patched in. The same arithmetic gives each stream's
storage entry as of any ledger, and the state a reader must arrive at.
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from stellar_sdk import StrKey

from fluxora.errors import InvariantError
from fluxora.localnet.accounts import account
from fluxora.localnet.chain import Chain, Entry, Ledger, LedgerEvents, rfc3339
from fluxora.localnet.contract.accrual import CANCELLED, PAUSED, Stream
from fluxora.localnet.contract.encoding import encode_struct, encode_topics, encode_variant
from fluxora.localnet.entries import stream_entry, stream_key

STEPS = ("created", "withdrew", "top_up", "withdrew", "paused", "resumed", "withdrew", "cancelled")
STRIDE = 17  # ledgers between two steps of a stream: the contract's cooldown
LIFETIME_S = 30 * 86_400
TOP_UP_S = 3_600  # a top-up pays for this many more seconds
_PEOPLE = 64
_CACHED_LEDGERS = 8

_Sentinels = dict[str, int]
_SENTINELS: _Sentinels = {
    name: 0xA5A5_C3C3_9696_0100 + i
    for i, name in enumerate(("id", "start", "end", "deposit", "rate", "amount", "more", "whole"))
}
_KEYS = {"sender": b"\xb1" * 32, "recipient": b"\xb2" * 32}


class Template:
    """XDR bytes with holes: u64 and i128 numbers (below 2**64, not negative) and account keys."""

    def __init__(self, encoded: bytes) -> None:
        holes = [(name, struct.pack(">Q", value), "Q") for name, value in _SENTINELS.items()]
        holes += [(name, key, "32s") for name, key in _KEYS.items()]
        found: list[tuple[int, str, bytes, str]] = []
        for name, mark, code in holes:
            at = encoded.find(mark)
            while at >= 0:
                found.append((at, name, mark, code))
                at = encoded.find(mark, at + 1)
        layout, parts, names, position = ">", [], [], 0
        for at, name, mark, code in sorted(found):
            parts.append(encoded[position:at])
            layout += f"{at - position}s{code}"
            names.append(name)
            position = at + len(mark)
        layout += f"{len(encoded) - position}s"
        self.holes = tuple(names)
        self._pack = struct.Struct(layout).pack
        self._parts = (*parts, encoded[position:])

    def filler(self) -> Callable[[dict[str, Any]], bytes]:
        """A function from the holes' values to bytes."""
        pack, parts, holes = self._pack, self._parts, self.holes
        last = parts[-1]

        def fill(values: dict[str, Any]) -> bytes:
            arguments: list[Any] = []
            for part, hole in zip(parts, holes, strict=False):
                arguments += (part, values[hole])
            return pack(*arguments, last)

        return fill


def _templates() -> dict[str, Template]:
    s = _SENTINELS
    sender, recipient = (StrKey.encode_ed25519_public_key(key) for key in _KEYS.values())
    created = {
        "stream_id": s["id"],
        "sender": sender,
        "recipient": recipient,
        "deposit_amount": s["deposit"],
        "rate_per_second": s["rate"],
        "start_time": s["start"],
        "cliff_time": s["start"],
        "end_time": s["end"],
        "withdraw_dust_threshold": 0,
        "memo": None,
        "metadata": None,
    }
    top_up = {
        "stream_id": s["id"],
        "top_up_amount": s["more"],
        "new_deposit_amount": s["whole"],
        "new_end_time": s["end"],
    }
    encoded = {
        "created": encode_struct("created", created),
        "withdrew": encode_struct("withdrew", {"stream_id": s["id"], "recipient": recipient, "amount": s["amount"]}),
        "top_up": encode_struct("top_up", top_up),
        "paused": encode_struct("paused", {"stream_id": s["id"], "reason": "Operational"}),
        "resumed": encode_variant("resumed", s["id"]),
        "cancelled": encode_variant("cancelled", s["id"]),
    }
    return {name: Template(value) for name, value in encoded.items()}


class BulkHistory:
    """A long history on a chain; made by `bulk`.

    `events` events in `ledgers` ledgers from `first_ledger` on, of `streams` streams with ids from 0.
    """

    def __init__(self, chain: Chain, contract_id: str, *, events: int, events_per_ledger: int) -> None:
        self.contract_id = contract_id
        self.events = events
        self.first_ledger = chain.next_sequence
        self._born_per_ledger = max(1, events_per_ledger // len(STEPS))
        self._first_close = chain.next_closed_at
        self._seconds = chain.seconds_per_ledger
        self._counts = self._plan(events)
        self._closed = 0
        people = [account(chain.seed, f"bulk-{i}") for i in range(_PEOPLE)]
        self._people = [(one, StrKey.decode_ed25519_public_key(one)) for one in people]
        self._fill = {name: template.filler() for name, template in _templates().items()}
        self._cache: OrderedDict[bytes, LedgerEvents] = OrderedDict()
        key = b64decode(stream_key(contract_id, 0))
        at = key.rindex(b"\x00" * 8, 0, -4)  # the id's place: behind it stands only the durability
        self._key_prefix, self._key_suffix = key[:at], key[at + 8 :]

    @property
    def ledgers(self) -> int:
        """How many ledgers it takes."""
        return len(self._counts)

    @property
    def streams(self) -> int:
        """How many streams it has created."""
        whole = max(0, self._closed - 1) * self._born_per_ledger
        return whole + (min(self._born_per_ledger, self._counts[self._closed - 1]) if self._closed else 0)

    def _plan(self, events: int) -> list[int]:
        counts: list[int] = []
        while events > 0:
            active = min(len(STEPS), len(counts) // STRIDE + 1)
            counts.append(min(events, active * self._born_per_ledger))
            events -= counts[-1]
        return counts

    # -- events --------------------------------------------------------------------------------------------------------

    def close_into(self, chain: Chain) -> None:
        """Close all its ledgers on the chain."""
        for index, count in enumerate(self._counts):
            content = hashlib.sha256(f"bulk/{self.contract_id}/{index}/{count}".encode()).digest()
            chain.close_rendered(self._events, content, closed_at=self._first_close + index * self._seconds)
            self._closed = index + 1

    def _events(self, ledger: Ledger) -> LedgerEvents:
        kept = self._cache.get(ledger.hash)
        if kept is None:
            kept = self._cache[ledger.hash] = self._render(ledger)
            if len(self._cache) > _CACHED_LEDGERS:
                self._cache.popitem(last=False)
        return kept

    def _render(self, ledger: Ledger) -> LedgerEvents:
        index = ledger.sequence - self.first_ledger
        count = self._counts[index]
        born = self._born_per_ledger
        positions = [tx << 44 for tx in range(1, count + 1)]
        rendered: list[bytes] = []
        topics: list[tuple[bytes, ...]] = []
        head = (
            f'{{"type":"contract","ledger":{ledger.sequence},"ledgerClosedAt":"{rfc3339(ledger.closed_at)}",'
            f'"contractId":"{self.contract_id}","id":"'
        )
        toid = ledger.sequence << 32
        tx = 0
        for step, name in enumerate(STEPS):
            topic = encode_topics(name, 0)
            listed = '","'.join((b64encode(topic[0]).decode(), ""))
            behind_hash = f'","inSuccessfulContractCall":true,"topic":["{listed}'
            id_prefix = topic[1][:4]
            fill = self._fill[name]
            first = (index - step * STRIDE) * born
            for stream_id in range(first, first + min(born, count - tx)):
                tx += 1
                id_topic = id_prefix + stream_id.to_bytes(8, "big")
                digest = hashlib.sha256(ledger.hash + tx.to_bytes(4, "big")).hexdigest()
                value = b64encode(fill(self._values(stream_id, step))).decode()
                rendered.append(
                    f'{head}{toid | tx << 12:019d}-0000000000","operationIndex":0,"transactionIndex":{tx},'
                    f'"txHash":"{digest}{behind_hash}{b64encode(id_topic).decode()}"],"value":"{value}"}}'.encode()
                )
                topics.append((topic[0], id_topic))
            if tx == count:
                break
        return LedgerEvents(
            positions, rendered, [self.contract_id] * count, topics, ["contract"] * count, self.contract_id
        )

    def _values(self, stream_id: int, step: int) -> dict[str, Any]:
        rate = self._rate(stream_id)
        if step in _WITHDRAWALS:
            amount = rate * self._seconds * STRIDE * _WITHDRAWALS[step]
            return {"id": stream_id, "amount": amount, "recipient": self._people[(stream_id + 1) % _PEOPLE][1]}
        start = self._first_close + stream_id // self._born_per_ledger * self._seconds
        return {
            "id": stream_id,
            "start": start,
            "end": start + LIFETIME_S,
            "deposit": rate * LIFETIME_S,
            "rate": rate,
            "more": rate * TOP_UP_S,
            "whole": rate * (LIFETIME_S + TOP_UP_S),
            "sender": self._people[stream_id % _PEOPLE][1],
            "recipient": self._people[(stream_id + 1) % _PEOPLE][1],
        }

    @staticmethod
    def _rate(stream_id: int) -> int:
        return 1_000 + stream_id * 7_919 % 99_000

    # -- state ---------------------------------------------------------------------------------------------------------

    def steps(self, stream_id: int, *, at: int | None = None) -> int:
        """How many steps of its life a stream has made by ledger `at` (default: the history's last)."""
        last = self._closed - 1 if at is None else min(at - self.first_ledger, self._closed - 1)
        born = stream_id // self._born_per_ledger
        if last < born:
            return 0
        made = min(len(STEPS), (last - born) // STRIDE + 1)
        newest = born + (made - 1) * STRIDE
        place = (made - 1) * self._born_per_ledger + stream_id % self._born_per_ledger
        # The very last ledger may be cut short.
        return made - 1 if newest == last and place >= self._counts[last] else made

    def stream(self, stream_id: int, *, at: int | None = None) -> dict[str, Any] | None:
        """The storage fields of a stream by ledger `at`; None before it was created."""
        made = self.steps(stream_id, at=at)
        if made == 0:
            return None
        born = self.first_ledger + stream_id // self._born_per_ledger
        start = self._first_close + (born - self.first_ledger) * self._seconds
        rate = self._rate(stream_id)
        state = Stream(
            stream_id=stream_id,
            sender=self._people[stream_id % _PEOPLE][0],
            recipient=self._people[(stream_id + 1) % _PEOPLE][0],
            deposit_amount=rate * LIFETIME_S,
            rate_per_second=rate,
            start_time=start,
            cliff_time=start,
            end_time=start + LIFETIME_S,
            checkpointed_at=start,
        )
        for step, name in enumerate(STEPS[:made]):
            ledger, now = born + step * STRIDE, start + step * STRIDE * self._seconds
            if name == "withdrew":
                state.withdrawn_amount += rate * self._seconds * STRIDE * _WITHDRAWALS[step]
                state.last_withdraw_ledger = ledger
            elif name == "top_up":
                state.deposit_amount += rate * TOP_UP_S
            elif name == "paused":
                state.status, state.paused_at_timestamp, state.last_pause_toggle_ledger = PAUSED, now, ledger
            elif name == "resumed":
                state.cumulative_paused_duration += now - state.paused_at_timestamp
                state.status, state.paused_at_timestamp, state.last_pause_toggle_ledger = 0, 0, ledger
            elif name == "cancelled":
                state.status, state.cancelled_at = CANCELLED, now
        return state.fields()

    def entry(self, key: str, at: int) -> Entry | None:
        """The storage entry under a LedgerKey as of ledger `at`."""
        raw = b64decode(key)
        if not raw.startswith(self._key_prefix) or len(raw) != len(self._key_prefix) + 8 + len(self._key_suffix):
            return None
        stream_id = int.from_bytes(raw[len(self._key_prefix) : -len(self._key_suffix)], "big")
        fields = self.stream(stream_id, at=at)
        if fields is None:
            return None
        written = stream_id // self._born_per_ledger + (self.steps(stream_id, at=at) - 1) * STRIDE
        return Entry(key, stream_entry(self.contract_id, fields)[1], self.first_ledger + written)

    # -- following the chain -------------------------------------------------------------------------------------------

    def rewind(self, sequence: int) -> None:
        """Ledgers above `sequence` are gone, for good."""
        self._closed = min(self._closed, max(0, sequence - self.first_ledger + 1))

    def reset(self) -> None:
        """The network began anew, without this history."""
        self._closed = 0


# Step to the seconds it pays for, in strides: since creation or the last withdrawal.
_WITHDRAWALS = {1: 1, 3: 2, 6: 3}


def bulk(chain: Chain, events: int, *, contract_id: str, events_per_ledger: int = 400) -> BulkHistory:
    """Close a long history of exactly `events` events of one contract on a chain.

    Ledgers fill up to `events_per_ledger` (a multiple of 8 is met exactly) over the first 120.

    Raises:
        InvariantError: the chain's retention would prune the history's own beginning.
    """
    history = BulkHistory(chain, contract_id, events=events, events_per_ledger=events_per_ledger)
    if chain.retention is not None and history.ledgers > chain.retention:
        raise InvariantError(f"{history.ledgers} ledgers do not fit a retention of {chain.retention}")
    chain.attach(history)
    chain.attach_entries(history.entry)
    history.close_into(chain)
    return history
