"""Whom events concern, over the real log: whoever was told of an event is told that it was taken back, and no other."""

from __future__ import annotations

from hashlib import sha256
from itertools import count
from typing import Any

from chain_events import CONTRACT, GENESIS_S
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import Log, Row
from promises import Selector as Followed

from fluxora.actors.parties import Parties
from fluxora.config import StorageConfig
from fluxora.protocol import contract
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.messages import LogEvent
from fluxora.storage.store import EventQuery, Store, open_store

SENDER, *PEOPLE = (encode(AddressKind.ACCOUNT, bytes([number] * 32)) for number in range(1, 6))
STREAMS = count(1)


def event(ledger: int, topic: str, stream: int = 0, **payload: Any) -> ContractEvent:
    return contract.decode_named(
        id=f"{(ledger << 32) | (1 << 12):019d}-{stream:010d}",
        ledger=ledger,
        closed_at=GENESIS_S + ledger,
        contract_id=CONTRACT,
        tx_hash=sha256(f"{ledger}/{stream}".encode()).hexdigest(),
        topic=topic,
        payload={"stream_id": stream, **payload},
    )


def created(ledger: int, recipient: str, stream: int = 0) -> ContractEvent:
    return event(
        ledger,
        "created",
        stream,
        sender=SENDER,
        recipient=recipient,
        deposit_amount="10000000000",
        rate_per_second="10000000",
        start_time=GENESIS_S,
        cliff_time=GENESIS_S,
        end_time=GENESIS_S + 1000,
        withdraw_dust_threshold="0",
        memo=None,
        metadata=None,
    )


def given_to(ledger: int, old: str, new: str) -> ContractEvent:
    return event(ledger, "recp_upd", old_recipient=old, new_recipient=new)


def told(parties: Parties, events: list[LogEvent]) -> dict[str, list[int]]:
    """Positions by who was told of them as a recipient."""
    found: dict[str, list[int]] = {}
    for one in events:
        for selector in parties.selectors(one):
            if selector.kind == "recipient":
                found.setdefault(selector.value, []).append(one.position)
    return found


async def whole_log(store: Store) -> list[LogEvent]:
    events: list[LogEvent] = []
    while page := await store.events(EventQuery(after=len(events), limit=1000)):
        events += page
    return events


async def told_in_batches(store: Store, events: list[LogEvent], sizes: list[int]) -> dict[str, list[int]]:
    """As the hub goes along the log, from wherever it begins."""
    parties, found = Parties(store), dict[str, list[int]]()
    for size in sizes:
        batch, events = events[:size], events[size:]
        await parties.recall(batch)
        assert not parties.unknown(batch)
        for who, positions in told(parties, batch).items():
            found.setdefault(who, []).extend(positions)
    return found


async def test_a_former_recipient_is_told_that_what_it_was_told_of_is_gone(store: Store, lease: int) -> None:
    """The stream was given away, and a fork takes back all of it."""
    first, second, third, _ = PEOPLE
    history = [
        created(10, first),
        given_to(11, first, second),
        given_to(12, second, third),
        event(13, "resumed"),
    ]
    await store.append([LedgerBatch(events=tuple(history))], lease=lease)
    await store.append([LedgerBatch(rollback_to=9)], lease=lease)
    events = await whole_log(store)
    assert [one.event for one in events][-1] == "stream.reverted"
    for begins in range(5):
        found = await told_in_batches(store, events[begins:], [1] * (5 - begins))
        assert all(found[one][-1] == 5 for one in (first, second, third)), f"from {begins + 1} on"


async def test_one_whose_events_stand_is_not_told(store: Store, lease: int) -> None:
    first, second, _, _ = PEOPLE
    history = [created(10, first), given_to(11, first, second), event(12, "resumed"), event(13, "resumed")]
    await store.append([LedgerBatch(events=tuple(history))], lease=lease)
    await store.append([LedgerBatch(rollback_to=11)], lease=lease)
    events = await whole_log(store)
    for begins in range(5):
        found = await told_in_batches(store, events[begins:], [5 - begins])
        assert found[second][-1] == 5
        assert 5 not in found.get(first, [])


async def test_the_log_is_not_asked_for_a_stream_that_never_changed_hands(store: Store, lease: int) -> None:
    await store.append([LedgerBatch(events=(created(10, PEOPLE[0]), event(11, "resumed")))], lease=lease)
    await store.append([LedgerBatch(rollback_to=10)], lease=lease)
    await store.append([LedgerBatch(rollback_to=9)], lease=lease)
    events = await whole_log(store)
    assert not Parties(store).unknown(events)
    assert [one.position for one in Parties(store).unknown(events[1:])] == [3, 4]


@given(
    steps=st.lists(st.one_of(st.sampled_from(PEOPLE), st.integers(1, 4)), min_size=2, max_size=12),
    sizes=st.lists(st.integers(1, 5), min_size=40, max_size=40),
    begins=st.integers(0, 8),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_happens_those_are_told_who_were_told_what_is_taken_back(
    steps: list[str | int], sizes: list[int], begins: int, storage_config: StorageConfig
) -> None:
    """A stream comes to an address, or some of its events are taken back, wherever the reader begins."""
    ledger = next(STREAMS) * 1_000
    holders: list[str] = []
    async with open_store(storage_config, decimals={}) as store:
        before = await store.position()
        held = await store.try_lease()
        assert held is not None
        for step in steps:
            if isinstance(step, int):
                holders = holders[: len(holders) - min(step, len(holders))]
                batch = LedgerBatch(rollback_to=ledger + len(holders))
            else:
                batch = LedgerBatch(events=(moved(ledger, holders, step),))
                holders.append(step)
            await store.append([batch], lease=held.number)
        await held.aclose()
        events = await whole_log(store)
        found = await told_in_batches(store, events[before + begins :], sizes)
    log = Log()
    for one in events:
        log.add(row(one))
    for who in PEOPLE:
        assert found.get(who, []) == log.matching(Followed("recipient", who), before + begins, log.head)


def moved(ledger: int, holders: list[str], to: str) -> ContractEvent:
    """The next event of the stream whose number is `ledger`, after which it is held by `to`."""
    at = ledger + len(holders) + 1
    if not holders:
        return created(at, to, ledger)
    if holders[-1] == to:
        return event(at, "resumed", ledger)
    return event(at, "recp_upd", ledger, old_recipient=holders[-1], new_recipient=to)


def row(one: LogEvent) -> Row:
    payload = one.payload.decode()
    return Row(
        one.position, one.event_id, one.stream_id, one.event, one.action, one.ledger, one.timestamp_ms, None, payload
    )
