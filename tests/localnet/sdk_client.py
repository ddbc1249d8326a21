"""stellar_sdk's asynchronous client on trio: the SDK is the judge of what localnet answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from stellar_sdk import SorobanServerAsync
from stellar_sdk.client.base_async_client import BaseAsyncClient
from stellar_sdk.client.response import Response


class HttpxClient(BaseAsyncClient):
    def __init__(self) -> None:
        self._http = httpx.AsyncClient(timeout=10)

    async def get(
        self,
        url: str,
        params: dict[str, str] | None = None,
        max_content_size: int | None = None,  # noqa: ARG002 - the SDK's signature
    ) -> Response:
        return self._response(await self._http.get(url, params=params))

    async def post(
        self, url: str, data: dict[str, str] | None = None, json_data: dict[str, Any] | None = None
    ) -> Response:
        return self._response(await self._http.post(url, data=data, json=json_data))

    def _response(self, answer: httpx.Response) -> Response:
        return Response(answer.status_code, answer.text, dict(answer.headers), str(answer.url))

    def stream(self, url: str, params: dict[str, str] | None = None) -> AsyncGenerator[dict[str, Any], None]:
        raise NotImplementedError

    async def close(self) -> None:
        await self._http.aclose()


@asynccontextmanager
async def open_server(url: str):
    client = HttpxClient()
    try:
        yield SorobanServerAsync(url, client=client)
    finally:
        await client.close()


async def call(http: httpx.AsyncClient, url: str, method: str, params: object = None) -> Any:
    """The `result` of a call, or its `error`."""
    answer = await http.post(url, json={"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"] == 7
    return body["result"] if "result" in body else body["error"]
