"""Every way an endpoint fails, through a real socket: name, Retry-After, retries, rotation, status."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
import trio
from scripted_node import CONTRACT, PASSPHRASE, Answer, History, event, event_id, running

from fluxora.actors.sources.failures import Failure, out_of_range, parse_retry_after
from fluxora.actors.sources.rotation import RetryPolicy
from fluxora.errors import ChainDiverged, SourceUnavailable
from fluxora.localnet import open_localnet

HTML = b"<html><head><title>Oops</title></head><body>nope</body></html>"
ONCE = RetryPolicy(attempts=1, base_s=0.001, cap_s=0.001, budget_s=5.0)


def rpc_error(code, message, **more):
    return Answer(error={"code": code, "message": message, **more})


CLASSES = [
    (Answer(status=429, body=b'{"error":"Too Many Requests"}'), "throttled"),
    (Answer(status=429, body=HTML), "throttled"),
    (Answer(status=429, body=b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}'), "throttled"),
    (rpc_error(-32005, "daily request count exceeded"), "throttled"),
    (rpc_error(-32000, "Rate limit exceeded"), "throttled"),
    (Answer(body=b'{"error":"rate limit reached, slow down"}'), "throttled"),
    (Answer(status=503, body=b""), "overloaded"),
    (rpc_error(-32603, "rpc queue for getHealth surpassed queue limit of 1000 requests"), "overloaded"),
    (Answer(status=504, body=b""), "node_timeout"),
    (rpc_error(-32001, "request exceeded processing limit threshold"), "node_timeout"),
    (rpc_error(-32602, "bad", data={"reason": "invalid_params", "field": {"deep": [1]}}), "rpc_error"),
    (rpc_error(-32601, "method not found"), "rpc_error"),
    (Answer(status=400, body=b'{"jsonrpc":"2.0","error":{"code":-32602,"message":"no"}}'), "rpc_error"),
    (rpc_error(-32603, "latency (45s) since last known ledger closed is too high (>30s)"), "node_unhealthy"),
    (Answer(status=401, body=b"{}"), "unauthorized"),
    (Answer(status=403, body=HTML), "unauthorized"),
    (Answer(status=302, headers=[("Location", "http://127.0.0.1:1/")], body=b""), "http_error"),
    (Answer(status=500, body=HTML), "http_error"),
    (Answer(status=502, body=b""), "http_error"),
    (Answer(body=HTML), "malformed_response"),
    (Answer(body=b""), "malformed_response"),
    (Answer(body=b"\xff\xfe{"), "malformed_response"),
    (Answer(body=b"[]"), "malformed_response"),
    (Answer(body=b"{}"), "malformed_response"),
    (Answer(body=b'{"jsonrpc":"2.0","id":1,"result":null}'), "malformed_response"),
    (Answer(body=b'{"jsonrpc":"2.0","id":1,"result":{"status":"healthy"}}'), "malformed_response"),
    (Answer(body=b'{"jsonrpc":"2.0","id":1,"error":"what"}'), "malformed_response"),
    (Answer(body=b'{"jsonrpc":"2.0","id":99,"result":{"latestLedger":9,"oldestLedger":1}}'), "malformed_response"),
    (Answer(result={}, headers=[("X" * 20000, "1")]), "malformed_response"),
    (Answer(result={"latestLedger": 9, "oldestLedger": 1}, cut=20), "truncated_body"),
    (Answer(drop=True), "connection_dropped"),
    (Answer(body=b" " * 70_000), "response_too_large"),
]


def ended(source, method):
    """How the calls of a method ended, by outcome."""
    return {outcome: count for (name, outcome), count in source.status.calls.ended.items() if name == method}


@pytest.mark.parametrize(("answer", "failure"), CLASSES, ids=lambda value: value if isinstance(value, str) else "")
async def test_failure_has_its_name(make_source, answer, failure):
    history = History()
    history.faults["getHealth"] = answer
    async with running(history) as [node]:
        source = make_source(node, policy=ONCE, max_reply_bytes=60_000)
        with pytest.raises(SourceUnavailable) as caught:
            await source.tip()
        assert caught.value.failure == failure
        assert source.status.state == "failing"
        assert source.status.failure == failure
        assert source.status.failures == {failure: 1}
        assert ended(source, "getHealth") == {failure: 1}
        history.faults.clear()
        assert (await source.tip()).latest == 100
        assert ended(source, "getHealth") == {failure: 1, "ok": 1}
        calls = source.status.calls
        assert sum(calls.durations["getHealth"].counts) == 1, "of what brought an answer"
        sent_again = failure == "connection_dropped"  # as its connection had been kept
        assert calls.ended.total() == len(node.requests) - sent_again, "each was counted"
        assert (source.status.state, source.status.failure, source.status.message) == ("ok", None, "")
        assert source.status.failures == {failure: 1}
        assert source.status.last_success_at is not None


async def test_slow_node_is_a_timeout(make_source):
    history = History()
    history.faults["getHealth"] = Answer(hang=True)
    async with running(history) as [node]:
        source = make_source(node, policy=ONCE, request_timeout_s=0.1)
        with pytest.raises(SourceUnavailable) as caught:
            await source.tip()
    assert caught.value.failure == "timeout"


async def test_nobody_listening_is_unreachable(make_source):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    source = make_source(urls=[f"http://user:secret@127.0.0.1:{port}/v1/apikey?token=hidden"], policy=ONCE)
    with pytest.raises(SourceUnavailable) as caught:
        await source.tip()
    assert caught.value.failure == "unreachable"
    assert source.status.endpoint == f"127.0.0.1:{port}"
    for secret in ("secret", "apikey", "hidden"):
        assert secret not in str(caught.value) + source.status.message + source.status.endpoint


async def test_every_class_has_a_treatment():
    from fluxora.actors.sources.failures import BY_FAULT, TREATMENTS, Fault

    assert set(TREATMENTS) == set(Failure)
    assert set(BY_FAULT) == set(Fault)


# Retries and Retry-After


@pytest.mark.parametrize("fault", [Answer(status=429, body=HTML), Answer(drop=True), Answer(status=503, body=b"")])
async def test_passing_failure_is_retried_within_the_call(make_source, fault):
    history = History([event(5)])
    history.faults["getEvents", 1] = fault
    async with running(history) as [node]:
        source = make_source(node)
        async with aclosing(source.events(1, 10)) as pages:
            [page] = [page async for page in pages]
        assert [e.id for e in page.events] == [event_id(5)]
        assert source.status.state == "ok"


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_for(make_source, form):
    history = History()
    asked_at = []

    def throttle():
        asked_at.append(trio.current_time())
        after = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return Answer(status=429, headers=[("Retry-After", after)], body=HTML)

    history.faults["getHealth", 1] = throttle
    async with running(history) as [node]:
        await make_source(node).tip()
        assert trio.current_time() - asked_at[0] >= 0.99


async def test_long_retry_after_is_told_and_kept(make_source):
    history = History()
    history.faults["getHealth"] = Answer(status=429, headers=[("Retry-After", "120")], body=b"")
    async with running(history) as [node]:
        source = make_source(node)
        with pytest.raises(SourceUnavailable) as caught:
            await source.tip()
        assert (caught.value.failure, caught.value.retry_after_s) == ("throttled", 120)
        with pytest.raises(SourceUnavailable) as again:
            await source.tip()
        assert again.value.failure == "throttled"
        assert 119 < again.value.retry_after_s <= 120
        assert len(node.asked("getHealth")) == 1  # not asked before its time


async def test_backoff_doubles_up_to_its_cap_with_jitter_in_the_upper_half(make_source, autojump_clock):
    """No socket: the endpoint is unreachable at once, so trio's clock jumps over the waits."""
    policy = RetryPolicy(attempts=6, base_s=1.0, cap_s=4.0, budget_s=100.0)
    source = make_source(urls=["http://127.0.0.1:1"], policy=policy)
    waits = []
    started = trio.current_time()

    async def fail(_endpoint):
        waits.append(trio.current_time() - started)
        raise SourceUnavailable(Failure.OVERLOADED, "busy")

    async def fine(_endpoint):
        pass

    source._rotation._verify = fine
    with pytest.raises(SourceUnavailable):
        await source._rotation.run("tip", fail)
    steps = [later - earlier for earlier, later in pairwise(waits)]
    assert steps == pytest.approx([0.75, 1.5, 3.0, 3.0, 3.0])  # jitter of the fixture: one half


async def test_no_attempt_starts_after_the_budget(make_source, autojump_clock):
    policy = RetryPolicy(attempts=100, base_s=4.0, cap_s=4.0, budget_s=10.0)
    source = make_source(urls=["http://127.0.0.1:1"], policy=policy)
    attempts = []

    async def fail(_endpoint):
        attempts.append(trio.current_time())
        raise SourceUnavailable(Failure.OVERLOADED, "busy")

    async def fine(_endpoint):
        pass

    source._rotation._verify = fine
    with pytest.raises(SourceUnavailable) as caught:
        await source._rotation.run("tip", fail)
    assert len(attempts) == 4
    assert caught.value.retry_after_s == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("7", 7.0), (" 0 ", 0.0), ("-3", None), ("soon", None), ("1.5", None), ("", None)],
)
def test_retry_after_text(text, seconds):
    assert parse_retry_after(text) == seconds


def test_retry_after_dates():
    now = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
    assert parse_retry_after("Sun, 22 Nov 2026 10:01:30 GMT", now=now) == 90
    assert parse_retry_after("Sun, 22 Nov 2026 09:00:00 GMT", now=now) == 0


# Rotation


async def test_failed_endpoint_is_rotated_away_from_and_left_alone(make_source):
    first, second = History(), History()
    first.faults["getHealth"] = Answer(status=503, body=b"")
    async with running(first, second) as [one, two]:
        source = make_source(one, two)
        for _ in range(3):
            await source.tip()
        assert len(one.asked("getHealth")) == 1
        assert len(two.asked("getHealth")) == 3
        assert source.status.endpoint == two.url.removeprefix("http://")
        assert source.status.failures == {"overloaded": 1}


async def test_endpoint_that_cools_down_is_passed_over_for_one_that_does_not(make_source, autojump_clock):
    """No socket: cooldowns are of the clock alone."""
    source = make_source(urls=[f"http://{name}:1" for name in "abc"])
    failing = {}
    asked = []

    async def attempt(endpoint):
        asked.append(endpoint.name[0])
        if endpoint.name[0] in failing:
            raise SourceUnavailable(failing[endpoint.name[0]], "no")

    async def fine(_endpoint):
        pass

    source._rotation._verify = fine

    async def run(**now_failing):
        failing.clear()
        failing.update(now_failing)
        asked.clear()
        await source._rotation.run("tip", attempt)
        return "".join(asked)

    dropped, unhealthy = Failure.CONNECTION_DROPPED, Failure.NODE_UNHEALTHY
    assert await run(a=dropped, b=unhealthy) == "abc"  # a cools down for 5 s, b for 15 s
    await trio.sleep(6)
    assert await run(c=dropped) == "ca"
    await trio.sleep(6)
    assert await run(a=dropped) == "ac"  # and not b, which is the next in the ring


async def test_network_is_asked_for_at_the_start_and_on_each_switch(make_source):
    first, second = History(), History()
    async with running(first, second) as [one, two]:
        source = make_source(one, two)
        await source.tip()
        await source.tip()
        assert (len(one.asked("getNetwork")), len(two.asked("getNetwork"))) == (1, 0)
        first.faults["getHealth"] = Answer(status=503, body=b"")
        await source.tip()
        assert len(two.asked("getNetwork")) == 1
        first.faults.clear()
        second.faults["getHealth"] = Answer(status=503, body=b"")
        await source.tip()
        assert len(one.asked("getNetwork")) == 2


async def test_network_is_asked_for_again_after_a_lost_connection(make_source):
    history = History()
    async with running(history) as [node]:
        source = make_source(node)
        await source.tip()
        history.faults["getHealth", 2] = Answer(drop=True)
        history.faults["getHealth", 3] = Answer(drop=True)
        history.passphrase = "Another Network"
        with pytest.raises(ChainDiverged):
            await source.tip()


async def test_wrong_passphrase_everywhere_is_chain_diverged(make_source):
    history = History()
    history.passphrase = "Public Global Stellar Network ; September 2015"
    async with running(history) as [node]:
        source = make_source(node)
        with pytest.raises(ChainDiverged) as caught:
            await source.tip()
        assert caught.value.failure == "wrong_network"
        assert "Public Global" in str(caught.value)
        assert (source.status.state, source.status.failure) == ("stalled", "wrong_network")
        assert node.asked("getHealth") == []


async def test_endpoint_of_another_network_is_never_used(make_source):
    first, second = History([event(5, contractId="wrong")]), History()
    first.passphrase = "Public Global Stellar Network ; September 2015"
    async with running(first, second) as [one, two]:
        source = make_source(one, two)
        assert (await source.tip()).latest == 100
        assert one.asked("getHealth") == []
        second.faults["getHealth"] = Answer(status=503, body=b"")
        with pytest.raises(SourceUnavailable) as caught:  # the curable one is what counts
            await source.tip()
        assert caught.value.failure == "overloaded"


async def test_old_node_is_only_warned_of(make_source):
    history = History()
    history.version = "v27.1.0-abcdef"
    async with running(history) as [node]:
        source = make_source(node)
        assert (await source.tip()).latest == 100
        assert source.status.failures == {"old_node": 1}
        assert source.status.state == "ok"


@pytest.mark.parametrize("version", ["27.1.1", "28.0.0-rc1", "v30.2.11", "unknown", ""])
async def test_new_or_nameless_node_is_not_warned_of(make_source, version):
    history = History()
    history.version = version
    async with running(history) as [node]:
        source = make_source(node)
        await source.tip()
        assert source.status.failures == {}


async def test_node_without_version_info_is_used(make_source):
    history = History()
    history.faults["getVersionInfo"] = rpc_error(-32601, "method not found")
    async with running(history) as [node]:
        assert (await make_source(node).tip()).latest == 100


# The tip


async def test_tip_tells_close_time_where_the_node_does(make_source):
    history = History(oldest=3, latest=9)
    async with running(history) as [node]:
        tip = await make_source(node).tip()
        assert (tip.oldest, tip.latest, tip.closed_at) == (3, 9, 1795341605)
        history.getHealth = lambda _params: {"status": "healthy", "latestLedger": 9, "oldestLedger": 3}
        assert (await make_source(node).tip()).closed_at is None


async def test_node_that_goes_back_is_named_and_its_tip_told(make_source):
    history = History(latest=100)
    async with running(history) as [node]:
        source = make_source(node)
        await source.tip()
        history.latest = 95
        assert (await source.tip()).latest == 95
        assert (source.status.state, source.status.failure) == ("failing", "node_behind")
        history.latest = 101
        assert (await source.tip()).latest == 101
        assert source.status.state == "ok"


async def test_node_that_goes_back_is_rotated_away_from(make_source):
    first, second = History(latest=100), History(latest=101)
    async with running(first, second) as [one, two]:
        source = make_source(one, two)
        await source.tip()
        first.latest = 90
        assert (await source.tip()).latest == 101
        assert source.status.endpoint == two.url.removeprefix("http://")
        assert (source.status.state, source.status.failures) == ("ok", {"node_behind": 1})


async def test_ledger_or_two_behind_is_propagation(make_source):
    history = History(latest=100)
    async with running(history) as [node]:
        source = make_source(node)
        await source.tip()
        history.latest = 98
        assert (await source.tip()).latest == 98
        assert source.status.failures == {}


async def test_every_node_far_below_is_a_reset_told_once(make_source):
    first, second = History(latest=5000), History(latest=5000)
    async with running(first, second) as [one, two]:
        source = make_source(one, two)
        await source.tip()
        first.latest = second.latest = 12
        assert (await source.tip()).latest == 12
        assert source.status.failure == "network_reset"
        first.latest = second.latest = 13
        assert (await source.tip()).latest == 13
        assert (source.status.state, source.status.failures) == ("ok", {"network_reset": 2})


def test_range_error_is_told_apart_by_its_numbers():
    def judge(requested, oldest, latest, highest):
        error = out_of_range(requested, oldest, latest, highest=highest)
        return error.failure, error.meaning, error.retryable

    assert judge(5, 10, 20, 20) == ("history_pruned", "pruned", False)
    assert judge(21, 10, 20, 20) == ("node_behind", "future", True)
    assert judge(21, 10, 20, 0) == ("node_behind", "future", True)
    assert judge(50, 10, 20, 50) == ("node_behind", "lagging", True)
    assert judge(51, 10, 20, 51) == ("network_reset", "reset", True)
    assert judge(51, 10, 20, 0) == ("network_reset", "reset", True)


async def test_calls_that_are_under_way_together_do_not_mix_up_their_answers(make_source):
    async with open_localnet(seed=3, passphrase=PASSPHRASE) as net:
        await net.close_ledgers(5)
        source = make_source(urls=[net.url])
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(source.tip)
                nursery.start_soon(source.headers, 3, 6)
                nursery.start_soon(source.entries, [(CONTRACT, 1)])
        assert source.status.failures == {}
