"""The contract's own accrual results, from its tests and snapshots, against ours."""

from __future__ import annotations

import gzip
import json

import pytest

from fluxora.protocol.streams import StreamState, accrued, accrued_on_schedule, claimable_at, payout, withdrawable

FUNCTIONS = {
    "accrued_pure": accrued_on_schedule,
    "calculate_accrued": accrued,
    "get_claimable_at": claimable_at,
    "get_withdrawable": withdrawable,
    "withdraw": payout,
}


@pytest.fixture(scope="module")
def vectors(fixtures_dir):
    with gzip.open(fixtures_dir / "accrual_vectors.json.gz", "rt") as file:
        return json.load(file)["vectors"]


def test_every_vector_holds(vectors):
    wrong = {}
    for vector in vectors:
        got = FUNCTIONS[vector["fn"]](StreamState.from_contract(vector["state"]), int(vector["at"]))
        if got != int(vector["expected"]):
            wrong[vector["id"]] = (vector["test"], got, vector["expected"])
    assert not wrong
    assert len(vectors) == 406
    assert {vector["fn"] for vector in vectors} == set(FUNCTIONS)


def test_vectors_hold_for_states_that_went_through_storage(vectors):
    from fluxora.protocol.streams import pack_state, unpack_state

    for vector in vectors:
        state = StreamState.from_contract(vector["state"])
        assert unpack_state(pack_state(state)) == state
