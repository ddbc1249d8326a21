"""The doorbell: one connection that listens for `fluxora_log` and rings when something was appended, here or elsewhere.

It only says "look": a lost ring costs latency, for readers poll as well. It reconnects by itself and rings after that.
A ring has the position that the log has reached, or is empty: then there may be webhooks to send.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from fluxora import logs
from fluxora.config import StorageConfig
from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.storage.pool import connect, is_unavailable

CHANNEL = "fluxora_log"
CHECK_EVERY_S = 15.0
CHECK_LIMIT_S = 5.0
BACKOFF_S = (0.2, 5.0)

log = logs.get("doorbell")


async def listen(url: str, config: StorageConfig, ring: Callable[[str], None]) -> None:
    """On the bridge's thread, until cancelled: call `ring` with what is said, and with "" after each reconnect."""
    wait_s, longest_s = BACKOFF_S
    while True:
        try:
            await _listen_once(url, config, ring)
            wait_s = BACKOFF_S[0]
        except ConfigError:
            return  # the migrations meet it too, and end the start with it
        except StorageUnavailable as error:
            log.info("doorbell.reconnect_later", error=str(error), wait_s=round(wait_s, 1))
        await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311 (jitter)
        wait_s = min(longest_s, wait_s * 2)


async def _listen_once(url: str, config: StorageConfig, ring: Callable[[str], None]) -> None:
    """One connection's life. Returns when it ends; StorageUnavailable when it cannot be made."""
    connection = await connect(url, config)
    ended = asyncio.Event()
    try:
        connection.add_termination_listener(lambda _connection: ended.set())
        await connection.add_listener(CHANNEL, lambda _connection, _pid, _channel, said: ring(said))
        ring("")
        while not ended.is_set():
            try:
                await asyncio.wait_for(ended.wait(), CHECK_EVERY_S)
            except TimeoutError:
                await connection.execute("SELECT 1", timeout=CHECK_LIMIT_S)  # notices a peer that vanished
    except Exception as error:
        if not is_unavailable(error):
            raise
        log.info("doorbell.connection_lost", error=f"{type(error).__name__}: {error}")
    finally:
        connection.terminate()
