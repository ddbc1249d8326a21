"""The fold: each of the contract's traps by itself, and that no sequence of events breaks it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.contract import ContractEvent, correction
from fluxora.protocol.fold import fold
from fluxora.protocol.streams import (
    CONTRACT_FIELDS,
    StreamKind,
    StreamState,
    StreamStatus,
    accrued,
    accrued_on_schedule,
    claimable_at,
    payout,
    refund,
)

ACTIVE, PAUSED, COMPLETED, CANCELLED = StreamStatus
SENDER, RECIPIENT, OTHER, FOURTH = (encode(AddressKind.ACCOUNT, bytes([n] * 32)) for n in range(4))


def event(action, /, *, at=100, ledger=7, sid=1, **data):
    return ContractEvent("0" * 19 + "-" + "0" * 10, ledger, at, "C" + "A" * 55, "ab" * 32, action, sid, data, b"")


def creation(**changes):
    fields = {
        "stream_id": 1,
        "sender": SENDER,
        "recipient": RECIPIENT,
        "deposit_amount": 1000,
        "rate_per_second": 1,
        "start_time": 0,
        "cliff_time": 0,
        "end_time": 1000,
        "withdraw_dust_threshold": 0,
        "memo": None,
        "metadata": None,
    }
    return event("created", at=0, **fields | changes)


def stream(**changes):
    """A known linear stream of 1000 over 1000 seconds, with `changes` made to its state."""
    return replace(fold(None, creation()).state, **changes)


def stored(state):
    return {name: getattr(state, name) for name in CONTRACT_FIELDS}


NUMBERS = (
    "amount", "deposit_amount", "rate_per_second", "start_time", "cliff_time", "end_time", "old_rate_per_second",
    "new_rate_per_second", "effective_time", "checkpointed_amount", "refund_amount", "old_end_time", "new_end_time",
    "new_deposit_amount", "top_up_amount", "child_stream_id", "new_parent_rate", "child_rate", "recipient_amount",
    "source_stream_id", "new_stream_id",
)  # fmt: skip
ADDRESSES = ("new_recipient", "new_owner", "destination", "delegatee", "new_sender")
ENTRY = ("status", "kind", "start_time", "withdrawn_amount", "sender", "metadata", "novelty")
FIELDS = {
    "stream_id": st.integers(0, 3),
    "recipient": st.sampled_from((RECIPIENT, OTHER)),
    "sender": st.sampled_from((SENDER, None)),
    "memo": st.none(),
    "decommissioned": st.booleans(),
    "entry": st.dictionaries(st.sampled_from(ENTRY), st.none() | st.integers(0, 9) | st.sampled_from(("Active", "x"))),
    "immutable_only": st.booleans(),
    **{name: st.integers(0, 2000) for name in NUMBERS},
    **{name: st.just(FOURTH) for name in ADDRESSES},
}
ACTIONS = (
    "created", "withdrew", "wdraw_to", "completed", "paused", "resumed", "cancelled", "kp_cncl", "closed", "rate_upd",
    "rate_dec", "end_shrt", "end_ext", "top_up", "recp_upd", "claim_own", "del_share", "cloned", "renewed", "decomm",
    "health", "ac_set", "ac_revoke", "ac_trig", "offr_acc", "sndr_xfr", "rate_cap", "unknown", "corrected", "novel",
)  # fmt: skip
KINDS = {"created": "created", "cancelled": "cancelled", "kp_cncl": "cancelled"}


@st.composite
def any_events(draw):
    """Any action at any time; mostly whole, sometimes with a field or more missing."""
    missing = draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=3))
    data = {name: draw(values) for name, values in FIELDS.items() if name not in missing}
    at, sid = draw(st.integers(0, 2000)), draw(st.sampled_from((1, 1, 1, None)))
    return event(draw(st.sampled_from(ACTIONS)), at=at, sid=sid, **data)


@settings(max_examples=200, deadline=None)
@given(events=st.lists(any_events(), max_size=10), known=st.booleans(), at=st.integers(0, 3000))
def test_folding_never_raises(events, known, at):
    state = stream() if known else None
    for sent in events:
        folded = fold(state, sent)
        if not folded.wants_entry and sent.stream_id is not None and state is not None:
            # One that lacks a field tells that something happened, and has the entry read; a closed stream has none.
            broken = {"updated"} if state.closed_at is not None else set()
            assert folded.kind in {KINDS.get(sent.action, "updated"), *broken}
        assert state is None or folded.state is not None
        state = folded.state
        if state is not None:
            for function in (accrued, refund, payout, claimable_at):
                assert function(state, at) >= 0


def test_created_is_taken_as_told():
    memo, metadata = b"rent", {b"k": b"\xff"}
    folded = fold(None, creation(memo=memo, metadata=metadata, withdraw_dust_threshold=5))
    assert (folded.kind, folded.wants_entry, folded.child) == ("created", False, None)
    state = folded.state
    assert (state.memo, state.metadata, state.withdraw_dust_threshold) == (memo, metadata, 5)
    assert (state.status, state.checkpointed_at, state.kind_known) == (ACTIVE, 0, True)


@pytest.mark.parametrize(
    ("told", "kind", "known"),
    [
        ({"rate_per_second": 0, "cliff_time": 500}, StreamKind.CLIFF_ONLY, True),
        ({"deposit_amount": 999, "cliff_time": 500}, StreamKind.CLIFF_SLOPE, True),
        ({}, StreamKind.LINEAR, True),
        ({"cliff_time": 1}, StreamKind.LINEAR, False),
    ],
)
def test_the_kind_is_read_off_the_numbers_where_they_show_it(told, kind, known):
    folded = fold(None, creation(**told))
    assert (folded.state.kind, folded.state.kind_known, folded.wants_entry) == (kind, known, not known)
    if not known:
        accepted = fold(folded.state, event("offr_acc", offer_id=1, effective_start_time=0, recipient=RECIPIENT))
        assert accepted.wants_entry
        assert fold(folded.state, event("end_ext", old_end_time=1000, new_end_time=1001)).state.kind_known


def test_the_first_contracts_tell_the_deposit_alone():
    folded = fold(None, event("created", deposit_amount=1000, stream_id=1))
    state = folded.state
    assert (state.sender, state.recipient, state.deposit_amount, state.kind_known) == ("", "", 1000, False)
    assert folded.wants_entry
    assert accrued(state, 10**9) == 0
    # An entry that is already ahead of the log tells the schedule, and not what later events will tell.
    entry = {"sender": SENDER, "recipient": RECIPIENT, "start_time": 5, "cliff_time": 5, "end_time": 1005}
    entry |= {"rate_per_second": 1, "deposit_amount": 1500, "withdrawn_amount": 80, "status": 1}
    ahead = fold(state, event("corrected", entry=entry, immutable_only=True)).state
    assert (ahead.sender, ahead.end_time, ahead.checkpointed_at, ahead.kind_known) == (SENDER, 1005, 5, True)
    assert (ahead.deposit_amount, ahead.withdrawn_amount, ahead.status) == (1000, 0, ACTIVE)


def test_a_sender_that_pays_itself_made_a_pool():
    folded = fold(None, creation(recipient=SENDER))
    assert (folded.state.is_pooled, folded.wants_entry) == (True, True)
    paid = fold(folded.state, event("withdrew", at=400, recipient=OTHER, amount=7))
    assert (paid.state.withdrawn_amount, paid.state.last_withdraw_ledger, paid.wants_entry) == (7, 0, False)
    # A payout to someone else is the only other sign of a pool; then the ledger is asked once.
    stranger = fold(stream(), event("withdrew", at=400, recipient=OTHER, amount=7))
    assert (stranger.state.is_pooled, stranger.wants_entry) == (True, True)


def test_a_relayers_fee_is_found_by_what_is_missing():
    net = fold(stream(), event("withdrew", at=400, recipient=RECIPIENT, amount=390))
    assert net.wants_entry
    assert (net.state.withdrawn_amount, net.state.paid_out) == (390, 390)
    entry = stored(net.state) | {"withdrawn_amount": 400}
    corrected = fold(net.state, event("corrected", entry=entry, immutable_only=False))
    assert (corrected.state.withdrawn_amount, corrected.state.paid_out, corrected.wants_entry) == (400, 390, False)
    gross = fold(stream(), event("withdrew", at=400, recipient=RECIPIENT, amount=400))
    assert (gross.state.last_withdraw_ledger, gross.wants_entry) == (7, False)
    windowed = stream(max_lookback_ledgers=10)
    assert not fold(windowed, event("withdrew", at=400, recipient=RECIPIENT, amount=50)).wants_entry


def test_completion_says_what_fees_were_never_told():
    net = fold(stream(), event("withdrew", at=1000, recipient=RECIPIENT, amount=990)).state
    done = fold(net, event("completed", at=1000, stream_id=1))
    assert (done.state.status, done.state.withdrawn_amount, done.state.paid_out) == (COMPLETED, 1000, 990)
    assert not done.wants_entry


def test_an_auto_claim_counts_once():
    state = stream(auto_claim_destination=OTHER)
    for action in ("ac_trig", "wdraw_to"):
        state = fold(state, event(action, at=400, recipient=RECIPIENT, destination=OTHER, amount=400)).state
    assert (state.withdrawn_amount, state.paid_out) == (400, 400)


def test_a_keepers_cancellation_pays_without_counting():
    folded = fold(stream(withdrawn_amount=600, paid_out=600), event("kp_cncl", at=700000, recipient_amount=400))
    state = folded.state
    assert (folded.kind, state.status, state.cancelled_at) == ("cancelled", CANCELLED, 700000)
    assert (state.withdrawn_amount, state.paid_out) == (600, 1000)
    assert folded.wants_entry
    # The contract would pay the same 400 again; then more has been paid than was ever deposited.
    again = fold(state, event("withdrew", at=700100, recipient=RECIPIENT, amount=400))
    assert (again.state.withdrawn_amount, again.state.paid_out, again.wants_entry) == (1000, 1400, False)


def rate_update(old, new, at=400):
    data = {"old_rate_per_second": old, "new_rate_per_second": new, "effective_time": at}
    return event("rate_upd", at=at, stream_id=1, **data)


def test_a_rate_that_does_not_rise_is_retroactive():
    folded = fold(stream(rate_per_second=4, deposit_amount=4000), rate_update(4, 1))
    assert (folded.state.checkpointed_amount, folded.state.checkpointed_at, folded.wants_entry) == (0, 0, False)
    assert accrued(folded.state, 400) == 400


def test_a_rate_that_rises_is_taken_as_checkpointed_and_asked_about():
    folded = fold(stream(deposit_amount=5000), rate_update(1, 2))
    state = folded.state
    assert (state.checkpointed_amount, state.checkpointed_at, state.last_rate_change_ledger) == (400, 400, 7)
    assert folded.wants_entry
    assert accrued(state, 500) == 600


@pytest.mark.parametrize(
    "changes",
    [
        {},  # 2 per second would need 2000
        {"deposit_amount": 5000, "status": CANCELLED, "cancelled_at": 300},
        {"deposit_amount": 5000, "decommissioned": True},
        {"deposit_amount": 5000, "end_time": 400},
        {"deposit_amount": 5000, "kind": StreamKind.CLIFF_SLOPE},
    ],
)
def test_a_rise_that_the_checkpointing_function_refuses_is_retroactive(changes):
    folded = fold(stream(**changes), rate_update(1, 2))
    assert (folded.state.rate_per_second, folded.state.checkpointed_at, folded.wants_entry) == (2, 0, False)


def test_a_rise_at_the_last_checkpoint_reads_the_same_either_way():
    assert not fold(stream(deposit_amount=5000), rate_update(1, 2, at=0)).wants_entry


def test_a_rate_change_before_the_cliff_loses_what_had_accrued():
    state = fold(stream(cliff_time=500, deposit_amount=5000), rate_update(1, 2, at=400)).state
    assert (accrued_on_schedule(state, 499), accrued_on_schedule(state, 500)) == (0, 200)


def test_a_share_makes_a_child_and_splits_the_deposit():
    parent = stream(
        deposit_amount=10_000, rate_per_second=10, cliff_time=300, memo=b"m", witness=OTHER, irrevocable=True
    )
    told = {"parent_stream_id": 1, "child_stream_id": 9, "delegator": RECIPIENT, "delegatee": FOURTH}
    folded = fold(parent, event("del_share", at=400, **told, share_bps=2500, new_parent_rate=8, child_rate=2))
    assert (folded.kind, folded.wants_entry) == ("updated", True)
    assert (folded.state.deposit_amount, folded.state.checkpointed_amount) == (4000 + 8 * 600, 4000)
    child = folded.child
    assert (child.stream_id, child.sender, child.recipient, child.deposit_amount) == (9, SENDER, FOURTH, 1200)
    assert (child.start_time, child.cliff_time, child.end_time, child.checkpointed_at) == (400, 400, 1000, 400)
    assert (child.memo, child.witness, child.irrevocable) == (b"m", OTHER, True)
    assert (child.delegation_depth, child.parent_stream_id, child.status) == (1, 1, ACTIVE)
    for at in range(400, 1200, 100):
        assert accrued(folded.state, at) + accrued(child, at) == accrued(parent, at)


def test_links_and_flags():
    state = stream()
    for sent, name, value in (
        (event("recp_upd", old_recipient=RECIPIENT, new_recipient=OTHER), "recipient", OTHER),
        (event("claim_own", old_owner=None, new_owner=OTHER), "claim_owner", OTHER),
        (event("sndr_xfr", old_sender=SENDER, new_sender=OTHER), "sender", OTHER),
        (event("decomm", decommissioned=True), "decommissioned", True),
        (event("cloned", new_stream_id=1, source_stream_id=0), "cloned_from", 0),
        (event("renewed", old_stream_id=1, new_stream_id=4), "renewed_to", 4),
        (event("ac_set", destination=OTHER), "auto_claim_destination", OTHER),
        (event("closed", at=5), "closed_at", 5),
    ):
        folded = fold(state, sent)
        assert folded.state == replace(state, **{name: value})
        assert not folded.wants_entry
    assert fold(stream(auto_claim_destination=OTHER), event("ac_revoke")).state.auto_claim_destination is None


def test_what_concerns_no_number_changes_nothing():
    state = stream()
    for action in ("health", "ac_trig", "rate_cap", "recp_prp", "recp_cxl"):
        folded = fold(state, event(action, amount=5, stream_id=1))
        assert folded.state is state
        assert not folded.wants_entry
    for action in ("gl_pause", "unknown", "AdminUpd", "offr_crt"):
        assert fold(None, event(action, sid=None)) == fold(None, event("tmpl_def", sid=None))
    unknown = fold(state, event("unknown", topics=["novel"], value=None))
    assert (unknown.state, unknown.wants_entry) == (state, True)


def test_an_unknown_stream_is_asked_for_unless_it_is_gone():
    for action, asked in (("withdrew", True), ("paused", True), ("closed", False)):
        folded = fold(None, event(action, amount=1))
        assert (folded.state, folded.wants_entry) == (None, asked)
    ahead = event("corrected", entry=stored(stream()), immutable_only=True)
    assert (fold(None, ahead).state, fold(None, ahead).wants_entry) == (None, True)
    found = fold(None, event("corrected", entry=stored(stream(withdrawn_amount=5)), immutable_only=False))
    assert (found.state, found.wants_entry) == (stream(withdrawn_amount=5, paid_out=5), False)


def test_a_cancelled_stream_is_closed_with_everything_withdrawn():
    cancelled = stream(status=StreamStatus.CANCELLED, cancelled_at=50, withdrawn_amount=3)
    assert fold(cancelled, event("closed", at=900)).state.withdrawn_amount == accrued(cancelled, 50) > 3


def test_a_closed_stream_is_never_asked_for():
    closed = stream(closed_at=50)
    for sent in (event("kp_cncl", recipient_amount=0), event("withdrew"), event("unknown"), rate_update(5, 9)):
        assert not fold(closed, sent).wants_entry


def test_what_a_status_does_not_allow_is_believed_and_asked_about():
    for sent, status in (
        (event("paused"), CANCELLED),
        (event("resumed"), ACTIVE),
        (event("cancelled"), COMPLETED),
        (event("completed"), CANCELLED),
        (event("rate_upd", old_rate_per_second=9, new_rate_per_second=1, effective_time=5), ACTIVE),
        (event("end_shrt", old_end_time=900, new_end_time=800, refund_amount=1), ACTIVE),
        (event("end_ext", old_end_time=900, new_end_time=1800), ACTIVE),
        (event("top_up", top_up_amount=1, new_deposit_amount=5000, new_end_time=1), ACTIVE),
    ):
        before = stream(status=status)
        assert fold(before, sent).wants_entry, sent.action


def test_only_what_never_changes_is_taken_from_an_entry_that_is_ahead():
    state = stream(kind_known=False, cliff_time=10)
    entry = stored(state) | {"kind": StreamKind.CLIFF_SLOPE, "irrevocable": True, "witness": OTHER}
    entry |= {"withdrawn_amount": 500, "status": CANCELLED, "deposit_amount": 1, "recipient": OTHER}
    ahead = fold(state, event("corrected", entry=entry, immutable_only=True))
    expected = replace(state, kind=StreamKind.CLIFF_SLOPE, kind_known=True, irrevocable=True, witness=OTHER)
    assert (ahead.state, ahead.kind, ahead.wants_entry) == (expected, "updated", False)


def test_an_entry_of_a_contract_without_checkpoints_undoes_a_guessed_one():
    guessed = fold(stream(deposit_amount=5000), rate_update(1, 2)).state
    entry = {
        name: value
        for name, value in stored(guessed).items()
        if name not in {"checkpointed_amount", "checkpointed_at", "kind"}
    }
    state = fold(guessed, event("corrected", entry=entry, immutable_only=False)).state
    assert (state.checkpointed_amount, state.checkpointed_at, accrued(state, 400)) == (0, 0, 800)


def test_an_entry_that_cannot_be_read_changes_nothing():
    state = stream()
    folded = fold(state, event("corrected", entry={"deposit_amount": "much"}, immutable_only=False))
    assert (folded.state, folded.wants_entry) == (state, False)


def test_our_own_fields_outlive_a_correction():
    state = stream(paid_out=5, renewed_to=4, cloned_from=2, auto_claim_destination=OTHER, closed_at=None)
    corrected = fold(state, event("corrected", entry=stored(stream(status=PAUSED)), immutable_only=False)).state
    assert corrected == replace(state, status=PAUSED)
    assert isinstance(corrected, StreamState)


@pytest.mark.parametrize("name", ["sender", "recipient", "claim_owner", "witness"])
@pytest.mark.parametrize("text", ["\0", "y" * 9_000, "G" + "A" * 55])
def test_an_entry_whose_party_is_no_address_is_not_believed(name, text):
    entry = {"sender": SENDER, "recipient": RECIPIENT, "deposit_amount": 5, name: text}
    before = StreamState(sender=SENDER, recipient=OTHER, deposit_amount=7)
    for state in (None, before):
        for partial in (False, True):
            told = correction(
                ledger=7, closed_at=9, contract_id="C" * 56, stream_id=1, entry=entry, immutable_only=partial
            )
            folded = fold(state, told)
            assert (folded.state, folded.wants_entry) == (state, False)
