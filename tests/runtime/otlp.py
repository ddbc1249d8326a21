"""A collector of OpenTelemetry, as far as tests need one: it takes traces by OTLP over HTTP, or hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Told:
    """A span as it came; ids are hex digits, `parent` is "" for a root, `links` are (trace, span)."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    status: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    start_ns: int
    end_ns: int
    resource: dict[str, Any]
    texts: tuple[str, ...]  # what only prose can be: the status's message, and events


class Collector:
    """`bodies` are what came, `hold` lets requests hang while it is not set."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: list[bytes] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.asked = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    @property
    def spans(self) -> list[Told]:
        return [span for body in tuple(self.bodies) for span in _spans(body)]

    def named(self, name: str, trace: str | None = None) -> list[Told]:
        return [span for span in self.spans if span.name == name and trace in {None, span.trace}]

    def of(self, trace: str) -> dict[str, Told]:
        """The spans of a trace by their ids."""
        return {span.id: span for span in self.spans if span.trace == trace}


@contextmanager
def open_collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.asked.set()
            collector.hold.wait()
            collector.heads.append((self.path, dict(self.headers)))
            collector.bodies.append(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.hold.set()
            server.shutdown()
            thread.join()


def _spans(body: bytes) -> Iterator[Told]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            assert scope.scope.name == "fluxora"
            for span in scope.spans:
                yield Told(
                    name=span.name,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    status={0: "unset", 1: "ok", 2: "error"}[span.status.code],
                    attributes=_attributes(span.attributes),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    resource=resource,
                    texts=(*([span.status.message] if span.status.message else []), *(str(one) for one in span.events)),
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        kind = pair.value.WhichOneof("value")
        return getattr(pair.value, kind)

    return {pair.key: value(pair) for pair in pairs}
