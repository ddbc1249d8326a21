"""The arguments of each `fluxora webhooks` action. Values are judged as those of the admin API are, by its models."""

from __future__ import annotations

import argparse

from fluxora.http.fields import EVENT_NAMES
from fluxora.http.webhook_models import DEFAULT_GRACE_S, DELIVERY_ID, ENDPOINT_ID


def endpoint(parser: argparse.ArgumentParser) -> None:
    """Which endpoint."""
    parser.add_argument("endpoint", type=_endpoint_id, help="the endpoint's id: we_... or default")


def _filter_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what, metavar in (
        ("event", f"only events of these names, of {', '.join(EVENT_NAMES)}", "NAME"),
        ("stream", "only events of these streams", "ID"),
        ("address", "only events of streams that one of these sends or receives", "ADDRESS"),
    ):
        parser.add_argument(f"--{name}", action="extend", nargs="*", metavar=metavar, help=what)
    parser.add_argument("--description", help="one line for people")
    parser.add_argument(
        "--ordered",
        action=argparse.BooleanOptionalAction,
        help="keep the order of each stream: what fails holds back what follows",
    )
    parser.add_argument("--rate-limit", type=int, metavar="N", help="the most deliveries a second; 0: no limit")
    parser.add_argument("--max-in-flight", type=int, metavar="N", help="the most deliveries at a time (default 32)")


def add(parser: argparse.ArgumentParser) -> None:
    """A new endpoint."""
    parser.add_argument("url", help="where to send to: https://...")
    _filter_arguments(parser)
    parser.add_argument("--disabled", action="store_true", help="send nothing until it is enabled")


def change(parser: argparse.ArgumentParser) -> None:
    """What is to be different about an endpoint."""
    endpoint(parser)
    parser.add_argument("--url", help="where to send to: https://...")
    _filter_arguments(parser)


def delete(parser: argparse.ArgumentParser) -> None:
    """An endpoint that is to go."""
    endpoint(parser)
    parser.add_argument("--yes", action="store_true", help="really: its deliveries go with it")


def rotate(parser: argparse.ArgumentParser) -> None:
    """An endpoint, and how its new secret takes over."""
    endpoint(parser)
    parser.add_argument(
        "--grace",
        type=int,
        default=DEFAULT_GRACE_S,
        metavar="S",
        help="seconds for which deliveries are signed with the previous secret too (default %(default)s)",
    )


def delivery(parser: argparse.ArgumentParser) -> None:
    """Which delivery."""
    parser.add_argument("delivery", type=_delivery_id, help="the delivery's id: msg_...")


def _page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", default="20", metavar="N", help="the most to print, up to 100 (default %(default)s)")
    parser.add_argument("--before", metavar="ID", help="go on behind this delivery")


def deliveries(parser: argparse.ArgumentParser) -> None:
    """A page of the deliveries to an endpoint."""
    endpoint(parser)
    parser.add_argument("--status", metavar="S", help="only those that are pending, delivered or dead")
    _page_arguments(parser)


def dead_letters(parser: argparse.ArgumentParser) -> None:
    """A page of dead letters."""
    parser.add_argument("--endpoint", metavar="ID", help="only those to this endpoint")
    _page_arguments(parser)


def replay(parser: argparse.ArgumentParser) -> None:
    """A part of the log, and the endpoint that it is sent to."""
    endpoint(parser)
    parser.add_argument("--after", default="0", metavar="POSITION", help="events behind it (default %(default)s)")
    parser.add_argument("--until", metavar="POSITION", help="events up to it (default: the log's end)")
    parser.add_argument(
        "--only",
        default="failed",
        metavar="WHICH",
        help="failed: what was dead-lettered, or what there is no delivery of (never recorded for it, or removed after "
        "FLUXORA_WEBHOOK_RETENTION_DAYS); all: also what arrived (default %(default)s)",
    )


def log(parser: argparse.ArgumentParser) -> None:
    """A page of the admin log."""
    parser.add_argument("--after", default="0", metavar="N", help="entries behind this number (default %(default)s)")
    parser.add_argument("--limit", default="100", metavar="N", help="the most to print (default %(default)s)")


def _endpoint_id(text: str) -> str:
    if not ENDPOINT_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not an endpoint's id (we_... or default)")
    return text


def _delivery_id(text: str) -> str:
    if not DELIVERY_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is not a delivery's id (msg_...)")
    return text
