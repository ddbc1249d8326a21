"""What an attempt's end means for its delivery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.actors.deliveries import LATENCY_BOUNDS_S, Tally, result_of
from fluxora.actors.webhook_sender import Sent
from fluxora.protocol.messages import LogEvent
from fluxora.storage.webhook_records import Due

EVENT = LogEvent(7, "1-7", "stream.updated", "paused", "stream-7", None, None, None, 0, b"{}")
SCHEDULE_S = (5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)  # as the contract has it


def due(attempts: int = 0) -> Due:
    return Due(
        endpoint_id="we_1",
        endpoint_created_ms=1,
        url="https://a.test/",
        event=EVENT,
        attempts=attempts,
        secrets=(),
        ordered=False,
    )


@pytest.mark.parametrize(
    ("sent", "outcome", "delay_ms"),
    [
        (Sent(200, None, 1), "delivered", 0),
        (Sent(299, None, 1), "delivered", 0),
        (Sent(200, "the answer broke off", 1), "retry", 5_000),
        (Sent(410, None, 1), "gone", 0),
        (Sent(410, "the answer broke off", 1), "retry", 5_000),
        (Sent(None, "cannot connect", 1), "retry", 5_000),
        (Sent(302, None, 1), "retry", 5_000),
        (Sent(404, None, 1), "retry", 5_000),
        (Sent(503, None, 1, "", 60_000), "retry", 60_000),
        (Sent(429, None, 1, "", 10), "retry", 5_000),
        (Sent(None, "its body is too long", 0, hopeless=True), "dead", 0),
    ],
)
def test_first_attempts(sent: Sent, outcome: str, delay_ms: int) -> None:
    result = result_of(due(), sent, 0.5)
    assert (result.outcome, result.delay_ms) == (outcome, delay_ms)
    assert (result.endpoint_id, result.position, result.status, result.error) == ("we_1", 7, sent.status, sent.error)


@given(st.integers(0, 11), st.floats(0, 1, exclude_max=True), st.none() | st.integers(0, 86_400_000))
def test_each_failure_waits_for_its_time_and_only_the_twelfth_is_the_last(
    attempts: int, draw: float, asked_ms: int | None
) -> None:
    result = result_of(due(attempts), Sent(503, None, 1, "", asked_ms), draw)
    assert (result.outcome == "dead") == (attempts == 11)
    if attempts < 11:
        own_ms = SCHEDULE_S[attempts] * 1000
        assert result.delay_ms >= (asked_ms or 0)
        assert result.delay_ms <= max(own_ms * 1.2, asked_ms or 0)
        assert result.delay_ms >= own_ms * 0.8


@given(st.lists(st.integers(0, 30_000), min_size=1))
def test_the_counts_are_of_all_attempts_and_each_in_its_place(latencies_ms: list[int]) -> None:
    tally = Tally()
    for latency_ms in latencies_ms:
        tally.count(result_of(due(), Sent(500, None, latency_ms), 0.5))
    assert tally.attempts["retry"] == len(latencies_ms) == sum(tally.latencies.counts)
    for number, bound in enumerate(LATENCY_BOUNDS_S, 1):
        assert sum(tally.latencies.counts[:number]) == sum(latency / 1000 <= bound for latency in latencies_ms)
    assert tally.latencies.total == pytest.approx(sum(latencies_ms) / 1000)
