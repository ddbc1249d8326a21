"""One client, three processes on one database, and the quota that it has in all of them together."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import trio
from processes import environment, serve
from proof import LONG

REPLICAS = 3
QUOTA = 60  # a minute
SHARE = QUOTA // 20
EACH_EVERY_S = 0.25  # a request to each
LASTS_S = 75.0 if LONG else 20.0
LAG_S = 5.0  # between two rounds at most; a second, and what a machine without time for it adds


async def test_a_client_of_three_processes_gets_its_quota_once(postgres_url: str, tmp_path: Path) -> None:
    environ = environment(
        PORT="0", DATABASE_URL=postgres_url, FLUXORA_RATE_LIMIT="1", FLUXORA_RATE_LIMIT_READ=str(QUOTA)
    )
    answers = Counter[int]()
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(serve(environ, tmp_path / f"{n}.log")) for n in range(REPLICAS)]
        clients = [await stack.enter_async_context(httpx.AsyncClient(base_url=await each.ready())) for each in served]
        began = trio.current_time()
        while trio.current_time() - began < LASTS_S:
            for client in clients:
                answers[(await client.get("/api/streams")).status_code] += 1
            await trio.sleep(EACH_EVERY_S)
        took_s = trio.current_time() - began
        for each in served:
            assert each.lines("supervisor.actor_crashed") == []
            assert await each.stop() == 0
    assert set(answers) == {200, 429}
    allowed = QUOTA * (1 + took_s / 60)
    unknown = (REPLICAS - 1) * (SHARE + LAG_S / EACH_EVERY_S)
    print(f"{answers[200]} of {answers.total()} in {took_s:.0f} s; one process would have granted {allowed:.0f}")
    late = REPLICAS * SHARE + LAG_S * QUOTA / 60 + 1
    assert allowed - late <= answers[200] <= allowed + unknown
