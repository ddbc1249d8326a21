"""How `fluxora webhooks` shows to people what the admin API answers to programs."""

from __future__ import annotations

from collections.abc import Sequence

from fluxora.http.webhook_replies import Delivery, DeliveryAttempt, WebhookEndpoint, WebhookTest
from fluxora.protocol.signing import Secret

_LONGEST_CELL = 72


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells under their heads. Cells hold what others sent, so each stays on its line and in bounds."""
    cells = [head, *([_cell(text) for text in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def fields(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Lines `name  value`, of the values that are there."""
    given = [(name, _printable(value)) for name, value in pairs if value]
    width = max((len(name) for name, _ in given), default=0)
    return [f"{name:{width}}  {value}" for name, value in given]


def endpoint_lines(endpoint: WebhookEndpoint) -> list[str]:
    """All about one endpoint."""
    return fields(
        [
            ("endpoint", endpoint.id),
            ("url", endpoint.url),
            ("description", endpoint.description),
            ("state", state_of(endpoint)),
            ("only events", " ".join(endpoint.events)),
            ("only streams", " ".join(endpoint.stream_ids)),
            ("only addresses", " ".join(endpoint.addresses)),
            ("ordered", "yes" if endpoint.ordered else "no"),
            ("rate limit", f"{endpoint.rate_limit} a second" if endpoint.rate_limit else "none"),
            ("at a time", str(endpoint.max_in_flight)),
            ("created", f"{endpoint.created_at}, at position {endpoint.created_position}"),
            ("changed", endpoint.updated_at),
            ("last success", endpoint.last_success_at),
            ("failing since", endpoint.failing_since),
            ("previous secret", endpoint.previous_secret_until and f"until {endpoint.previous_secret_until}"),
        ]
    )


def endpoint_table(endpoints: Sequence[WebhookEndpoint]) -> list[str]:
    """One line for each endpoint."""
    rows = [(each.id, state_of(each), each.url, _filters(each)) for each in endpoints]
    return table(("ENDPOINT", "STATE", "URL", "ONLY"), rows)


def state_of(endpoint: WebhookEndpoint) -> str:
    """Whether it is sent to, and if not, why."""
    if not endpoint.enabled:
        return f"disabled ({endpoint.disabled_reason})"
    return "failing" if endpoint.failing_since else "enabled"


def secret_lines(secret: Secret) -> list[str]:
    """A new secret, the one time that it is shown."""
    return [f"The secret, for the receiver. It cannot be shown again:\n\n  {secret.reveal()}\n"]


def delivery_table(deliveries: Sequence[Delivery]) -> list[str]:
    """One line for each delivery."""
    rows = [
        (
            each.id,
            each.event,
            each.status,
            str(each.attempt_count),
            each.due_at or "",
            _answer(each.last_status, each.last_error),
        )
        for each in deliveries
    ]
    return table(("DELIVERY", "EVENT", "STATUS", "TRIES", "DUE", "LAST ANSWER"), rows)


def delivery_lines(delivery: Delivery) -> list[str]:
    """All about one delivery but its attempts."""
    return fields(
        [
            ("delivery", delivery.id),
            ("endpoint", delivery.endpoint_id),
            ("event", f"{delivery.event} at position {delivery.position}"),
            ("stream", delivery.stream_id),
            ("status", f"{delivery.status} after {delivery.attempt_count} attempts"),
            ("created", delivery.created_at),
            ("due", delivery.due_at),
            ("finished", delivery.finished_at),
            ("last answer", _answer(delivery.last_status, delivery.last_error)),
        ]
    )


def attempt_table(attempts: Sequence[DeliveryAttempt]) -> list[str]:
    """One line for each attempt."""
    rows = [
        (str(each.number), each.at, f"{each.latency_ms} ms", _answer(each.status, each.error), each.response)
        for each in attempts
    ]
    return table(("TRY", "AT", "TOOK", "ANSWER", "BODY"), rows)


def test_lines(test: WebhookTest) -> list[str]:
    """What came back of a test."""
    return fields(
        [
            ("delivered", "yes" if test.delivered else "no"),
            ("answer", _answer(test.status, test.error)),
            ("took", f"{test.latency_ms} ms"),
            ("body", test.response),
        ]
    )


def _answer(status: int | None, error: str | None) -> str:
    return " ".join(str(part) for part in (status, error) if part is not None)


def _filters(endpoint: WebhookEndpoint) -> str:
    counted = [(endpoint.stream_ids, "streams"), (endpoint.addresses, "addresses")]
    return ", ".join([*endpoint.events, *(f"{len(items)} {name}" for items, name in counted if items)])


def _cell(text: str) -> str:
    shown = _printable(text)
    return shown if len(shown) <= _LONGEST_CELL else f"{shown[: _LONGEST_CELL - 1]}…"


def _printable(text: str) -> str:
    """`text` without what would steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
