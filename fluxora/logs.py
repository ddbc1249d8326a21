"""Structured logs: one JSON object a line on standard error, with `event`, `level`, `timestamp` and what was bound.

Event names are `actor.verb_past`. Secrets are never passed to a logger; a database URL is logged without its password.
"""

from __future__ import annotations

import logging
import sys

import structlog

LEVELS = ("debug", "info", "warning", "error", "critical")

_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def configure(level: str = "info", *, human: bool | None = None) -> None:
    """Set the level and the form: JSON lines, or aligned text when standard error is a terminal (`human` overrides)."""
    if human is None:
        human = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)  # others print locals: secrets
        if human
        else structlog.processors.JSONRenderer()
    )
    chain = [*_PROCESSORS, renderer]
    if human:
        chain.remove(structlog.processors.format_exc_info)  # the console renderer prints tracebacks itself
    number = logging.getLevelNamesMapping()[level.upper()]
    _json_level[:] = [] if human else [number]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever standard error is by then
        cache_logger_on_first_use=False,
    )


_json_level: list[int] = []  # the level, while lines are JSON of our own making


def are_plain_json() -> bool:
    """True where lines are JSON as `configure` set them up: then who writes many may write the same form by itself."""
    return bool(_json_level)


def takes_info() -> bool:
    """True where such lines of level info are wanted."""
    return bool(_json_level) and _json_level[0] <= logging.INFO


def configure_unless_done(level: str) -> None:
    """For embedders: take over nothing from an application that has set structlog up itself."""
    if not structlog.is_configured():
        configure(level)


def get(actor: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry the actor's name."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(actor=actor)
    return logger
