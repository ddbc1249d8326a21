"""Traces for OpenTelemetry: what a request, a round of ingest and a webhook spend their time on.

While tracing is off `tracer` is None, every span is `NOTHING`, and OpenTelemetry, which is an extra, is not imported.
What is told is bounded: names of ours, routes, hosts, statuses, kinds of errors. URLs, queries, parameters and messages
of errors are not told, since they may hold secrets.

A span that is entered is the current one of its task, here and beyond the bridge, and its trace id is in each log line
until it is left. So none is held over a `yield`, and no task that outlives it is started in it.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from structlog.contextvars import bind_contextvars, reset_contextvars

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from opentelemetry import trace as otel
    from opentelemetry.context import Context

Kind: TypeAlias = Literal["internal", "server", "client"]
Attributes: TypeAlias = Mapping[str, str | int]
Mark: TypeAlias = "otel.SpanContext"
"""What others need of a span: enough to go on from it, or to point at it."""

APPENDS_KEPT = 256
MAX_PATH = 256
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Span:
    """A span that is not there; `_Live` is one that is. As a context manager it is the current one within the block,
    and ends with it.
    """

    __slots__ = ()

    @property
    def mark(self) -> Mark | None:
        """Itself, for others; None where there is nothing to go on from."""
        return None

    @property
    def trace_id(self) -> str:
        """32 hex digits, or nothing."""
        return ""

    @property
    def traceparent(self) -> str:
        """The header by which another service goes on with the trace, or nothing."""
        return ""

    def note(self, attributes: Attributes) -> None:
        """Tell more of it."""

    def fail(self, kind: str) -> None:
        """It has failed; `kind` is one of few."""

    def end(self, error: BaseException | None = None) -> None:
        """It is over, with `error` if there was one; the first end counts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


NOTHING = Span()


class _Live(Span):
    __slots__ = ("_bound", "_ended", "_otel", "_token", "_tracer")

    def __init__(self, tracer: Tracer, span: otel.Span) -> None:
        self._tracer = tracer
        self._otel = span
        self._ended = False

    @property
    def mark(self) -> Mark | None:
        mark = self._otel.get_span_context()
        return mark if mark.is_valid else None

    @property
    def trace_id(self) -> str:
        mark = self.mark
        return "" if mark is None else f"{mark.trace_id:032x}"

    @property
    def traceparent(self) -> str:
        mark = self.mark
        return "" if mark is None else f"00-{mark.trace_id:032x}-{mark.span_id:016x}-{mark.trace_flags:02x}"

    def note(self, attributes: Attributes) -> None:
        self._otel.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        self._otel.set_attribute("error.type", kind)
        self._otel.set_status(self._tracer.trace.StatusCode.ERROR)

    def end(self, error: BaseException | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self.fail(kind_of(error))
        self._otel.end()

    @contextmanager
    def current(self) -> Iterator[None]:
        """The current one within the block, which does not end it."""
        tracer = self._tracer
        token = tracer.context.attach(tracer.trace.set_span_in_context(self._otel))
        try:
            yield
        finally:
            tracer.context.detach(token)

    def __enter__(self) -> Self:
        tracer = self._tracer
        self._token = tracer.context.attach(tracer.trace.set_span_in_context(self._otel))
        self._bound = bind_contextvars(trace_id=self.trace_id) if self.mark is not None else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        reset_contextvars(**self._bound)
        self._tracer.context.detach(self._token)
        self.end(error)


def kind_of(error: BaseException) -> str:
    """One of few: the kind that the error itself tells, else the name of its class."""
    for name in ("failure", "fault"):  # those of the ledger's side, and of HTTP
        kind = getattr(error, name, None)
        if isinstance(kind, str):
            return str(kind)
    return type(error).__name__


class Tracer:
    """Makes spans. It holds the parts of OpenTelemetry that they take, so that nothing is looked up for each."""

    def __init__(self, provider: otel.TracerProvider, version: str) -> None:
        self.trace: Any = importlib.import_module("opentelemetry.trace")
        self.context: Any = importlib.import_module("opentelemetry.context")
        w3c: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._w3c = w3c.TraceContextTextMapPropagator()
        self._kinds = {kind: self.trace.SpanKind[kind.upper()] for kind in ("internal", "server", "client")}
        self._tracer = provider.get_tracer("fluxora", version)
        self._appends: deque[tuple[int, int, Mark]] = deque(maxlen=APPENDS_KEPT)

    def begin(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        context: Context | None = None,
        links: Sequence[Mark] = (),
        began_ns: int | None = None,
    ) -> _Live:
        """A span that begins now, or began at `began_ns` (Unix), below the current one or that of `context`."""
        span = self._tracer.start_span(
            name,
            context,
            self._kinds[kind],
            attributes,
            [self.trace.Link(mark) for mark in links],
            began_ns,
            record_exception=False,  # messages may hold anything
            set_status_on_exception=False,
        )
        return _Live(self, span)

    def request(
        self, method: str, route: str | None, path: str, headers: Sequence[tuple[str, str]], *, age_s: float
    ) -> _Live:
        """The span of a request that came `age_s` ago; `route` is the pattern that it matched.

        It goes on with what the server that hosts us has begun for it, else with what its `traceparent` names.
        """
        known = method in _METHODS
        attributes = {"http.request.method": method if known else "_OTHER", "url.path": path[:MAX_PATH]}
        if route is not None:
            attributes["http.route"] = route
        name = method if known else "HTTP"
        return self.begin(
            name if route is None else f"{name} {route}",
            kind="server",
            attributes=attributes,
            context=None if self.here() is not None else self._named(headers),
            began_ns=time.time_ns() - round(age_s * 1e9),
        )

    def _named(self, headers: Sequence[tuple[str, str]]) -> Context | None:
        """What the caller goes on from, by W3C Trace Context; None where it says nothing or more than one thing."""
        parents = [value for name, value in headers if name == "traceparent"]
        if len(parents) != 1:
            return None
        states = [value for name, value in headers if name == "tracestate"]
        context: Context = self._w3c.extract(
            {"traceparent": parents, "tracestate": states} if states else {"traceparent": parents}
        )
        return context

    def caused(self, name: str, causes: Sequence[Mark | None], attributes: Attributes) -> _Live:
        """The span of what is done for several at once: below one of them, with links to the others."""
        marks = list({mark.span_id: mark for mark in causes if mark is not None}.values())
        if not marks:
            return self.begin(name, attributes=attributes)
        parent = next((mark for mark in marks if mark.trace_flags.sampled), marks[0])
        return self.begin(
            name,
            attributes=attributes,
            context=self.trace.set_span_in_context(self.trace.NonRecordingSpan(parent), self.context.Context()),
            links=[mark for mark in marks if mark is not parent],
        )

    def here(self) -> Mark | None:
        """The current span of this task, None where there is none."""
        mark: Mark = self.trace.get_current_span().get_span_context()
        return mark if mark.is_valid else None

    def remember_append(self, first: int, last: int, mark: Mark) -> None:
        """The positions `first` to `last` were appended in this span."""
        self._appends.append((first, last, mark))

    def append_of(self, position: int) -> Mark | None:
        """The span in which this process appended a position lately; None where it is not known."""
        return next((mark for first, last, mark in reversed(self._appends) if first <= position <= last), None)


tracer: Tracer | None = None
"""None while tracing is off."""


def span(name: str, *, kind: Kind = "internal", attributes: Attributes | None = None) -> Span:
    """A span that begins now, below the current one."""
    return NOTHING if tracer is None else tracer.begin(name, kind=kind, attributes=attributes)


def caused(name: str, causes: Sequence[Mark | None], attributes: Attributes) -> Span:
    """A span for what several have asked for, who said where by `here`."""
    return NOTHING if tracer is None else tracer.caused(name, causes, attributes)


def database(operation: str | None, *, begins: bool = True) -> Span:
    """The span of a unit of work; nothing where it has no name, or is in no trace and `begins` none."""
    if tracer is None or operation is None or not (begins or tracer.here()):
        return NOTHING
    attributes = {"db.system.name": "postgresql", "db.operation.name": operation}
    return tracer.begin(operation, kind="client", attributes=attributes)


def attempt(endpoint_id: str, event: str, position: int | None = None, *, made: int = 0) -> Span:
    """The span of an attempt to deliver an event, after `made` others; it links to the append, where that is known.

    An event without a position stands for nothing.
    """
    if tracer is None:
        return NOTHING
    append = None if position is None else tracer.append_of(position)
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.request.resend_count": made,
        "fluxora.webhook.endpoint": endpoint_id,
        "fluxora.event.name": event,
    }
    if position is not None:
        attributes["fluxora.event.position"] = position
    links = () if append is None else (append,)
    return tracer.begin("dispatcher.attempt", kind="client", attributes=attributes, links=links)


def here() -> Mark | None:
    """The current span, for whoever does the rest in another task; None where there is none."""
    return None if tracer is None else tracer.here()


def appended(first: int, last: int, within: Span) -> None:
    """The log's positions `first` to `last` were appended in a span; deliveries of them will link to it."""
    if tracer is not None and within.mark is not None:
        tracer.remember_append(first, last, within.mark)


async def carried(chunks: AsyncGenerator[bytes, None], of: Span) -> AsyncGenerator[bytes, None]:
    """The chunks, each of them made as a part of the span's trace, though the span is over by then."""
    assert isinstance(of, _Live)
    async with aclosing(chunks):
        while True:
            with of.current():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk


@contextmanager
def apart() -> Iterator[None]:
    """Tasks that are started within the block are in no span, whatever their starter is in."""
    if tracer is None:
        yield
        return
    context = tracer.context
    token = context.attach(context.Context())
    try:
        yield
    finally:
        context.detach(token)


def use(chosen: Tracer | None) -> None:
    """Make spans with this one from now on; None turns tracing off."""
    global tracer  # noqa: PLW0603 (one for the process, so that there is one thing to look at where it is off)
    tracer = chosen
