"""A treasury against sums over what the API says of each stream, made from its decimal strings alone."""

from __future__ import annotations

from fractions import Fraction

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxora.protocol.messages import StreamRecord, StreamView, view
from fluxora.protocol.streams import StreamKind, StreamState, StreamStatus
from fluxora.protocol.treasury import Totals, Treasury

I128 = 2**127 - 1
STATUSES = ("active", "paused", "completed", "cancelled")
FEW = settings(max_examples=300, deadline=None)
AMOUNTS = {
    "deposited": "deposit_amount",
    "streamed": "streamed_amount",
    "withdrawn": "withdrawn_amount",
    "withdrawable": "withdrawable_amount",
    "remaining": "remaining_amount",
}


@st.composite
def records(draw: st.DrawFn) -> StreamRecord:
    start = draw(st.integers(0, 20))
    cliff = start + draw(st.integers(-2, 20))
    end = max(start, cliff) + draw(st.integers(0, 20))
    status = draw(st.sampled_from(StreamStatus))
    on_chain = draw(st.booleans())
    state = StreamState(
        stream_id=draw(st.integers(0, 9)),
        deposit_amount=draw(st.integers(0, 120) | st.integers(0, I128)),
        rate_per_second=draw(st.integers(-1, 9) | st.integers(0, I128)),
        start_time=start,
        cliff_time=max(0, cliff),
        end_time=end if on_chain else draw(st.sampled_from([0, end])),
        checkpointed_amount=draw(st.integers(0, 60)),
        checkpointed_at=start + draw(st.integers(0, 25)),
        kind=draw(st.sampled_from(StreamKind)) if on_chain else StreamKind.LINEAR,
        status=status,
        cancelled_at=draw(st.integers(0, 70)) if status is StreamStatus.CANCELLED else None,
        withdrawn_amount=draw(st.integers(0, 60)),
        max_lookback_ledgers=draw(st.none() | st.integers(1, 4)),
    )
    return record(
        state,
        contract_id=draw(st.sampled_from(["CA", "CB"])) if on_chain else None,
        decimals=draw(st.sampled_from([7, 7, 0])),
    )


def record(state: StreamState, *, contract_id: str | None = "CA", decimals: int = 0) -> StreamRecord:
    origin = "api" if contract_id is None else "chain"
    return StreamRecord("stream-x", origin, 1, contract_id, decimals, state, 1, 1, None, 0, 0)


def check(totals: Totals, decimals: int, members: list[StreamRecord], as_of: int) -> None:
    views = [view(one, as_of) for one in members]
    unit = Fraction(1, 10**decimals)
    for ours, theirs in AMOUNTS.items():
        assert getattr(totals, ours) * unit == sum((Fraction(getattr(v, theirs)) for v in views), Fraction()), ours
    assert totals.streams == [sum(v.status == status for v in views) for status in STATUSES]
    flowing = [v for one, v in zip(members, views, strict=True) if grows(one, v)]
    assert totals.rate * unit == sum((Fraction(v.rate_per_second) for v in flowing), Fraction())
    depletions = [v.depletion_time for v in views if v.status in ("active", "paused") and v.depletion_time is not None]
    assert totals.next_depletion == min((time for time in depletions if time > as_of), default=None)


def grows(one: StreamRecord, now: StreamView) -> bool:
    """Past the start and the cliff, more is streamed a second later."""
    later = view(one, now.as_of + 1)
    past = now.as_of >= max(now.start_time, now.cliff_time)
    return past and Fraction(later.streamed_amount) > Fraction(now.streamed_amount)


LINEAR = StreamState(
    deposit_amount=100, rate_per_second=5, start_time=10, cliff_time=12, end_time=30, checkpointed_at=10
)
ENDLESS = msgspec.structs.replace(LINEAR, deposit_amount=10**24, rate_per_second=1, end_time=0)


@FEW
@given(st.lists(records(), max_size=8), st.lists(records(), max_size=8), st.integers(0, 80))
@example([record(LINEAR)], [], 9)
@example([record(ENDLESS, contract_id=None)], [record(LINEAR, contract_id=None)], 15)
@example([record(LINEAR)], [record(LINEAR)], 12)
@example([record(LINEAR)], [record(LINEAR)], 29)
@example([record(LINEAR)], [record(LINEAR)], 30)
def test_totals_are_the_sums_of_what_is_shown_of_each_stream(
    sent: list[StreamRecord], received: list[StreamRecord], as_of: int
) -> None:
    treasury = Treasury(as_of)
    for one in sent:
        treasury.add_sent(one)
    for one in received:
        treasury.add_received(one)
    holdings = treasury.holdings()
    groups = {(one.contract_id, one.decimals) for one in [*sent, *received]}
    assert [(h.contract_id, h.decimals) for h in holdings] == sorted(groups, key=lambda g: (g[0] or "D", g[1]))
    for holding in holdings:
        group = holding.contract_id, holding.decimals
        for totals, members in ((holding.as_sender, sent), (holding.as_recipient, received)):
            check(totals, holding.decimals, [o for o in members if (o.contract_id, o.decimals) == group], as_of)


@FEW
@given(st.lists(records(), max_size=8), st.integers(0, 80))
def test_what_live_streams_have_streamed_and_have_left_is_their_deposit(all_: list[StreamRecord], as_of: int) -> None:
    live = [one for one in all_ if one.state.status in (StreamStatus.ACTIVE, StreamStatus.PAUSED)]
    treasury = Treasury(as_of)
    for one in live:
        treasury.add_sent(one)
    for holding in treasury.holdings():
        totals = holding.as_sender
        assert totals.streamed + totals.remaining == totals.deposited
        assert totals.streams[2:] == [0, 0]


def flow(state: StreamState, as_of: int) -> tuple[int, int | None]:
    totals = Totals()
    totals.add(record(state), as_of)
    return totals.rate, totals.next_depletion


def test_a_rate_counts_from_start_and_cliff_to_depletion_and_a_pause_does_not_stop_it() -> None:
    paused = msgspec.structs.replace(LINEAR, status=StreamStatus.PAUSED)
    for state in (LINEAR, paused):
        assert [flow(state, at) for at in (9, 11, 12, 29, 30, 31)] == [
            (0, 30),
            (0, 30),
            (5, 30),
            (5, 30),
            (0, None),
            (0, None),
        ]


def test_a_stream_that_cannot_use_its_whole_deposit_flows_to_its_end() -> None:
    rich = msgspec.structs.replace(LINEAR, deposit_amount=1000)
    assert [flow(rich, at) for at in (29, 30)] == [(5, 30), (0, None)]


def test_what_is_over_or_has_no_rate_does_not_flow() -> None:
    for changes in ({"status": StreamStatus.COMPLETED}, {"status": StreamStatus.CANCELLED, "cancelled_at": 50}):
        assert flow(msgspec.structs.replace(LINEAR, **changes), 15) == (0, None)
    lump = msgspec.structs.replace(LINEAR, kind=StreamKind.CLIFF_ONLY)
    assert [flow(lump, at) for at in (9, 11, 12)] == [(0, 12), (0, 12), (0, None)]


def test_a_stream_without_an_end_flows_though_it_never_runs_out() -> None:
    totals = Totals()
    totals.add(record(ENDLESS, contract_id=None), 15)
    assert (totals.rate, totals.next_depletion) == (1, None)


def test_a_new_rate_does_not_count_before_its_checkpoint() -> None:
    changed = msgspec.structs.replace(LINEAR, checkpointed_at=20, checkpointed_amount=50, rate_per_second=10)
    assert [flow(changed, at)[0] for at in (15, 19, 20, 24, 25)] == [0, 0, 10, 10, 0]
