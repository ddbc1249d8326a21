"""Accrual and payouts against a plain transcription of the contract's formula, and what must hold of money."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.errors import DecodeError
from fluxora.protocol import streams
from fluxora.protocol.streams import (
    CONTRACT_FIELDS,
    StreamKind,
    StreamState,
    StreamStatus,
    accrued,
    accrued_on_schedule,
    claimable_at,
    depletion_time,
    pack_state,
    payout,
    refund,
    unpack_state,
    withdrawable,
)

U64 = 2**64 - 1
I128 = 2**127 - 1
FEW = settings(max_examples=200, deadline=None)


def transcribed(s: StreamState, now: int) -> int:
    """The contract's formula as its documentation writes it, every bound spelled out."""
    if now < s.cliff_time or s.deposit_amount <= 0:
        return 0
    if s.kind is StreamKind.CLIFF_ONLY:
        return s.deposit_amount
    if s.kind is StreamKind.CLIFF_SLOPE:
        product = max(0, min(now, s.end_time) - s.cliff_time) * s.rate_per_second
        return max(0, min(max(-I128 - 1, min(product, I128)), s.deposit_amount))
    if s.rate_per_second < 0:
        return 0
    if s.checkpointed_at >= s.end_time:
        return max(0, min(s.checkpointed_amount, s.deposit_amount))
    added = max(0, min(now, s.end_time) - s.checkpointed_at) * s.rate_per_second
    if added > I128:
        added = s.deposit_amount
    return max(0, min(s.checkpointed_amount + added, s.deposit_amount))


def amounts(largest: int) -> st.SearchStrategy[int]:
    return st.integers(0, 50) | st.integers(0, largest)


@st.composite
def small_states(draw: st.DrawFn) -> StreamState:
    """Streams short and small enough for every second of them to be tried."""
    start = draw(st.integers(0, 20))
    cliff = start + draw(st.integers(0, 20))
    end = cliff + draw(st.integers(0, 20))
    status = draw(st.sampled_from(StreamStatus))
    return StreamState(
        deposit_amount=draw(st.integers(-2, 120)),
        rate_per_second=draw(st.integers(-1, 9)),
        start_time=start,
        cliff_time=cliff,
        end_time=end,
        checkpointed_amount=draw(st.integers(0, 60)),
        checkpointed_at=draw(st.integers(start, end + 3)),
        kind=draw(st.sampled_from(StreamKind)),
        status=status,
        cancelled_at=draw(st.integers(0, 70)) if status is StreamStatus.CANCELLED else None,
        withdrawn_amount=draw(st.integers(0, 60)),
        withdraw_dust_threshold=draw(st.integers(0, 10)),
        max_lookback_ledgers=draw(st.none() | st.integers(1, 4)),
    )


@st.composite
def any_states(draw: st.DrawFn) -> StreamState:
    """Streams with numbers up to the limits of their types."""
    status = draw(st.sampled_from(StreamStatus))
    return StreamState(
        stream_id=draw(amounts(U64)),
        sender=draw(st.text(max_size=5)),
        deposit_amount=draw(st.integers(-I128 - 1, I128) | st.integers(0, 10**9)),
        rate_per_second=draw(st.integers(-I128 - 1, I128) | st.integers(0, 10**6)),
        start_time=draw(amounts(U64)),
        cliff_time=draw(amounts(U64)),
        end_time=draw(amounts(U64)),
        checkpointed_amount=draw(amounts(I128) | st.integers(-I128 - 1, 0)),
        checkpointed_at=draw(amounts(U64)),
        withdrawn_amount=draw(amounts(I128)),
        kind=draw(st.sampled_from(StreamKind)),
        status=status,
        cancelled_at=draw(amounts(U64)) if status is StreamStatus.CANCELLED else None,
        max_lookback_ledgers=draw(st.none() | st.integers(1, 2**32 - 1)),
        memo=draw(st.none() | st.binary(max_size=4)),
        metadata=draw(st.none() | st.dictionaries(st.binary(max_size=3), st.binary(max_size=3), max_size=2)),
        irrevocable=draw(st.none() | st.booleans()),
        parent_stream_id=draw(st.none() | amounts(U64)),
    )


@FEW
@given(state=any_states(), at=amounts(U64))
def test_accrual_is_the_contracts_formula(state, at):
    assert accrued_on_schedule(state, at) == transcribed(state, at)


@FEW
@given(state=any_states(), one=amounts(U64), other=amounts(U64))
def test_accrual_never_falls_and_never_passes_the_deposit(state, one, other):
    earlier, later = sorted((one, other))
    assert 0 <= accrued_on_schedule(state, earlier) <= accrued_on_schedule(state, later)
    assert accrued_on_schedule(state, later) <= max(0, state.deposit_amount)


@FEW
@given(state=any_states(), at=amounts(U64), later=amounts(U64))
def test_streamed_and_refunded_make_the_deposit(state, at, later):
    """Before a cancellation, at it, and for ever after it."""
    if state.status is not StreamStatus.CANCELLED and state.deposit_amount >= 0:
        assert accrued(state, at) + refund(state, at) == state.deposit_amount
    if state.status in (StreamStatus.ACTIVE, StreamStatus.PAUSED) and state.deposit_amount >= 0:
        fields = {name: getattr(state, name) for name in state.__struct_fields__}
        cancelled = StreamState(**fields | {"status": StreamStatus.CANCELLED, "cancelled_at": at})
        assert accrued(cancelled, later) == accrued(state, at)
        assert refund(cancelled, later) == refund(state, at)


@FEW
@given(state=any_states(), at=amounts(U64))
def test_nothing_pays_more_than_is_owed(state, at):
    owed = max(0, accrued(state, at) - state.withdrawn_amount)
    assert 0 <= withdrawable(state, at) <= owed
    assert 0 <= payout(state, at) <= owed
    assert claimable_at(state, at) >= 0
    if state.status in (StreamStatus.ACTIVE, StreamStatus.PAUSED):
        assert claimable_at(state, at) <= owed


@settings(max_examples=400, deadline=None)
@given(state=small_states())
def test_depletion_is_the_first_second_of_the_most_that_ever_accrues(state):
    seconds = range(120)
    most = max(accrued_on_schedule(state, at) for at in seconds)
    first = max(state.cliff_time, state.checkpointed_at if state.kind is StreamKind.LINEAR else 0)
    tried = next((at for at in seconds if at >= first and accrued_on_schedule(state, at) == most), None)
    if most == 0 or (state.cancelled_at is not None and state.cancelled_at < tried):
        assert depletion_time(state) is None
    else:
        assert depletion_time(state) == tried


@FEW
@given(state=small_states(), at=st.integers(0, 80))
def test_a_claim_is_bounded_by_the_lookback_window(state, at):
    """What the window holds is what accrued in its seconds; a cliff-only stream is exempt once it pays."""
    if state.max_lookback_ledgers is None or state.status is not StreamStatus.ACTIVE:
        return
    end = min(at, state.end_time)
    window = accrued_on_schedule(state, end) - accrued_on_schedule(state, max(0, end - 5 * state.max_lookback_ledgers))
    if state.kind is StreamKind.CLIFF_ONLY and accrued(state, at) > 0:
        window = accrued(state, at)
    expected = max(0, min(window, accrued(state, at) - state.withdrawn_amount))
    assert withdrawable(state, at) == claimable_at(state, at) == expected


def linear(**changes):
    fields = {"deposit_amount": 1000, "rate_per_second": 1, "end_time": 1000} | changes
    return StreamState(**fields)


def test_a_pause_hides_what_keeps_accruing():
    paused = linear(status=StreamStatus.PAUSED)
    assert (accrued(paused, 400), withdrawable(paused, 400), payout(paused, 400), claimable_at(paused, 400)) == (
        400,
        0,
        0,
        400,
    )
    # Past the end a paused stream pays, while the read call still says 0.
    assert (withdrawable(paused, 1000), payout(paused, 1000)) == (0, 1000)


def test_a_completed_stream_has_streamed_everything_and_owes_nothing():
    completed = linear(status=StreamStatus.COMPLETED, withdrawn_amount=1000)
    assert accrued(completed, 1) == 1000
    assert {f(completed, 2000) for f in (withdrawable, payout, claimable_at, refund)} == {0}


def test_a_deposit_below_nothing_streams_nothing_whatever_the_status():
    for status in StreamStatus:
        assert accrued(linear(deposit_amount=-1, status=status), 500) == 0, "an event that no honest contract sends"


def test_dust_is_not_paid_until_the_end_or_the_last_of_it():
    dusty = linear(withdraw_dust_threshold=100)
    assert (payout(dusty, 99), payout(dusty, 100)) == (0, 100)
    assert withdrawable(dusty, 99) == 99
    assert payout(linear(withdraw_dust_threshold=100, withdrawn_amount=950), 1000) == 50
    # The deposit is reached long before the end: this payment drains the stream.
    assert payout(linear(withdraw_dust_threshold=100, withdrawn_amount=950, rate_per_second=5), 300) == 50
    cancelled = linear(withdraw_dust_threshold=100, status=StreamStatus.CANCELLED, cancelled_at=30)
    assert payout(cancelled, 500) == 30


def test_a_cancelled_streams_window_ends_where_each_call_puts_it():
    state = linear(status=StreamStatus.CANCELLED, cancelled_at=500, max_lookback_ledgers=10)
    assert payout(state, 900) == 50
    assert claimable_at(state, 900) == 50
    # Everything accrues in the first 200 seconds of this one, so only a window that ends at the cancellation holds any.
    quick = linear(rate_per_second=5, status=StreamStatus.CANCELLED, cancelled_at=100, max_lookback_ledgers=10)
    assert (payout(quick, 900), claimable_at(quick, 900), withdrawable(quick, 900)) == (250, 250, 0)
    assert withdrawable(state, 530) == 50
    assert claimable_at(state, 20) == 20


def test_products_beyond_i128_saturate():
    huge = linear(deposit_amount=I128, rate_per_second=I128, end_time=U64, checkpointed_amount=0)
    assert accrued(huge, U64) == I128
    # What saturates becomes the deposit, no more: a checkpoint below zero still counts against it.
    assert accrued(linear(deposit_amount=7, rate_per_second=I128, end_time=U64, checkpointed_amount=-3), U64) == 4
    assert accrued(linear(deposit_amount=7, rate_per_second=I128, end_time=U64), U64) == 7


@FEW
@given(state=any_states())
def test_a_state_survives_its_storage(state):
    assert unpack_state(pack_state(state)) == state


def test_stored_states_of_an_older_program_read_with_defaults():
    import msgspec

    state = unpack_state(msgspec.msgpack.encode({"stream_id": 4, "status": 1, "deposit_amount": str(2**100)}))
    assert (state.stream_id, state.status, state.deposit_amount) == (4, StreamStatus.PAUSED, 2**100)
    assert state.kind is StreamKind.LINEAR
    for damaged in (b"", b"\xc1", b"\x93", msgspec.msgpack.encode({"status": 9})):
        with pytest.raises(DecodeError):
            unpack_state(damaged)


def test_there_are_the_contracts_29_fields():
    assert len(CONTRACT_FIELDS) == 29
    assert CONTRACT_FIELDS[-1] == "cumulative_paused_duration"


def test_contract_fields_read_as_numbers_digits_and_names():
    given_as = {
        "numbers": {"status": 3, "kind": 2, "deposit_amount": 5, "cancelled_at": 9, "start_time": 4},
        "digits": {"status": "3", "kind": "2", "deposit_amount": "5", "cancelled_at": "9", "start_time": "4"},
        "names": {"status": "Cancelled", "kind": "CliffSlope", "deposit_amount": 5, "cancelled_at": 9, "start_time": 4},
    }
    states = {StreamState.from_contract(fields | {"new_in_v10": 1}) for fields in map(dict, given_as.values())}
    assert len(states) == 1
    [state] = states
    assert state.checkpointed_at == 4
    assert (state.status, state.kind) == (StreamStatus.CANCELLED, StreamKind.CLIFF_SLOPE)


def test_what_was_withdrawn_counts_as_paid_and_windows_are_taken():
    state = StreamState.from_contract({"withdrawn_amount": "7", "max_lookback_ledgers": "10", "cancelled_at": None})
    assert (state.paid_out, state.max_lookback_ledgers, state.cancelled_at) == (7, 10, None)
    assert StreamState.from_contract({"checkpointed_at": None, "start_time": 3}).checkpointed_at == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"deposit_amount": 1.5},
        {"deposit_amount": "12x"},
        {"deposit_amount": True},
        {"status": "Ended"},
        {"status": 4},
        {"kind": []},
        {"sender": 5},
        {"irrevocable": "yes"},
        {"memo": 5},
        {"metadata": [1]},
    ],
)
def test_ill_typed_contract_fields_are_named(fields):
    with pytest.raises(DecodeError, match=next(iter(fields))):
        StreamState.from_contract(fields)


def test_memo_and_metadata_may_be_text():
    state = StreamState.from_contract({"memo": "pay", "metadata": {"a": b"\xff"}})
    assert (state.memo, state.metadata) == (b"pay", {b"a": b"\xff"})


def test_the_functions_take_any_second():
    for function in (accrued_on_schedule, accrued, claimable_at, withdrawable, payout, refund):
        for at in (0, 1, U64):
            assert function(linear(), at) >= 0
    assert streams.SECONDS_PER_LEDGER == 5
