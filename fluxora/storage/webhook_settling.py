"""What becomes of deliveries and their endpoints when attempts have ended. Part of a turn (`webhook_claims`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from fluxora.storage import admin_log
from fluxora.storage.admin_log import ITSELF
from fluxora.storage.pool import Connection
from fluxora.storage.webhook_records import MAX_RESPONSE_CHARACTERS, DisabledReason, Result

FAILING_MS: Final = 5 * 24 * 3_600_000
"""An endpoint that has only failed for so long is disabled."""
MAX_ERROR_CHARACTERS: Final = 500

_LOCK = """
SELECT id, url, enabled, created_ms, failing_since_ms FROM webhook_endpoints WHERE id = ANY($1) AND NOT deleted
ORDER BY id FOR NO KEY UPDATE
"""

# $1: worker, $2: now in ms. What has no claim of the worker's any more is not taken.
_SETTLE = """
WITH result AS (
    SELECT * FROM unnest(
        $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::integer[], $8::text[], $9::bigint[], $10::text[],
        $11::integer[]
    ) AS r(endpoint_id, position, outcome, delay_ms, status, error, latency_ms, response, attempts)
), taken AS (
    DELETE FROM webhook_claims c USING result r
    WHERE c.endpoint_id = r.endpoint_id AND c.position = r.position AND c.worker = $1
    RETURNING r.*
), judged AS (
    SELECT t.*, t.outcome <> 'delivered' AND d.attempts <> coalesce(t.attempts, d.attempts) AS revived
    FROM taken t JOIN webhook_deliveries d ON d.endpoint_id = t.endpoint_id AND d.position = t.position
), settled AS (
    UPDATE webhook_deliveries d SET attempts = d.attempts + 1, last_status = t.status, last_error = t.error,
        status = CASE WHEN t.outcome IN ('delivered', 'dead') AND NOT t.revived THEN t.outcome ELSE d.status END,
        at_ms = CASE WHEN t.outcome IN ('delivered', 'dead') AND NOT t.revived THEN $2 ELSE d.at_ms END,
        due_ms = CASE WHEN t.outcome IN ('retry', 'gone') AND NOT t.revived THEN $2 + t.delay_ms ELSE d.due_ms END
    FROM judged t WHERE d.endpoint_id = t.endpoint_id AND d.position = t.position
    RETURNING d.endpoint_id, d.queue,
        CASE WHEN t.revived AND t.outcome = 'dead' THEN 'retry' ELSE t.outcome END AS outcome
), attempt AS (
    INSERT INTO webhook_attempts (endpoint_id, position, at_ms, status, error, latency_ms, response)
    SELECT endpoint_id, position, $2, status, error, latency_ms, response FROM taken
), tally AS (
    INSERT INTO webhook_tallies (endpoint_id, pending, dead)
    SELECT endpoint_id, -count(*), count(*) FILTER (WHERE outcome = 'dead') FROM settled
    WHERE outcome IN ('delivered', 'dead') GROUP BY endpoint_id
)
SELECT endpoint_id, queue, outcome FROM settled
"""

# The first pending one of each queue may go.
_LET_GO = """
UPDATE webhook_deliveries d SET held = false
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS v(endpoint_id, queue)) AS q CROSS JOIN LATERAL (
    SELECT f.position FROM webhook_deliveries f
    WHERE f.endpoint_id = q.endpoint_id AND f.queue = q.queue AND f.status = 'pending'
    ORDER BY f.position LIMIT 1
) AS first
WHERE d.endpoint_id = q.endpoint_id AND d.position = first.position AND d.held
"""

_MARK = """
UPDATE webhook_endpoints e SET
    last_success_ms = CASE WHEN v.succeeded THEN $1 ELSE e.last_success_ms END,
    failing_since_ms = CASE WHEN NOT v.succeeded THEN coalesce(e.failing_since_ms, $1) END,
    enabled = v.reason IS NULL AND e.enabled,
    disabled_reason = coalesce(e.disabled_reason, v.reason),
    updated_ms = CASE WHEN v.reason IS NULL THEN e.updated_ms ELSE $1 END
FROM unnest($2::text[], $3::boolean[], $4::text[]) AS v(id, succeeded, reason) WHERE e.id = v.id
"""


class Settled(msgspec.Struct, frozen=True):
    """How many results were taken, and the endpoints that they have disabled."""

    count: int
    disabled: list[str]


async def settle(connection: Connection, worker: str, results: Sequence[Result], now_ms: int) -> Settled:
    """Take the results of the worker's claims. Their endpoints stay locked until the transaction ends."""
    rows = await connection.fetch(_LOCK, list({result.endpoint_id for result in results}))
    endpoints = {row["id"]: row for row in rows}
    results = [_as_of_now(result, endpoints[result.endpoint_id]) for result in results if _is_of(result, endpoints)]
    settled = await connection.fetch(_SETTLE, worker, now_ms, *_columns(results))
    queues = {
        (row["endpoint_id"], row["queue"])
        for row in settled
        if row["queue"] is not None and row["outcome"] in {"delivered", "dead"}
    }
    if queues:
        await connection.execute(_LET_GO, [id_ for id_, _ in queues], [queue for _, queue in queues])
    outcomes: dict[str, set[str]] = {}
    for row in settled:
        outcomes.setdefault(row["endpoint_id"], set()).add(row["outcome"])
    reasons = {id_: _reason(endpoints[id_], found, now_ms) for id_, found in outcomes.items()}
    if outcomes:
        succeeded = ["delivered" in found for found in outcomes.values()]
        await connection.execute(_MARK, now_ms, list(outcomes), succeeded, list(reasons.values()))
    disabled = [id_ for id_, reason in reasons.items() if reason is not None]
    for id_ in disabled:
        detail = {"reason": reasons[id_], "url": endpoints[id_]["url"]}
        await admin_log.add(connection, ITSELF, "webhook.disabled", id_, detail)
    return Settled(len(settled), disabled)


def _is_of(result: Result, endpoints: Mapping[str, Any]) -> bool:
    """False where its endpoint has been deleted, whoever has the id now."""
    endpoint = endpoints.get(result.endpoint_id)
    return endpoint is not None and result.endpoint_created_ms in {None, endpoint["created_ms"]}


def _as_of_now(result: Result, endpoint: Any) -> Result:
    """The same, but that another URL's answer does not end the endpoint: it is due again at once, at the new one."""
    moved = result.url is not None and result.url != endpoint["url"]
    return (
        msgspec.structs.replace(result, outcome="retry", delay_ms=0) if moved and result.outcome == "gone" else result
    )


def _reason(endpoint: Any, outcomes: set[str], now_ms: int) -> DisabledReason | None:
    """Why the endpoint is to be disabled now; None where it is not, or is already."""
    if not endpoint["enabled"]:
        return None
    if "gone" in outcomes:
        return "gone"
    since: int | None = endpoint["failing_since_ms"]
    return "failing" if "delivered" not in outcomes and since is not None and now_ms - since >= FAILING_MS else None


def _columns(results: Sequence[Result]) -> list[list[Any]]:
    return [
        [result.endpoint_id for result in results],
        [result.position for result in results],
        [result.outcome for result in results],
        [result.delay_ms for result in results],
        [result.status for result in results],
        [None if result.error is None else _storable(result.error, MAX_ERROR_CHARACTERS) for result in results],
        [result.latency_ms for result in results],
        [_storable(result.response, MAX_RESPONSE_CHARACTERS) for result in results],
        [result.attempts for result in results],
    ]


def _storable(text: str, limit: int) -> str:
    """The beginning of a text from outside, without what a text column cannot hold."""
    return text[:limit].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
