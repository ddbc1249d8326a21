"""The RPC source against the local network: a whole node with real XDR, and its faults."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from scripted_node import CONTRACT

from fluxora.actors.sources.failures import NodeRange
from fluxora.actors.sources.local import LocalSource
from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.actors.sources.stellar_rpc import StellarRpcSource
from fluxora.config import LOCALNET_PASSPHRASE, SourceConfig
from fluxora.errors import ChainDiverged, HistoryLost, LeaseLost, SourceUnavailable
from fluxora.localnet import Script, open_localnet

FAST = RetryPolicy(attempts=3, base_s=0.002, cap_s=0.01, budget_s=5.0)


@pytest.fixture
async def follow():
    """A source over a local network's nodes, closed at the end of the test."""
    made = []

    def make(net, *, page_limit=10_000):
        config = SourceConfig(
            kind="rpc",
            rpc_urls=tuple(node.url for node in net.nodes),
            network_passphrase=LOCALNET_PASSPHRASE,
            page_limit=page_limit,
            request_timeout_s=5.0,
        )
        made.append(StellarRpcSource(config, [c.contract_id for c in net.contracts], policy=FAST))
        return made[-1]

    yield make
    for source in made:
        source.close()


async def everything(source, first, last):
    events, through = [], first - 1
    async with aclosing(source.events(first, last)) as pages:
        async for page in pages:
            events += page.events
            assert page.complete_through >= through
            through = page.complete_through
    assert through == last
    return events


def of_chain(chain, first, last):
    """Ids of the events that the chain holds: what must arrive."""
    return [
        f"{ledger.sequence << 32 | (position >> 44) << 12 | position >> 32 & 4095:019d}-{position & 0xFFFFFFFF:010d}"
        for ledger in chain.ledgers(first, last)
        for position in ledger.events().positions
    ]


@pytest.mark.parametrize("page_limit", [1, 7, 10_000])
async def test_every_event_of_a_lively_network_arrives_once(follow, page_limit):
    async with open_localnet(seed=3, script=Script(3, streams_per_ledger=2), contracts=2) as net:
        await net.close_ledgers(25)
        source = follow(net, page_limit=page_limit)
        tip = await source.tip()
        events = await everything(source, tip.oldest, tip.latest)
        expected = of_chain(net.chain, tip.oldest, tip.latest)
        assert len(expected) > 100
        assert [event.id for event in events] == expected
        assert {event.contract_id for event in events} == {c.contract_id for c in net.contracts}
        assert "unknown" not in {event.action for event in events}
        closes = {ledger.sequence: ledger.closed_at for ledger in net.chain.ledgers(tip.oldest, tip.latest)}
        assert all(event.closed_at == closes[event.ledger] for event in events)


async def test_headers_are_the_chains(follow):
    async with open_localnet(seed=3) as net:
        await net.close_ledgers(30)
        source = follow(net)
        tip = await source.tip()
        headers = await source.headers(tip.oldest, tip.latest + 5)
        ledgers = net.chain.ledgers(tip.oldest, tip.latest)
        assert [(h.sequence, h.hash, h.closed_at) for h in headers] == [
            (ledger.sequence, ledger.hash.hex(), ledger.closed_at) for ledger in ledgers
        ]
        before = headers[-1]
        await net.fork(3)
        [after] = await source.headers(before.sequence, before.sequence)
        assert after.hash != before.hash


async def test_entries_are_the_contracts_own_streams(follow):
    async with open_localnet(seed=4, script=Script(4, streams_per_ledger=1)) as net:
        await net.close_ledgers(20)
        source = follow(net)
        contract_id = net.contract.contract_id
        found, as_of = await source.entries([(contract_id, n) for n in range(300)])
        assert as_of == net.chain.latest.sequence
        assert found
        for entry in found:
            assert entry.contract_id == contract_id
            assert entry.entry["stream_id"] == entry.stream_id
            assert entry.entry["deposit_amount"] > 0
            assert 0 < entry.last_modified <= as_of
        missing = set(range(300)) - {entry.stream_id for entry in found}
        assert 299 in missing


FAULTS = {
    "throttled": lambda faults: faults.status(429, html=True, methods=["getEvents"]),
    "overloaded": lambda faults: faults.status(503, methods=["getEvents"]),
    "node_timeout": lambda faults: faults.status(504, methods=["getEvents"]),
    "truncated_body": lambda faults: faults.truncate_body(methods=["getEvents"]),
    "connection_dropped": lambda faults: faults.drop_connection(methods=["getEvents"], times=2),
    "malformed_response": lambda faults: faults.duplicate_pages(),
}


@pytest.mark.parametrize("failure", FAULTS)
async def test_fault_in_the_middle_of_a_walk_loses_and_doubles_nothing(follow, failure):
    async with open_localnet(seed=5, script=Script(5, streams_per_ledger=2)) as net:
        await net.close_ledgers(12)
        source = follow(net, page_limit=5)
        tip = await source.tip()
        got = []
        async with aclosing(source.events(tip.oldest, tip.latest)) as pages:
            async for page in pages:
                got += [event.id for event in page.events]
                if len(got) == 10:
                    FAULTS[failure](net.faults)
        assert got == of_chain(net.chain, tip.oldest, tip.latest)
        assert set(source.status.failures) == {failure}
        assert source.status.state == "ok"


async def test_standing_faults_have_their_names(follow):
    async with open_localnet(seed=6, script=Script(6), nodes=1) as net:
        await net.close_ledgers(80)
        source = follow(net)
        latest = (await source.tip()).latest
        net.faults.lag = 10
        assert (await source.tip()).latest == latest - 10
        assert source.status.failure == "node_behind"
        with pytest.raises(NodeRange) as behind:
            await everything(source, latest - 2, latest)
        assert (behind.value.failure, behind.value.latest) == ("node_behind", latest - 10)
        net.faults.clear()
        net.faults.prune_before = 50
        with pytest.raises(HistoryLost) as pruned:
            await everything(source, 20, latest)
        assert pruned.value.failure == "history_pruned"
        net.faults.clear()
        assert await everything(source, 20, latest)
        assert (await source.tip()).latest == latest
        assert source.status.state == "ok"
        net.faults.passphrase = "Another Network"
        fresh = follow(net)
        with pytest.raises(ChainDiverged):
            await fresh.tip()


async def test_reset_of_the_network_is_told_by_its_numbers(follow):
    async with open_localnet(seed=7) as net:
        await net.close_ledgers(100)
        source = follow(net)
        latest = (await source.tip()).latest
        await net.reset()
        await net.close_ledgers(5)
        with pytest.raises(NodeRange) as caught:
            await everything(source, latest + 1, latest + 1)
        assert (caught.value.failure, caught.value.latest) == ("network_reset", net.chain.latest.sequence)
        assert (await source.tip()).latest == net.chain.latest.sequence
        assert await source.headers(latest, latest) == []


async def test_second_node_takes_over(follow):
    async with open_localnet(seed=8, script=Script(8), nodes=2) as net:
        await net.close_ledgers(10)
        source = follow(net)
        await source.tip()
        net.nodes[0].faults.status(503, times=0)
        tip = await source.tip()
        assert source.status.endpoint == net.nodes[1].url.removeprefix("http://")
        assert [event.id for event in await everything(source, tip.oldest, tip.latest)] == of_chain(
            net.chain, tip.oldest, tip.latest
        )


# The local source


async def test_local_source_is_a_network_of_its_own():
    async with LocalSource.open(SourceConfig(kind="local"), [CONTRACT], seed=9, ledger_every_s=None) as source:
        await source.network.close_ledgers(10)
        tip = await source.tip()
        events = await everything(source, tip.oldest, tip.latest)
        assert {event.contract_id for event in events} == {CONTRACT}
        assert [event.id for event in events] == of_chain(source.network.chain, tip.oldest, tip.latest)
        assert source.status.endpoint.startswith("127.0.0.1:")


async def test_local_source_closes_ledgers_by_itself():
    async with LocalSource.open(SourceConfig(kind="local"), [CONTRACT], ledger_every_s=0.01) as source:
        first = (await source.tip()).latest
        while (await source.tip()).latest < first + 3:
            pass


async def test_error_leaves_the_local_source_as_it_was_raised():
    with pytest.raises(LeaseLost):
        async with LocalSource.open(SourceConfig(kind="local"), [CONTRACT], ledger_every_s=None):
            raise LeaseLost("taken")


async def test_local_source_is_gone_after_its_block():
    async with LocalSource.open(SourceConfig(kind="local"), [CONTRACT], ledger_every_s=None) as source:
        await source.tip()
    with pytest.raises(SourceUnavailable):
        await StellarRpcSource(source._config, [CONTRACT], policy=FAST).tip()
