"""Two readings of one contract: the backend's decoder and fold against the simulated contract's own books."""

from __future__ import annotations

import msgspec
import pytest

from fluxora.localnet import Chain, Contract, Script, account, contract_address
from fluxora.protocol.contract import decode_xdr
from fluxora.protocol.fold import fold
from fluxora.protocol.streams import StreamState

# No event tells these: a flag of the creation, and whether a payment was part of a bulk cancel.
NOT_TOLD = {"irrevocable", "last_withdraw_ledger"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fold_of_the_events_arrives_at_the_contracts_own_state(seed):
    chain = Chain(seed)
    contract = Contract(chain, contract_address(seed, 0), admin=account(seed, "a"), token=contract_address(seed, -1))
    script = Script(seed, streams_per_ledger=2, calls_per_ledger=10)
    states: dict[int, StreamState] = {}
    uncertain: set[int] = set()
    for turn in range(90):
        if turn % 40 == 39:
            chain.advance(8 * 86_400)  # time enough for keepers
        script.act(contract)
        emitted, entries = contract.drain()
        ledger = chain.close_ledger(emitted, entries=entries)
        for event, text in zip(emitted, ledger.events().rendered, strict=True):
            shown = msgspec.json.decode(text)
            decoded = decode_xdr(
                id=shown["id"],
                ledger=shown["ledger"],
                closed_at=ledger.closed_at,
                contract_id=shown["contractId"],
                tx_hash=shown["txHash"],
                topics=event.topics,
                value=event.value,
            )
            assert decoded.action != "unknown"
            folded = fold(states.get(decoded.stream_id), decoded)
            for state in (folded.state, folded.child):
                if state is not None:
                    states[state.stream_id] = state
                    if folded.wants_entry:
                        uncertain.add(state.stream_id)
    expected = {**contract.model_streams(), **contract.closed_streams()}
    assert states.keys() == expected.keys()
    certain = expected.keys() - uncertain
    assert len(certain) > 100
    for sid in certain:
        for name in expected[sid].keys() - NOT_TOLD:
            assert getattr(states[sid], name) == expected[sid][name], (sid, name)
