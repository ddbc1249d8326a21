"""Where traces go: to what the application has set up, else to a collector by OTLP over HTTP.

OpenTelemetry is an extra, and imported only where tracing is on. Its own variables say where the collector is, what is
sampled and how much waits. Spans are sent by a thread of OpenTelemetry's; what it cannot hold it drops.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from fluxora import logs, tracing
from fluxora.errors import ConfigError
from fluxora.tracing import Tracer

FLUSH_S = 3.0  # longest wait for the collector at the stop
QUIET_S = 60.0  # between two lines that say the same of it

_log = logs.get("tracing")


@dataclass(frozen=True)
class _Opened:
    """`provider` is one of ours, None where the application has its own."""

    tracer: Tracer
    provider: Any = None
    exporter: Any = None


_opened: list[_Opened] = []


@asynccontextmanager
async def open_tracing(*, on: bool, version: str) -> AsyncIterator[None]:
    """Trace within the block, if `on`. Spans that wait at its end are sent within `FLUSH_S`, or lost.

    Where the application has set up a TracerProvider, spans go there, and it stays the application's. Else they go to
    a collector by OTLP over HTTP, in a thread of their own, as the variables of OpenTelemetry say.

    Raises:
        ConfigError: OpenTelemetry is not installed, or one of its variables cannot be followed.
    """
    if not on:
        yield
        return
    _voice.users += 1
    try:
        opened = await trio.to_thread.run_sync(_open, version)  # it reads modules, and files of certificates
        _opened.append(opened)
        _choose()
        try:
            yield
        finally:
            _opened.remove(opened)
            _choose()
            in_time = opened.provider is None or await _flushed(opened)
    finally:
        _voice.users -= 1
    if not in_time:
        opened.exporter.shutdown()  # its thread gives up, and says nothing more


def _choose() -> None:
    tracing.use(_opened[-1].tracer if _opened else None)


def _open(version: str) -> _Opened:
    try:
        trace: Any = importlib.import_module("opentelemetry.trace")
        provider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            return _Opened(Tracer(provider, version))
        return _sending(version)
    except ImportError as error:
        raise ConfigError(
            "FLUXORA_TRACING: OpenTelemetry is not installed; pip install 'fluxora[otel]', or set it to off"
        ) from error


def _sending(version: str) -> _Opened:
    """A provider of our own, and the exporter that it sends with."""
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    resources: Any = importlib.import_module("opentelemetry.sdk.resources")
    otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    _refuse_others("OTEL_TRACES_EXPORTER", "otlp")
    _refuse_others("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    _refuse_others("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    _voice.listen()
    told = resources.OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
    ours = {"service.name": "fluxora", "service.version": version}
    provider = sdk.TracerProvider(resource=resources.Resource.create({**ours, **told}), shutdown_on_exit=False)
    try:
        exporter = otlp.OTLPSpanExporter()
        provider.add_span_processor(export.BatchSpanProcessor(exporter))
    except (ValueError, OSError) as error:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_*, OTEL_BSP_*: one of them cannot be used: {error}") from error
    return _Opened(Tracer(provider, version), provider, exporter)


def _refuse_others(name: str, only: str) -> None:
    given = os.environ.get(name, "").strip()  # as OpenTelemetry itself reads it
    if given not in {"", only}:
        raise ConfigError(f"{name}: only {only} can be used here, got {given[:40]!r}")


async def _flushed(opened: _Opened) -> bool:
    """True where whatever waited was given to the collector, or refused by it, in time."""
    with trio.move_on_after(FLUSH_S, shield=True) as patience:
        await trio.to_thread.run_sync(opened.provider.shutdown, abandon_on_cancel=True)
    if patience.cancelled_caught:
        _log.warning("tracing.spans_lost", reason="the collector did not take them in time", waited_s=FLUSH_S)
    return not patience.cancelled_caught


class _Voice(logging.Handler):
    """What OpenTelemetry has to say, as our log lines, and the same thing once in a while.

    Texts that it fills in are left out: they may hold the headers that it was told to send.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.users = 0
        self._said_at: dict[str, float] = {}  # by the message's form, of which there are few

    def listen(self) -> None:
        """Take over from what else would print it."""
        logger = logging.getLogger("opentelemetry")
        logger.propagate = False
        if self not in logger.handlers:
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        form, now = str(record.msg), time.monotonic()
        if not self.users or now - self._said_at.get(form, -QUIET_S) < QUIET_S:
            return
        self._said_at[form] = now
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(_log, level)("tracing.sdk_complained", said=_without_texts(form, record.args))


def _without_texts(form: str, arguments: object) -> str:
    values = arguments if isinstance(arguments, tuple) else ()
    try:
        return form % tuple(_harmless(value) for value in values)
    except (TypeError, ValueError):
        return form


def _harmless(value: object) -> object:
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if isinstance(value, int | float) else "…"


_voice = _Voice()
