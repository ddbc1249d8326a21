from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import trio
from chain_script import FIRST_LEDGER, LEDGERS, check_log, dump, ledgers, splits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scripted import (
    ACCOUNTS,
    CONTRACT,
    DECIMALS,
    DEPOSIT,
    batch,
    close_time,
    created,
    event,
    header,
    query,
    wipe,
    withdrew,
)

from fluxora.config import StorageConfig
from fluxora.errors import LeaseLost
from fluxora.protocol.chain import LedgerBatch
from fluxora.protocol.contract import ContractEvent, correction
from fluxora.protocol.messages import stream_id
from fluxora.storage.store import Appended, EventQuery, Lease, Store, StreamQuery, open_store

SLOW = settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each example replays two histories: shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def leased(store: Store) -> Lease:
    lease = await store.try_lease()
    assert lease is not None
    return lease


async def replay(config: StorageConfig, appends: Sequence[Sequence[LedgerBatch]]) -> list[Appended]:
    async with open_store(config, decimals=DECIMALS) as store:
        lease = await leased(store)
        done = [await store.append(batches, lease=lease.number) for batches in appends]
        await lease.aclose()
    return done


@SLOW
@given(data=st.data())
async def test_any_split_with_replays_and_forks_equals_a_clean_replay(
    storage_config: StorageConfig, data: st.DataObject
) -> None:
    url = storage_config.database_url
    assert url is not None
    await wipe(url)
    history = data.draw(ledgers(FIRST_LEDGER, FIRST_LEDGER + LEDGERS))
    appends: list[list[LedgerBatch]] = []
    for _ in range(data.draw(st.integers(0, 2), label="forks")):
        # Deliver some of it, then find that all above `fork` happened otherwise.
        delivered = data.draw(st.integers(0, len(history)))
        appends += grouped(data, deliveries(data, history[:delivered]))
        fork = data.draw(st.integers(FIRST_LEDGER - 1, FIRST_LEDGER + LEDGERS))
        branch = data.draw(ledgers(fork + 1, FIRST_LEDGER + LEDGERS)) if fork < FIRST_LEDGER + LEDGERS else []
        kept = [one for one in history if one.ledger <= fork]
        history = kept + branch
        # Whatever was below the fork and not delivered yet comes with the new branch.
        appends.append([batch((), rollback_to=fork)])
    appends += grouped(data, deliveries(data, history))
    done = await replay(storage_config, appends)
    await check_log(url)
    incremental = await dump(url)
    told = [one for appended in done for one in appended.events]
    assert [one.position for one in told] == list(range(1, done[-1].position + 1))

    await wipe(url)
    clean = await replay(storage_config, [[batch(history)]])
    await check_log(url)
    assert incremental == await dump(url)
    assert clean[-1].outcomes[0].inserted == [one.id for one in history]


def deliveries(data: st.DataObject, events: list[ContractEvent]) -> list[list[ContractEvent]]:
    """Consecutive pieces, some of them beginning with what was delivered before."""
    pieces = data.draw(splits(events))
    end = 0
    for at, piece in enumerate(pieces):
        start, end = end, end + len(piece)
        again = data.draw(st.integers(0, start))
        pieces[at] = events[start - again : end]
    return pieces


def grouped(data: st.DataObject, pieces: list[list[ContractEvent]]) -> list[list[LedgerBatch]]:
    """One transaction or several for the pieces."""
    if data.draw(st.booleans(), label="one transaction"):
        return [[batch(piece) for piece in pieces]]
    return [[batch(piece)] for piece in pieces]


@SLOW
@given(data=st.data())
async def test_any_order_of_arrival_ends_in_the_same_streams(
    storage_config: StorageConfig, data: st.DataObject
) -> None:
    url = storage_config.database_url
    assert url is not None
    await wipe(url)
    history = data.draw(ledgers(FIRST_LEDGER, FIRST_LEDGER + 6))
    shuffled = data.draw(st.permutations(history))
    pieces = [sorted(piece, key=lambda one: one.id) for piece in data.draw(splits(shuffled))]
    await replay(storage_config, grouped(data, pieces))
    await check_log(url)
    disordered = await dump(url, told=False)
    await wipe(url)
    await replay(storage_config, [[batch(history)]])
    assert disordered == await dump(url, told=False)


async def test_append_folds_renders_and_moves_the_cursor(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals={CONTRACT: 2}) as store:
        lease = await leased(store)
        key = stream_id(CONTRACT, 7, 1)
        done = await store.append(
            [batch([created(100, 0, 7), withdrew(101, 0, 7, 250)], 101, headers=(header(100), header(101)))],
            lease=lease.number,
        )
        assert (done.position, done.epoch) == (2, 1)
        assert [one.event for one in done.events] == ["stream.created", "stream.updated"]
        assert await store.events(EventQuery()) == done.events
        assert json.loads(done.events[1].payload)["withdrawnAmount"] == "2.50"
        record = await store.stream(key)
        assert record is not None
        assert (record.state.withdrawn_amount, record.position, record.created_position) == (250, 2, 1)
        assert (record.created_at, record.updated_at) == (close_time(100) * 1000, close_time(101) * 1000)
        state = await store.ingest_state()
        assert (state.epoch, state.complete_through, state.position) == (1, 101, 2)
        assert state.headers == [header(100), header(101)]
        again = await store.append([batch([withdrew(101, 0, 7, 250)], 90)], lease=lease.number)
        assert (again.outcomes[0].inserted, again.outcomes[0].duplicates) == ([], [withdrew(101, 0, 7).id])
        assert again.position == 2
        assert (await store.ingest_state()).complete_through == 101  # it goes down with a rollback only
        await lease.aclose()


async def test_rollback_tells_what_was_undone_and_restores_the_rest(storage_config: StorageConfig) -> None:
    kept, gone = stream_id(CONTRACT, 1, 1), stream_id(CONTRACT, 2, 1)
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        before = [created(100, 0, 1), withdrew(101, 0, 1, 10)]
        undone = [withdrew(102, 0, 1, 500), created(102, 1, 2), event(103, 0, "gl_pause", paused=True)]
        await store.append([batch([*before, *undone], 103, headers=(header(101), header(103)))], lease=lease.number)
        old = await store.stream(gone)
        assert old is not None
        done = await store.append([batch([], rollback_to=101)], lease=lease.number)
        outcome = done.outcomes[0]
        assert (outcome.rolled_back, outcome.rolled_back_to) == (3, 101)
        assert [(one.event, one.stream_id, one.position) for one in done.events] == [
            ("stream.reverted", kept, 6),
            ("stream.reverted", gone, 7),
            ("stream.reverted", None, 8),
        ]
        assert json.loads(done.events[0].payload)["reverts"] == [f"1-{undone[0].id}"]
        assert await store.stream(gone) is None
        record = await store.stream(kept)
        assert record is not None
        assert (record.state.withdrawn_amount, record.ledger, record.position) == (10, 101, 6)
        state = await store.ingest_state()
        assert (state.complete_through, state.headers) == (101, [header(101)])
        again = await store.append([batch(undone, 103)], lease=lease.number)
        assert again.outcomes[0].inserted == [one.id for one in undone]
        assert await store.stream(gone) is not None
        await lease.aclose()


async def test_rollback_and_branch_in_one_transaction(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        done = await store.append(
            [
                batch([created(100, 0, 1), withdrew(101, 0, 1, 10)], 101, headers=(header(100), header(101))),
                batch([withdrew(101, 0, 1, 33)], 102, rollback_to=100, headers=(header(101, fork=1),)),
            ],
            lease=lease.number,
        )
        assert [one.event for one in done.events] == [
            "stream.created",
            "stream.updated",
            "stream.reverted",
            "stream.updated",
        ]
        record = await store.stream(stream_id(CONTRACT, 1, 1))
        assert record is not None
        assert record.state.withdrawn_amount == 33
        assert (await store.ingest_state()).headers == [header(100), header(101, fork=1)]
        await lease.aclose()


async def test_new_epoch_parks_the_old_streams(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        await store.append([batch([created(100, 0, 1)], 100, headers=(header(100),))], lease=lease.number)
        done = await store.append(
            [batch([created(5, 0, 1)], 5, new_epoch=True, headers=(header(5),))], lease=lease.number
        )
        assert (done.epoch, done.position) == (2, 2)
        listed = await store.streams(StreamQuery())
        assert [record.id for record in listed] == [stream_id(CONTRACT, 1, 2)]
        assert await store.stream(stream_id(CONTRACT, 1, 1)) is not None
        state = await store.ingest_state()
        assert (state.epoch, state.complete_through, state.headers) == (2, 5, [header(5)])
        await lease.aclose()


async def test_late_event_is_folded_in_chain_order(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        await store.append([batch([created(100, 0, 1), event(105, 0, "cancelled", stream_id=1)])], lease=lease.number)
        done = await store.append([batch([withdrew(103, 0, 1, 40)])], lease=lease.number)
        payload = json.loads(done.events[0].payload)
        assert (payload["status"], payload["withdrawnAmount"]) == ("cancelled", "0.0000040")
        assert payload["cancelledAt"] == close_time(105)
        await lease.aclose()


async def test_delegated_share_makes_two_rows(storage_config: StorageConfig) -> None:
    shared = event(
        101, 0, "del_share", parent_stream_id=1, child_stream_id=2, delegator=ACCOUNTS[1], delegatee=ACCOUNTS[2],
        share_bps=4000, new_parent_rate="600000", child_rate="400000",
    )  # fmt: skip
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        done = await store.append([batch([created(100, 0, 1), shared])], lease=lease.number)
        assert [(one.event, one.event_id) for one in done.events[1:]] == [
            ("stream.updated", f"1-{shared.id}"),
            ("stream.created", f"1-{shared.id}.1"),
        ]
        parent, child = [await store.stream(stream_id(CONTRACT, n, 1)) for n in (1, 2)]
        assert parent is not None
        assert child is not None
        assert parent.state.deposit_amount + child.state.deposit_amount == DEPOSIT
        assert done.outcomes[0].inserted == [created(100, 0, 1).id, shared.id]
        again = await store.append([batch([shared])], lease=lease.number)
        assert again.outcomes[0].duplicates == [shared.id]
        await lease.aclose()


async def test_doubtful_streams_are_wanted_until_read(storage_config: StorageConfig) -> None:
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        doubtful = created(100, 0, 1, cliff_time=close_time(100) + 50)
        await store.append([batch([doubtful, withdrew(100, 1, 9)])], lease=lease.number)
        wants = await store.entry_wants(10)
        assert [(want.chain_stream_id, want.ledger) for want in wants] == [(1, 100), (9, 100)]
        await store.postpone_wants([wants[0]], 2**40)
        await store.drop_wants([wants[1]])
        assert await store.entry_wants(10) == []
        await store.append([batch([withdrew(101, 1, 9)])], lease=lease.number)
        await store.drop_wants([wants[1]])  # as listed before: another reason has come since
        assert [(want.chain_stream_id, want.ledger) for want in await store.entry_wants(10)] == [(9, 101)]
        await store.drop_wants(await store.entry_wants(10))
        fixed = correction(
            ledger=100, closed_at=close_time(100), contract_id=CONTRACT, stream_id=1,
            entry={"stream_id": 1, "kind": 2}, immutable_only=True,
        )  # fmt: skip
        done = await store.append([batch([fixed])], lease=lease.number)
        assert done.events[0].action == "corrected"
        record = await store.stream(stream_id(CONTRACT, 1, 1))
        assert record is not None
        assert record.state.kind_known
        await lease.aclose()


async def test_numbers_beyond_their_columns_do_not_stop_ingest(storage_config: StorageConfig) -> None:
    huge = 2**127 - 1
    events = [created(100, 0, 1, deposit_amount=str(huge), rate_per_second=str(huge), end_time=2**64 - 1)]
    events += [withdrew(101, index, 1, huge) for index in range(8)]
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        await store.append([batch(events)], lease=lease.number)
        record = await store.stream(stream_id(CONTRACT, 1, 1))
        assert record is not None
        assert record.state.withdrawn_amount == 8 * huge
        assert await store.entry_wants(10) != [] or not record.state.unsure
        await lease.aclose()
    assert storage_config.database_url is not None
    (row,) = await query(storage_config.database_url, "SELECT withdrawn_amount::text AS withdrawn FROM streams")
    assert row["withdrawn"] == "9" * 39


async def test_older_lease_is_fenced(storage_config: StorageConfig) -> None:
    async with (
        open_store(storage_config, decimals=DECIMALS) as one,
        open_store(storage_config, decimals=DECIMALS) as two,
    ):
        first = await leased(one)
        assert await two.try_lease() is None
        await one.append([batch([created(100, 0, 1)])], lease=first.number)
        await first.aclose()
        second = await leased(two)
        assert second.number > first.number
        with pytest.raises(LeaseLost):
            await one.append([batch([withdrew(101, 0, 1)])], lease=first.number)
        await two.append([batch([withdrew(101, 0, 1)])], lease=second.number)
        assert await one.position() == 2
        await second.aclose()


async def test_lease_is_lost_with_its_connection(storage_config: StorageConfig) -> None:
    url = storage_config.database_url
    assert url is not None
    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        await query(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        with trio.fail_after(5):
            await lease.lost.wait()
        again = await leased(store)
        assert again.number > lease.number
        await again.aclose()
        await lease.aclose()


async def test_failed_append_leaves_nothing_and_poisons_nothing(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxora.storage.writer import Writer

    async with open_store(storage_config, decimals=DECIMALS) as store:
        lease = await leased(store)
        await store.append([batch([created(100, 0, 1)], 100)], lease=lease.number)
        finish = Writer.finish

        async def failing(*_: object) -> None:
            raise RuntimeError("just before the commit")

        monkeypatch.setattr(Writer, "finish", failing)
        with pytest.raises(RuntimeError, match="before the commit"):
            await store.append([batch([withdrew(101, 0, 1, 999)], 101)], lease=lease.number)
        monkeypatch.setattr(Writer, "finish", finish)
        assert await store.position() == 1
        await store.append([batch([withdrew(101, 0, 1, 1)], 101)], lease=lease.number)
        record = await store.stream(stream_id(CONTRACT, 1, 1))
        assert record is not None
        assert record.state.withdrawn_amount == 1
        await lease.aclose()


async def test_appends_at_once_are_serial_and_ring_the_doorbell(storage_config: StorageConfig) -> None:
    rung = trio.Event()
    async with (
        open_store(storage_config, decimals=DECIMALS) as writer,
        open_store(storage_config, decimals=DECIMALS, wakeup=rung.set) as reader,
    ):
        with trio.fail_after(5):
            await rung.wait()  # it rings once it listens
        rung = trio.Event()
        lease = await leased(writer)

        async def one(ledger: int) -> None:
            await writer.append([batch([created(ledger, 0, ledger)], ledger)], lease=lease.number)

        async with trio.open_nursery() as nursery:
            for ledger in range(100, 120):
                nursery.start_soon(one, ledger)
        assert await reader.position() == 20
        assert storage_config.database_url is not None
        await check_log(storage_config.database_url)
        await lease.aclose()
