"""The chain itself: determinism, links, forks, resets, pruning, entries as of a ledger."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.errors import InvariantError
from fluxora.localnet import Chain, Contract, EmittedEvent, Script, account, contract_address
from fluxora.protocol.chain import parse_header

EVENT = EmittedEvent(contract_id=contract_address(1, 1), topics=(), value=b"\x00\x00\x00\x01")


def parse(ledger):
    return parse_header(
        ledger.header_xdr, hash_hex=ledger.hash.hex(), sequence=ledger.sequence, closed_at=ledger.closed_at
    )


def assert_linked(chain: Chain) -> None:
    ledgers = list(chain.ledgers(0, 1 << 32))
    for parent, child in pairwise(ledgers):
        assert child.sequence == parent.sequence + 1
        assert parse(child).previous_hash == parse(parent).hash == parent.hash.hex()


def test_the_first_ledger_is_there_from_the_start():
    chain = Chain(1, first_ledger=50, start_time=1_000)
    assert (chain.latest.sequence, chain.latest.closed_at) == (50, 1_000)
    assert chain.oldest is chain.latest
    assert chain.latest.events().rendered == []
    assert (chain.next_sequence, chain.next_closed_at) == (51, 1_005)


def test_the_same_seed_gives_the_same_chain_and_another_seed_another():
    def hashes(seed: int) -> list[bytes]:
        chain = Chain(seed)
        return [chain.close_ledger([EVENT] * i).hash for i in range(5)]

    assert hashes(1) == hashes(1)
    assert not set(hashes(1)) & set(hashes(2))


def test_ledgers_close_five_seconds_apart_unless_told_otherwise():
    chain = Chain(1, start_time=100)
    assert chain.close_ledger().closed_at == 105
    assert chain.close_ledger(closed_at=7).closed_at == 7
    assert chain.close_ledger().closed_at == 12
    chain.advance(60)
    assert chain.close_ledger().closed_at == 77


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 6), st.just(-1), st.just(-2), st.just(0)), max_size=25))
def test_any_story_of_closes_forks_and_resets_leaves_a_linked_chain_of_new_hashes(story):
    chain = Chain(3, first_ledger=10)
    seen = {chain.latest.hash}
    for step in story:
        if step == 0:
            chain.reset()
            assert chain.latest.sequence == 10
            assert chain.latest.hash not in seen
        elif step < 0:
            if len(chain.ledgers(0, 1 << 32)) > -step:
                tip = chain.latest.sequence
                assert [ledger.sequence for ledger in chain.fork(-step)] == list(range(tip + step + 1, tip + 1))
                assert chain.latest.sequence == tip + step
        else:
            for _ in range(step):
                assert chain.close_ledger([EVENT]).hash not in seen
        seen |= {ledger.hash for ledger in chain.ledgers(0, 1 << 32)}
        assert_linked(chain)


def test_a_fork_gives_back_its_time_and_its_ledgers():
    chain = Chain(1, first_ledger=10)
    closed = [chain.close_ledger([EVENT]) for _ in range(5)]
    assert chain.fork(2) == closed[3:]
    again = chain.close_ledger([EVENT])
    assert (again.sequence, again.closed_at) == (closed[3].sequence, closed[3].closed_at)
    assert again.hash != closed[3].hash
    assert again.events().positions == closed[3].events().positions


def test_a_fork_needs_a_ledger_to_stand_on():
    chain = Chain(1)
    chain.close_ledger()
    with pytest.raises(InvariantError, match="cannot undo 2 of 2 ledgers"):
        chain.fork(2)
    with pytest.raises(InvariantError):
        chain.fork(0)


def test_a_repeated_fork_holds_the_same_events_under_other_hashes():
    chain = Chain(1)
    before = [chain.close_ledger([EVENT] * i, entries={"key": f"value-{i}"}) for i in range(1, 4)]
    rendered = [ledger.events().rendered for ledger in before]
    chain.fork(3, repeat=True)
    after = chain.ledgers(before[0].sequence, before[-1].sequence)
    assert_linked(chain)
    for old, new, texts in zip(before, after, rendered, strict=True):
        assert (new.sequence, new.closed_at) == (old.sequence, old.closed_at)
        assert new.hash != old.hash
        for i, text in enumerate(new.events().rendered):
            swap = (hashlib.sha256(one.hash + (i + 1).to_bytes(4, "big")).hexdigest().encode() for one in (old, new))
            assert texts[i].replace(*swap) == text != texts[i]
    assert chain.entry("key").xdr == "value-3"
    chain.fork(1)
    assert chain.entry("key").xdr == "value-2"


def test_entries_are_known_as_of_every_ledger_and_rolled_back():
    chain = Chain(1, first_ledger=10)
    chain.close_ledger(entries={"a": "1"})
    chain.close_ledger(entries={"a": "2", "b": "1"})
    chain.close_ledger(entries={"a": None})
    assert [getattr(chain.entry("a", at=at), "xdr", None) for at in (10, 11, 12, 13)] == [None, "1", "2", None]
    assert chain.entry("b").last_modified == 12
    chain.fork(1)
    assert chain.entry("a").xdr == "2"
    chain.fork(1)
    assert (chain.entry("a").xdr, chain.entry("b")) == ("1", None)
    chain.reset()
    assert chain.entry("a") is None


def test_pruning_forgets_ledgers_but_no_current_entry():
    chain = Chain(1, first_ledger=10)
    chain.close_ledger(entries={"a": "1", "gone": "1"})
    chain.close_ledger(entries={"a": "2", "gone": None})
    for _ in range(5):
        chain.close_ledger()
    chain.prune(15)
    assert (chain.oldest.sequence, chain.latest.sequence) == (15, 17)
    assert chain.ledger(14) is None
    assert chain.entry("a").xdr == "2"
    assert chain.entry("gone") is None
    chain.prune(1_000)
    assert chain.oldest.sequence == 17


def test_retention_keeps_the_chain_bounded():
    chain = Chain(1, retention=20)
    for _ in range(200):
        chain.close_ledger([EVENT])
    assert 20 <= chain.latest.sequence - chain.oldest.sequence + 1 <= 23


def test_a_contract_follows_forks_and_resets():
    chain = Chain(4)
    contract = Contract(chain, contract_address(4, 0), admin=account(4, "admin"), token=contract_address(4, -1))
    script = Script(4, streams_per_ledger=3)
    history = {chain.latest.sequence: ({}, {})}

    def close() -> None:
        script.act(contract)
        events, entries = contract.drain()
        ledger = chain.close_ledger(events, entries=entries)
        history[ledger.sequence] = (contract.model_streams(), contract.closed_streams())

    for _ in range(25):
        close()
    first_story = dict(history)
    for depth in (1, 2, 10):
        script.act(contract)  # calls on the open ledger are lost with it
        chain.fork(depth)
        assert (contract.model_streams(), contract.closed_streams()) == history[chain.latest.sequence]
        assert contract.drain()[0] == []
        for _ in range(depth):
            close()
    assert history != first_story
    chain.reset()
    assert contract.model_streams() == {}
    assert contract.globals.next_stream_id == 0
