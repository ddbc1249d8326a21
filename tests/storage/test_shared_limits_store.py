"""What processes tell each other of rate limits through PostgreSQL: each thing once, with its age, and for a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from scripted import query

from fluxora.config import StorageConfig
from fluxora.storage.shared_limits import COUNTS_S, Round, Tally
from fluxora.storage.store import Store, open_store

A, B = (Tally(bytes([n]) * 16, n, 2**32 - n) for n in (1, 2))


@pytest.fixture
async def store(storage_config: StorageConfig) -> AsyncIterator[Store]:
    async with open_store(storage_config, decimals={}) as opened:
        yield opened


async def test_each_round_is_heard_once_by_each_other(store: Store) -> None:
    for process in ("one", "two", "three"):
        await store.show_for_limits(process)
    mine = await store.exchange_limits("one", [Round(1, 2.0, [A, B]), Round(2, 0.0, [B])], {})
    assert (mine.others, mine.rounds, mine.known) == (True, [], {"two": 0, "three": 0})
    for reader in ("two", "three"):
        heard = await store.exchange_limits(reader, [], {})
        assert [one.number for one in heard.rounds] == [1, 2], "oldest first"
        assert [one.spent for one in heard.rounds] == [[A, B], [B]]
        assert heard.known["one"] == 2
        old, new = (one.age_s for one in heard.rounds)
        assert 2.0 <= round(old - new, 3) < 2.1
        again = await store.exchange_limits(reader, [], heard.known)
        assert (again.rounds, again.known) == ([], heard.known)


async def test_a_round_whose_answer_was_lost_is_written_again_and_counts_once(store: Store) -> None:
    for process in ("one", "two"):
        await store.show_for_limits(process)
    for rounds in ([Round(1, 0.0, [A])], [Round(1, 3.0, [A]), Round(2, 0.0, [B])]):
        await store.exchange_limits("one", rounds, {})
    heard = await store.exchange_limits("two", [], {})
    assert [one.spent for one in heard.rounds] == [[A], [B]]


async def test_one_that_is_alone_knows_it(store: Store) -> None:
    await store.show_for_limits("one")
    heard = await store.exchange_limits("one", [], {})
    assert (heard.others, heard.rounds, heard.known) == (False, [], {})


async def test_one_that_went_is_heard_for_a_minute_and_then_forgotten(store: Store) -> None:
    for process in ("one", "two"):
        await store.show_for_limits(process)
    await store.exchange_limits("one", [Round(1, 0.0, [A])], {})
    await passes(store, COUNTS_S - 2)
    heard = await store.exchange_limits("two", [], {})
    assert (heard.others, [one.spent for one in heard.rounds]) == (True, [[A]])
    await passes(store, 3)
    heard = await store.exchange_limits("two", [], {})
    assert (heard.others, heard.rounds) == (False, [])
    await store.show_for_limits("two")
    assert await query(store.url, "SELECT id FROM limit_processes") == [("two",)]
    assert await query(store.url, "SELECT count(*) FROM limit_rounds") == [(0,)]


async def test_a_row_of_another_form_says_nothing(store: Store) -> None:
    for process in ("one", "two"):
        await store.show_for_limits(process)
    await store.exchange_limits("one", [Round(1, 0.0, [A])], {})
    await query(store.url, "UPDATE limit_rounds SET spent = '\\x00'")
    heard = await store.exchange_limits("two", [], {})
    assert [one.spent for one in heard.rounds] == [[]]


async def test_the_salt_is_a_databases_own_and_stays(store: Store) -> None:
    salt = await store.limit_salt()
    assert len(salt) == 32
    assert await store.limit_salt() == salt


async def passes(store: Store, seconds: float) -> None:
    """What is written there was written that much earlier."""
    for column in ("limit_processes SET seen_ms = seen_ms", "limit_rounds SET at_ms = at_ms"):
        await query(store.url, f"UPDATE {column} - {int(seconds * 1000)}")
