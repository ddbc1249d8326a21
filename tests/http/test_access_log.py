"""Which requests get a log line, and that a sample is as large as it was asked to be."""

from __future__ import annotations

from itertools import cycle
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fluxora.config import HttpConfig
from fluxora.errors import ConfigError
from fluxora.http.access_log import SLOW_S, AccessLog

QUICK_S = 0.001


def written(log: AccessLog, status: int, seconds: float = QUICK_S) -> bool:
    with capture_logs() as lines:
        log.served("GET", "/health", status, seconds, "id")
    return bool(lines)


@given(status=st.integers(200, 599), seconds=st.floats(0, 60), draw=st.floats(0, 1, exclude_max=True))
def test_without_a_sample_every_request_has_its_line(status: int, seconds: float, draw: float) -> None:
    assert written(AccessLog(draw=lambda: draw), status, seconds)


@given(status=st.integers(400, 599).filter(lambda status: status != 404), seconds=st.floats(0, 60))
def test_a_failure_always_has_its_line(status: int, seconds: float) -> None:
    assert written(AccessLog(0.0), status, seconds)


@given(status=st.sampled_from((101, 200, 201, 304, 404)), seconds=st.floats(SLOW_S, 60))
def test_what_took_long_always_has_its_line(status: int, seconds: float) -> None:
    assert written(AccessLog(0.0), status, seconds)


@given(
    status=st.sampled_from((101, 200, 201, 304, 404)),
    seconds=st.floats(0, SLOW_S, exclude_max=True),
    sample=st.floats(0, 1, exclude_max=True),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_all_else_is_left_to_chance(status: int, seconds: float, sample: float, draw: float) -> None:
    assert written(AccessLog(sample, draw=lambda: draw), status, seconds) == (draw < sample)


def test_the_sample_is_the_part_that_was_asked_for() -> None:
    log = AccessLog(0.1, draw=Random(7).random)
    with capture_logs() as lines:
        for _, status in zip(range(10_000), cycle((200, 404)), strict=False):
            log.served("GET", "/health", status, QUICK_S, "id")
    assert 900 < len(lines) < 1100


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_sample_is_a_part(sample: float) -> None:
    with pytest.raises(ConfigError, match="FLUXORA_ACCESS_LOG_SAMPLE: a number from 0 to 1 is needed"):
        HttpConfig(access_log_sample=sample)


async def test_a_server_writes_the_sample_that_it_was_told(start) -> None:
    server = await start(access_log_sample=0.0)
    with capture_logs() as lines:
        for path in ("/health/live", "/nowhere", "/api/streams?limit=0"):
            await server.get(path)
    assert [line["status"] for line in lines if line["event"] == "http.request_served"] == [400]
