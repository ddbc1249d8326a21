"""States made again from the log: after a rollback, or when an event arrives behind later ones of its stream.

A stream is folded from its live events in chain order, which is the order of their ids. A delegated stream begins with
what its parent's event made of the parent, so a parent is folded before its children, and children follow a parent
whose state changed. A birth that the log does not show yet (its parent was not known then) is found here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from fluxora.protocol.contract import ContractEvent, decode_raw
from fluxora.protocol.fold import Folded, fold
from fluxora.protocol.messages import stream_id
from fluxora.protocol.streams import StreamState
from fluxora.storage import statements as sql
from fluxora.storage.pool import Connection
from fluxora.storage.slots import Slot

BIRTH = ".1"  # ends the id of a delegated stream's first log row, which shares its event with the parent's row
FAIR_EVERY = 64
_AT_ONCE = 500  # streams whose events are fetched together: a bound on memory


class Refolded(msgspec.Struct):
    """`streams`: what became of each, by id. `folded`: the outcome of each extra event. `births`: unrecorded ones."""

    streams: dict[str, Slot]
    folded: dict[str, Folded]
    births: list[tuple[ContractEvent, str]]


async def refold(
    connection: Connection, epoch: int, keys: set[str], extra: Mapping[str, Sequence[ContractEvent]] | None = None
) -> Refolded:
    """Fold the streams `keys`, and the children they affect, from the live log and the `extra` events of each.

    `extra` events are not in the log yet.
    """
    work = _Refold(connection, epoch, extra or {})
    return await work.run(set(keys))


class _Refold:
    def __init__(self, connection: Connection, epoch: int, extra: Mapping[str, Sequence[ContractEvent]]) -> None:
        self._connection = connection
        self._epoch = epoch
        self._extra_ids = {event.id for events in extra.values() for event in events}
        self._events: dict[str, dict[str, ContractEvent]] = {}  # by stream, then by id in the log
        self._extra = extra
        self._slots: dict[str, Slot] = {}
        self._children: dict[str, StreamState] = {}  # by the event that bore them
        self._child_keys: dict[str, set[str]] = {}  # by parent
        self._folded: dict[str, Folded] = {}
        self._births: dict[str, tuple[ContractEvent, str]] = {}

    async def run(self, keys: set[str]) -> Refolded:
        while True:
            await self._load(keys)
            self._slots.clear()
            self._child_keys.clear()
            self._children.clear()
            found = len(self._births)
            for key in sorted(keys):
                await self._fold(key, ())
            children = set().union(*(self._child_keys.get(key, ()) for key in keys))
            if children <= keys and len(self._births) == found:
                break
            keys |= children
        births = [birth for birth in self._births.values() if birth[0].id not in self._extra_ids]
        return Refolded({key: self._slots[key] for key in keys}, self._folded, births)

    async def _load(self, keys: set[str]) -> None:
        """Fetch the events of `keys` and of the parents that their births depend on."""
        wanted = sorted(keys - self._events.keys())
        while wanted:
            part, wanted = wanted[:_AT_ONCE], wanted[_AT_ONCE:]
            for key in part:
                self._events[key] = {event.id: event for event in self._extra.get(key, ())}
            for count, row in enumerate(await self._connection.fetch(sql.EVENTS_OF, part)):
                if count % FAIR_EVERY == 0:
                    await asyncio.sleep(0)
                id_ = row["event_id"].partition("-")[2]
                event = decode_raw(
                    id_.removesuffix(BIRTH),
                    row["ledger"],
                    row["timestamp_ms"] // 1000,
                    row["contract_id"],
                    row["tx_hash"] or "",
                    row["raw"],
                )
                self._events[row["stream_id"]][id_] = event
                if id_.endswith(BIRTH):
                    parent = self._key(event, event.stream_id)
                    if parent not in self._events and parent not in wanted:
                        wanted.append(parent)

    async def _fold(self, key: str, above: tuple[str, ...]) -> None:
        """Fold one stream; `above` are the children that wait for it (a circle, which no chain has, is cut there)."""
        if key in self._slots or key in above:
            return
        slot: Slot | None = None
        for count, (id_, event) in enumerate(sorted(self._events[key].items())):
            if count % FAIR_EVERY == 0:
                await asyncio.sleep(0)
            if id_.endswith(BIRTH):
                await self._fold(self._key(event, event.stream_id), (*above, key))
                chain_id = event.data.get("child_stream_id", 0)
                slot = slot or Slot(key, self._epoch, event.contract_id, chain_id, 0)
                state = self._children.get(event.id, slot.state)
            else:
                slot = slot or Slot(key, self._epoch, event.contract_id, event.stream_id or 0, 0)
                folded = fold(slot.state, event)
                state = folded.state
                if event.id in self._extra_ids:
                    self._folded[event.id] = folded
                if folded.child is not None:
                    self._bear(key, event, folded.child)
            slot.apply(state, event, 0, id_)
        self._slots[key] = slot or Slot(key, self._epoch, "", 0, 0)

    def _bear(self, parent: str, event: ContractEvent, child: StreamState) -> None:
        """Note a child and, where the log has no row of its birth, put the birth among the child's events."""
        key, id_ = self._key(event, child.stream_id), event.id + BIRTH
        self._children[event.id] = child
        self._child_keys.setdefault(parent, set()).add(key)
        events = self._events.get(key)
        if events is not None and id_ not in events:
            events[id_] = event
            self._births[id_] = (event, key)

    def _key(self, event: ContractEvent, chain_id: int | None) -> str:
        return stream_id(event.contract_id, chain_id or 0, self._epoch)
