"""GET /api/admin/access: closed until a credential can be admin, open to those who are, and without any secret."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from spoken import APP, KEYS, NOW, READER, ROOT, SECRET, WRITER, token

from fluxora.config import AccessConfig, LimitConfig

URL = "/api/admin/access"
READER_ENTRY, WRITER_ENTRY, ROOT_ENTRY = KEYS.api_keys


@pytest.mark.parametrize(
    ("access", "exists"),
    [
        (AccessConfig(), False),
        (AccessConfig(api_keys=(READER_ENTRY, WRITER_ENTRY)), False),
        (AccessConfig(api_keys=(ROOT_ENTRY,)), True),
        (AccessConfig(jwt_secret=SECRET), True),
    ],
)
async def test_it_does_not_exist_until_somebody_can_be_admin(start, access, exists):
    server = await start(access=access)
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        for headers in ({}, {"x-api-key": "guess"}):
            status = (await server.request(method, URL, headers=headers)).status_code
            if not exists:
                assert status == 404, "whoever asks, and with whatever: it cannot be probed for"
            else:
                assert status == (401 if method in {"GET", "HEAD"} else 405)


@pytest.mark.parametrize(
    ("credential", "status"),
    [
        ({"x-api-key": ROOT}, 200),
        ({"x-api-key": READER}, 403),
        ({"x-api-key": WRITER}, 403),
        ({"authorization": token(scope="admin").partition(": ")[2]}, 200),
        ({"authorization": token(scope="streams:read streams:write").partition(": ")[2]}, 403),
        ({}, 401),
    ],
)
async def test_it_is_for_the_scope_admin_alone(start, credential, status):
    server = await start(access=KEYS, clock=lambda: float(NOW))
    answer = await server.get(URL, headers=credential)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store"
    if status != 200:
        assert answer.json()["error"] == {401: "UNAUTHORIZED", 403: "FORBIDDEN"}[status]
        assert "reader" not in answer.text


async def test_it_says_what_is_configured_and_no_secret(start):
    server = await start(
        access=AccessConfig(api_keys=KEYS.api_keys, jwt_secret=SECRET, required=True),
        limits=LimitConfig(anonymous_read=11, anonymous_write=12, key=13, admin=14),
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
        cors_origins=(APP,),
        indexer_worker_token="t" * 16,
    )
    answer = await server.get(URL, headers={"x-api-key": ROOT})
    assert answer.json() == {
        "caller": "key:root",
        "auth": "required",
        "apiKeys": [
            {"name": "reader", "scopes": ["streams:read"]},
            {"name": "writer", "scopes": ["streams:write"]},
            {"name": "root", "scopes": ["admin"]},
        ],
        "bearerTokens": True,
        "rateLimits": {"enabled": True, "anonymousRead": 11, "anonymousWrite": 12, "key": 13, "admin": 14},
        "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
        "corsOrigins": [APP],
    }
    for key in KEYS.api_keys:
        assert key.entry not in answer.text
        assert key.entry.split(".")[2] not in answer.text
    assert SECRET not in answer.text
    assert "t" * 16 not in answer.text


async def test_it_tells_each_caller_as_whom_it_was_taken(start):
    server = await start(access=KEYS, clock=lambda: float(NOW))
    headers = {"authorization": token(scope="admin", sub="alice").partition(": ")[2]}
    assert (await server.get(URL, headers=headers)).json()["caller"] == "jwt:alice"
