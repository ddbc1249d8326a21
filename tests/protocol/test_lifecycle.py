from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fluxora.errors import BadRequest, Conflict
from fluxora.protocol.addresses import AddressKind, encode
from fluxora.protocol.contract import ContractEvent
from fluxora.protocol.fold import fold
from fluxora.protocol.lifecycle import NewStream, Step, begin, change_status
from fluxora.protocol.messages import StreamRecord, encode_view, worth
from fluxora.protocol.streams import StreamKind, StreamState, StreamStatus

SENDER, RECIPIENT = (encode(AddressKind.ACCOUNT, bytes([n] * 32)) for n in (1, 2))
NOW = 1_785_000_000
ACTIVE, PAUSED, COMPLETED, CANCELLED = StreamStatus
ALLOWED = {
    (ACTIVE, PAUSED): ("stream.updated", "paused"),
    (ACTIVE, COMPLETED): ("stream.updated", "completed"),
    (ACTIVE, CANCELLED): ("stream.cancelled", "cancelled"),
    (PAUSED, ACTIVE): ("stream.updated", "resumed"),
    (PAUSED, CANCELLED): ("stream.cancelled", "cancelled"),
}


def new(**fields):
    parties = {"sender": SENDER, "recipient": RECIPIENT}
    return NewStream(**{**parties, "deposit_amount": 10**10, "rate_per_second": 10**5, **fields})


def record(state: StreamState) -> StreamRecord:
    return StreamRecord("stream-0", "api", 1, None, 7, state, 1, 1, None, NOW * 1000, NOW * 1000)


def on_chain(action: str, at: int, **data) -> ContractEvent:
    """The contract's event for the same thing."""
    return ContractEvent("0" * 19 + "-" + "0" * 10, 0, at, "C" + "A" * 55, "ab" * 32, action, 0, data, b"")


def test_absent_times_are_now_the_start_and_never():
    step = begin(new(), NOW)
    state = step.state
    assert (state.start_time, state.cliff_time, state.end_time, state.checkpointed_at) == (NOW, NOW, 0, NOW)
    assert (state.status, state.kind, state.withdrawn_amount) == (ACTIVE, StreamKind.LINEAR, 0)
    assert (step.event, step.action) == ("stream.created", "created")
    assert step.change == {
        "sender": SENDER,
        "recipient": RECIPIENT,
        "depositAmount": "1000.0000000",
        "ratePerSecond": "0.0100000",
    }


def test_given_times_are_kept_and_told():
    times = {"start_time": NOW + 10, "cliff_time": NOW + 20, "end_time": NOW + 30}
    step = begin(new(**times), NOW)
    assert {name: getattr(step.state, name) for name in times} == times
    assert {"startTime": NOW + 10, "cliffTime": NOW + 20, "endTime": NOW + 30}.items() <= step.change.items()
    assert begin(new(start_time=NOW + 10, cliff_time=0, end_time=0), NOW).state.cliff_time == NOW + 10


@pytest.mark.parametrize(
    ("times", "wrong"),
    [
        ({"end_time": NOW}, ["endTime"]),
        ({"start_time": NOW + 5, "end_time": NOW + 5}, ["endTime"]),
        ({"start_time": NOW + 5, "cliff_time": NOW + 4}, ["cliffTime"]),
        ({"cliff_time": NOW - 1}, ["cliffTime"]),
        ({"end_time": NOW + 5, "cliff_time": NOW + 6}, ["cliffTime"]),
        ({"end_time": NOW - 5, "cliff_time": NOW - 6}, ["endTime", "cliffTime"]),
    ],
)
def test_times_out_of_order_are_all_named(times, wrong):
    with pytest.raises(BadRequest) as caught:
        begin(new(**times), NOW)
    assert [field for field, code, _ in caught.value.details or []] == wrong


@pytest.mark.parametrize("times", [{"end_time": NOW + 1}, {"cliff_time": NOW + 9, "end_time": NOW + 9}])
def test_times_at_their_bounds_are_fine(times):
    begin(new(**times), NOW)


@pytest.mark.parametrize("was", StreamStatus)
@pytest.mark.parametrize("to", StreamStatus)
def test_which_status_may_follow_which(was, to):
    state = replace(begin(new(), NOW).state, status=was)
    if (was, to) in ALLOWED:
        step = change_status(state, to, NOW + 1)
        assert (step.event, step.action) == ALLOWED[was, to]
        assert step.state.status == to
        assert step.change == {"from": was.name.lower(), "to": to.name.lower()}
        return
    with pytest.raises(Conflict) as caught:
        change_status(state, to, NOW + 1)
    ((field, code, message),) = caught.value.details or []
    assert (field, code) == ("status", "INVALID_TRANSITION")
    assert message == f"{to.name.lower()} cannot follow {was.name.lower()}"
    for status in StreamStatus:
        if status not in (was, to):
            assert (status.name.lower() in str(caught.value)) == ((was, status) in ALLOWED)


moments = st.lists(st.integers(0, 10**6), min_size=1, max_size=8).map(sorted)
streams = st.builds(
    lambda deposit, rate, cliff, end: new(
        deposit_amount=deposit,
        rate_per_second=rate,
        start_time=NOW,
        cliff_time=NOW + min(cliff, end or cliff),
        end_time=NOW + end if end else None,
    ),
    st.integers(1, 2**63 * 10**7),
    st.integers(0, 10**12),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)


def walk(asked: NewStream, statuses: list[StreamStatus], at: list[int]) -> list[tuple[Step, int]]:
    """The steps that were possible."""
    steps = [(begin(asked, NOW), NOW)]
    for to, second in zip(statuses, at, strict=False):
        try:
            steps.append((change_status(steps[-1][0].state, to, NOW + second), NOW + second))
        except Conflict:
            continue
    return steps


@given(asked=streams, statuses=st.lists(st.sampled_from(StreamStatus), max_size=8), at=moments)
def test_a_walk_sets_what_the_chain_sets(asked, statuses, at):
    """Against the fold, which is held to the contract: the same history told by the contract's events."""
    steps = walk(asked, statuses, at)
    state = fold(
        None,
        on_chain(
            "created",
            NOW,
            sender=SENDER,
            recipient=RECIPIENT,
            deposit_amount=asked.deposit_amount,
            rate_per_second=asked.rate_per_second,
            start_time=asked.start_time,
            cliff_time=asked.cliff_time,
            end_time=asked.end_time or 0,
        ),
    ).state
    assert state is not None
    for step, second in steps[1:]:
        state = fold(state, on_chain(step.action, second)).state
        assert state is not None
    ours = steps[-1][0].state
    # The fold guesses the kind from the numbers, and learns of payouts from other events.
    assert replace(ours, paid_out=0) == replace(state, kind=ours.kind, kind_known=True, paid_out=0)


@given(
    asked=streams,
    statuses=st.lists(st.sampled_from(StreamStatus), max_size=8),
    at=moments,
    later=st.lists(st.integers(0, 10**7), min_size=2, max_size=6).map(sorted),
)
def test_no_amount_appears_or_is_lost(asked, statuses, at, later):
    for step, second in walk(asked, statuses, at):
        state, one = step.state, record(step.state)
        values = [worth(one, second + wait) for wait in later]
        for value in values:
            assert 0 <= value.streamed <= asked.deposit_amount
            assert 0 <= value.withdrawable <= value.streamed - state.withdrawn_amount
            if state.status == ACTIVE:
                assert value.withdrawable + state.withdrawn_amount == value.streamed
            if state.status in (ACTIVE, PAUSED):
                assert value.streamed + value.remaining == asked.deposit_amount
            else:
                assert value.remaining == 0
        for before, after in pairwise(values):
            assert before.streamed <= after.streamed
        if state.status == COMPLETED:
            assert all(value.streamed == state.withdrawn_amount == asked.deposit_amount for value in values)
        if state.status == CANCELLED:
            assert all(value == values[0] for value in values)
            live = replace(state, status=ACTIVE, cancelled_at=None)
            assert values[0].streamed == worth(record(live), second).streamed


@given(pauses=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5))
def test_paused_seconds_add_up(pauses):
    state, now = begin(new(), NOW).state, NOW
    for wait, length in pauses:
        now += wait
        state = change_status(state, PAUSED, now).state
        assert state.paused_at_timestamp == now
        now += length
        state = change_status(state, ACTIVE, now).state
    assert state.cumulative_paused_duration == sum(length for _, length in pauses)
    assert state.paused_at_timestamp == 0


def test_a_clock_that_is_behind_takes_no_paused_second_back():
    paused = change_status(begin(new(), NOW).state, PAUSED, NOW + 10).state
    assert change_status(paused, ACTIVE, NOW + 5).state.cumulative_paused_duration == 0


@pytest.mark.parametrize(
    ("fields", "depletion"),
    [
        ({}, NOW + 10**5),
        ({"rate_per_second": 0}, None),
        ({"deposit_amount": 2**53, "rate_per_second": 1}, None),  # beyond what JSON numbers can say
        ({"deposit_amount": 2**63 * 10**7, "rate_per_second": 1}, None),
        ({"deposit_amount": 10**10, "rate_per_second": 1, "end_time": NOW + 50}, NOW + 50),
    ],
)
def test_the_depletion_of_a_stream_that_may_have_no_end(fields, depletion):
    seen = json.loads(encode_view(record(begin(new(**fields), NOW).state), NOW))
    assert seen.get("depletionTime") == depletion
