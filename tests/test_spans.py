"""Spans as the program makes them, told to an exporter in memory: whose child each is, and what it says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
import structlog
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from structlog.testing import LogCapture

from fluxora import logs, tracing
from fluxora.actors.http_client import ExchangeFailed, Fault
from fluxora.errors import SourceUnavailable, StorageUnavailable
from fluxora.storage.bridge import open_bridge


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Tracing is on for the test, and these are its spans."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(tracing.Tracer(provider, "1"))
    yield kept
    tracing.use(None)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """Log lines with what was bound to them."""
    capture = LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.reset_defaults()


def of(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in kept.get_finished_spans()}


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_a_span_and_its_trace_cross_the_bridge_and_end_there(
    spans: InMemorySpanExporter, lines: list[Any]
) -> None:
    log = logs.get("test")

    async def work(name: str) -> str:
        assert threading.current_thread().name == "fluxora-storage"
        await asyncio.sleep(0)
        with trace.get_tracer("driver").start_as_current_span("ignored"):  # of no provider: it changes nothing
            log.info(name)
        return name

    async with open_bridge() as bridge, trio.open_nursery() as nursery:

        async def ask(name: str) -> None:
            with tracing.span(f"ask {name}"):
                assert await bridge.run(work, name, operation=f"work {name}") == name
            log.info("over")

        for name in "abc":
            nursery.start_soon(ask, name)
    found = of(spans)
    by_event = {line["event"]: line.get("trace_id") for line in lines}
    for name in "abc":
        inner, outer = found[f"work {name}"], found[f"ask {name}"]
        assert parent(inner) == outer.context.span_id
        assert by_event[name] == f"{outer.context.trace_id:032x}"
    assert by_event["over"] is None
    assert len({span.context.trace_id for span in found.values()}) == 3


async def test_what_runs_there_is_below_the_unit_of_work(spans: InMemorySpanExporter) -> None:
    async def work() -> int:
        return trace.get_current_span().get_span_context().span_id

    async with open_bridge() as bridge:
        inside = await bridge.run(work, operation="work")
        assert inside == of(spans)["work"].context.span_id
        assert await bridge.run(work) == 0


async def test_a_failure_is_told_by_its_kind_and_never_by_its_words(spans: InMemorySpanExporter) -> None:
    async def work() -> None:
        raise StorageUnavailable("Key (secret)=(hunter22)")

    async def hang() -> None:
        await asyncio.Event().wait()

    async with open_bridge() as bridge:
        with pytest.raises(StorageUnavailable):
            await bridge.run(work, operation="fails")
        with trio.move_on_after(0):
            await bridge.run(hang, operation="is cut short")
    found = of(spans)
    assert {name: span.attributes["error.type"] for name, span in found.items()} == {
        "fails": "StorageUnavailable",
        "is cut short": "Cancelled",
    }
    assert "hunter22" not in "".join(span.to_json() for span in found.values())
    assert not [span for span in found.values() if span.events or span.status.description]


def test_kinds_are_those_that_the_error_tells() -> None:
    assert tracing.kind_of(SourceUnavailable("throttled", "hunter22")) == "throttled"
    assert tracing.kind_of(ExchangeFailed(Fault.TLS, "hunter22")) == "tls"
    assert tracing.kind_of(KeyError("hunter22")) == "KeyError"


def test_a_heartbeat_is_told_within_a_trace_only(spans: InMemorySpanExporter) -> None:
    with tracing.database("beat", begins=False):
        pass
    assert not of(spans)
    with tracing.span("asked"), tracing.database("beat", begins=False):
        pass
    assert parent(of(spans)["beat"]) == of(spans)["asked"].context.span_id


def test_what_several_asked_for_is_below_one_and_points_at_the_others(spans: InMemorySpanExporter) -> None:
    marks = []
    for number in range(3):
        with tracing.span(f"asked {number}"):
            marks.append(tracing.here())
    with tracing.caused("done", [None, *marks, marks[1], None], {"fluxora.commands": 3}):
        pass
    with tracing.caused("nobody's", [None], {}):
        pass
    done = of(spans)["done"]
    assert parent(done) == marks[0].span_id
    assert [link.context for link in done.links] == marks[1:]
    assert (parent(of(spans)["nobody's"]), of(spans)["nobody's"].links) == (None, ())


def test_one_who_is_not_sampled_does_not_hide_what_others_asked_for() -> None:
    kept, provider = InMemorySpanExporter(), TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = tracing.Tracer(provider, "1")
    wanted = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    marks = [tracer.request("GET", "/", "/", headers, age_s=0).mark for headers in ((), (wanted,))]
    tracer.caused("done", marks, {}).end()
    (done,) = kept.get_finished_spans()
    assert parent(done) == marks[1].span_id


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01")],
        [("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
        [("traceparent", "hunter22" * 10_000)],
        [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")] * 2,
        [("tracestate", "a=b")],
    ],
)
def test_a_caller_who_names_no_trace_begins_one(spans: InMemorySpanExporter, headers: list[tuple[str, str]]) -> None:
    tracing.tracer.request("BREW", None, "/" + "x" * 5_000, headers, age_s=1).end()
    (span,) = spans.get_finished_spans()
    assert (span.name, parent(span), span.attributes["http.request.method"]) == ("HTTP", None, "_OTHER")
    assert len(span.attributes["url.path"]) == tracing.MAX_PATH
    assert span.end_time - span.start_time >= 1_000_000_000


async def test_a_body_is_made_as_a_part_of_its_request(spans: InMemorySpanExporter) -> None:
    closed = []

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            for piece in (b"1", b"2", b"3"):
                tracing.span(f"reads {piece.decode()}").end()
                yield piece
        finally:
            closed.append(True)

    with tracing.span("request") as request:
        pass
    got = []
    chunks = tracing.carried(body(), request)
    async for piece in chunks:
        assert tracing.here() is None, "who sends it is in no span"
        got.append(piece)
        if piece == b"2":
            await chunks.aclose()
    assert (got, closed) == ([b"1", b"2"], [True])
    found = of(spans)
    assert {parent(found[f"reads {number}"]) for number in (1, 2)} == {found["request"].context.span_id}


def test_appends_are_remembered_by_position_and_not_for_ever(spans: InMemorySpanExporter) -> None:
    marks = {}
    for number in range(tracing.APPENDS_KEPT + 1):
        with tracing.span("append") as span:
            first = 1 + 10 * number
            tracing.appended(first, first + 9, span)
            marks[first] = span.mark
    last = 1 + 10 * tracing.APPENDS_KEPT
    assert [tracing.tracer.append_of(at) for at in (10, 11, 20, last + 9, last + 10)] == [
        *(None, marks[11], marks[11]),
        *(marks[last], None),
    ]


def test_nothing_happens_while_it_is_off() -> None:
    with tracing.span("a") as one, tracing.database("b") as two, tracing.caused("c", [None], {}) as three:
        assert one is two is three is tracing.attempt("default", "stream.created", 1) is tracing.NOTHING
        one.note({"a": 1})
        one.fail("b")
        one.end()
    with tracing.apart():
        tracing.appended(1, 2, one)
    assert (tracing.here(), one.mark, one.trace_id, one.traceparent) == (None, None, "", "")
