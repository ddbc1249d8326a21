"""What is kept for a time only: finished deliveries of webhooks, and entries of the admin log.

Every process looks now and then, each at its own moments, and deletes in bounded pieces; several at a time do no harm.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from fluxora import logs
from fluxora.config import WebhookConfig
from fluxora.errors import StorageUnavailable
from fluxora.storage.webhooks import WebhookStore

PURGE_EVERY_S = 600.0
_AT_ONCE = 1_000
_DAY_MS = 86_400_000

_log = logs.get("retention")


async def purge_now_and_then(
    store: WebhookStore, config: WebhookConfig, every_s: float, draw: Callable[[], float]
) -> None:
    """Delete what is older than `config` says, about every `every_s` (varied by a quarter, by `draw`), until cancelled.

    The database being away postpones it.
    """
    while True:
        await trio.sleep(every_s * (0.75 + draw() / 2))
        await _purge(store.purge, config.retention_days)
        await _purge(store.purge_admin_log, config.admin_log_days)


async def _purge(purge: Callable[[int, int], Awaitable[int]], days: int) -> None:
    try:
        while await purge(days * _DAY_MS, _AT_ONCE) == _AT_ONCE:
            await trio.lowlevel.checkpoint()
    except StorageUnavailable as error:
        _log.info("retention.postponed", error=str(error))
