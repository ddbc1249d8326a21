from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellar_sdk import StrKey

from fluxora.config import MAX_CONTRACTS, AccessConfig, Config, HttpConfig, LimitConfig, WebhookConfig
from fluxora.errors import ConfigError
from fluxora.protocol.api_keys import ENTROPY_BYTES, make
from fluxora.protocol.signing import Secret
from fluxora.variables import VARIABLES

ROOT = Path(__file__).parent.parent
CONTRACT = StrKey.encode_contract(bytes(range(32)))
OTHER = StrKey.encode_contract(bytes(range(1, 33)))
KEY_TEXT, KEY = make("dash", ["streams:read"], entropy=bytes(range(ENTROPY_BYTES)))
_, TWIN = make("dash", ["admin"], entropy=bytes(ENTROPY_BYTES))
_, ADMIN = make("ops", ["admin"], entropy=bytes(ENTROPY_BYTES))
SECRET = "0123456789abcdef0123456789abcdef"


def test_an_empty_environment_is_a_working_default() -> None:
    config = Config.from_env({})
    assert (config.http.host, config.http.port, config.source.kind) == ("127.0.0.1", 3000, "none")
    assert config.storage.database_url is None
    assert config.http.indexer_worker_token is None
    assert config.http.access == AccessConfig(api_keys=(), jwt_secret=None, required=False)
    assert config.http.limits == LimitConfig(enabled=True, anonymous_read=100, anonymous_write=20, key=500, admin=2000)
    assert (config.http.trusted_proxies, config.http.cors_origins, config.http.direct) == ((), (), True)


def test_an_empty_value_counts_as_unset() -> None:
    assert Config.from_env({variable.name: "  " for variable in VARIABLES}) == Config.from_env({})


def test_everything_that_is_set_arrives() -> None:
    config = Config.from_env(
        {
            "PORT": "0",
            "DATABASE_URL": "postgresql://u:p@h:5432/d",
            "STELLAR_RPC_URL": "https://a.example/rpc, http://127.0.0.1:8000",
            "FLUXORA_CONTRACTS": f"{CONTRACT}, {OTHER}:2",
            "INDEXER_STALL_THRESHOLD_MS": "1500",
            "HORIZON_URL": "https://horizon.example",
            "UNRELATED": "kept out",
        }
    )
    assert config.http.port == 0
    assert config.source.kind == "rpc"
    assert config.source.rpc_urls == ("https://a.example/rpc", "http://127.0.0.1:8000")
    assert config.decimals == {CONTRACT: 7, OTHER: 2}
    assert config.pipeline.stall_threshold_s == 1.5


def test_access_and_limits_arrive() -> None:
    http = Config.from_env(
        {
            "FLUXORA_API_KEYS": f"{KEY.entry},{ADMIN.entry}",
            "JWT_SECRET": SECRET,
            "FLUXORA_AUTH": "Required",
            "FLUXORA_RATE_LIMIT": "0",
            "FLUXORA_RATE_LIMIT_READ": "1",
            "FLUXORA_RATE_LIMIT_WRITE": "2",
            "FLUXORA_RATE_LIMIT_KEY": "3",
            "FLUXORA_RATE_LIMIT_ADMIN": "1000000",
            "FLUXORA_TRUSTED_PROXIES": "10.0.0.0/8, fd00::/8 192.0.2.1",
            "FLUXORA_CORS_ORIGINS": "https://app.example, http://localhost:5173 https://APP.example:443 http://[::1]:80",
        }
    ).http
    assert http == HttpConfig(
        access=AccessConfig(api_keys=(KEY, ADMIN), jwt_secret=SECRET, required=True),
        limits=LimitConfig(enabled=False, anonymous_read=1, anonymous_write=2, key=3, admin=1_000_000),
        trusted_proxies=tuple(ip_network(text) for text in ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")),
        cors_origins=("https://app.example", "http://localhost:5173", "http://[::1]"),
    )
    assert Config.from_env({"FLUXORA_AUTH": "open", "FLUXORA_RATE_LIMIT": "1"}) == Config.from_env({})


def test_webhooks_arrive() -> None:
    webhooks = Config.from_env(
        {
            "FLUXORA_WEBHOOK_URL": "http://10.1.2.3:8080/hook",
            "FLUXORA_WEBHOOK_SECRET": "the legacy secret",
            "FLUXORA_WEBHOOK_ALLOWED_NETWORKS": "10.0.0.0/8, fd00::/8",
            "FLUXORA_WEBHOOK_MAX_ENDPOINTS": "3",
            "FLUXORA_WEBHOOK_RETENTION_DAYS": "7",
            "FLUXORA_ADMIN_LOG_DAYS": "90",
            "FLUXORA_WEBHOOK_ALARM_MS": "1500",
        }
    ).webhooks
    assert webhooks == WebhookConfig(
        url="http://10.1.2.3:8080/hook",
        secret=Secret.parse("the legacy secret"),
        allowed_networks=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
        max_endpoints=3,
        retention_days=7,
        admin_log_days=90,
        backlog_alarm_s=1.5,
    )


def test_every_variable_sets_a_field_that_exists_and_no_two_the_same() -> None:
    paths = [variable.field for variable in VARIABLES if variable.field is not None]
    assert len(set(paths)) == len(paths)
    for path in paths:
        *sections, last = path.split(".")
        section = Config()
        for name in sections:
            section = getattr(section, name)
        assert last in {field.name for field in fields(section)}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"FLUXORA_AUTH": "required"}, "FLUXORA_API_KEYS"),
        ({"FLUXORA_API_KEYS": f"{KEY.entry} {TWIN.entry}"}, "two keys have the name dash"),
        ({"FLUXORA_API_KEYS": f"{KEY.entry},{KEY_TEXT}"}, "entry 2 cannot be used: it is the key"),
        ({"FLUXORA_API_KEYS": KEY.entry[:-1]}, "entry 1 cannot be used: its scopes"),
        ({"JWT_SECRET": "hunter22" * 3}, "at least 32 bytes"),
        ({"FLUXORA_CORS_ORIGINS": "https://a.example/"}, "without a path"),
        ({"FLUXORA_WEBHOOK_URL": "https://a.example/hunter22"}, "FLUXORA_WEBHOOK_SECRET: required"),
        ({"FLUXORA_WEBHOOK_SECRET": "hunter22"}, "FLUXORA_WEBHOOK_URL: required"),
        ({"FLUXORA_WEBHOOK_SECRET": "whsec_hunter22!"}, "goes on in base64"),
        ({"FLUXORA_WEBHOOK_URL": "https://10.0.0.1/hunter22", "FLUXORA_WEBHOOK_SECRET": "hunter22"}, "10.0.0.1 is not"),
        ({"FLUXORA_WEBHOOK_URL": "http://a.example/", "FLUXORA_WEBHOOK_SECRET": "hunter22"}, "plain http"),
    ],
)
def test_what_is_wrong_with_access_is_told_without_the_secret(environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        Config.from_env(environ)
    assert "\n" not in str(caught.value)
    shown = str(caught.value)
    assert not any(secret in shown for secret in ("hunter22", KEY.entry[5:27], KEY_TEXT[9:]))


def test_what_embedders_set_is_checked_as_well() -> None:
    with pytest.raises(ConfigError, match="JWT_SECRET"):
        AccessConfig(jwt_secret="é" * 15)
    assert AccessConfig(jwt_secret="é" * 16).jwt_secret == "é" * 16
    with pytest.raises(ConfigError, match="two keys"):
        AccessConfig(api_keys=(KEY, ADMIN, TWIN))
    with pytest.raises(ConfigError, match="FLUXORA_AUTH"):
        AccessConfig(required=True)
    assert AccessConfig(required=True, api_keys=(KEY,)).required
    for name in ("anonymous_read", "anonymous_write", "key", "admin"):
        with pytest.raises(ConfigError, match="FLUXORA_RATE_LIMIT"):
            LimitConfig(**{name: 0})


def test_the_source_follows_from_what_is_set() -> None:
    token = {"INDEXER_WORKER_TOKEN": "t" * 16}
    assert Config.from_env(token).source.kind == "push"
    assert Config.from_env({**token, "STELLAR_RPC_URL": "http://h", "FLUXORA_CONTRACTS": CONTRACT}).source.kind == "rpc"
    assert Config.from_env({"STELLAR_RPC_URL": "http://h"}).source.kind == "none"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("PORT", "three"),
        ("PORT", "\uff13\uff10\uff10\uff10"),
        ("LOG_LEVEL", "loud"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "1.01"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "-0.1"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "nan"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "1e-3"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "\uff11"),
        ("FLUXORA_ACCESS_LOG_SAMPLE", "0." + "9" * 5_000),
        ("DATABASE_URL", "mysql://h/d"),
        ("DATABASE_URL", "postgresql://h:notaport/d"),
        ("DATABASE_URL", "postgresql://user/p:word@h/d"),
        ("STELLAR_RPC_URL", "http://user/p:word@h"),
        ("STELLAR_RPC_URL", "http://user?p:word@h"),
        ("STELLAR_RPC_URL", "http://user#p:word@h"),
        ("STELLAR_RPC_URL", "ftp://h"),
        ("STELLAR_RPC_URL", "https://"),
        ("FLUXORA_CONTRACTS", CONTRACT[:-1]),
        ("FLUXORA_CONTRACTS", CONTRACT.lower()),
        ("FLUXORA_CONTRACTS", StrKey.encode_ed25519_public_key(bytes(32))),
        ("FLUXORA_CONTRACTS", CONTRACT + ":39"),
        ("FLUXORA_SOURCE", "rumour"),
        ("FLUXORA_SOURCE", "rpc"),
        ("FLUXORA_SOURCE", "push"),
        ("FLUXORA_HEADER_EVERY", "0"),
        ("FLUXORA_HEADER_EVERY", "9" * 5_000),  # more digits than the interpreter takes for a number
        ("INDEXER_WORKER_TOKEN", "short"),
        ("FLUXORA_TYPO", "1"),
        ("FLUXORA_API_KEYS", "key"),
        ("FLUXORA_API_KEYS", KEY_TEXT),
        ("FLUXORA_API_KEYS", KEY.entry + "+root"),
        ("JWT_SECRET", "s" * 31),
        ("FLUXORA_AUTH", "yes"),
        ("FLUXORA_AUTH", "required"),
        ("FLUXORA_RATE_LIMIT", "2"),
        ("FLUXORA_RATE_LIMIT_READ", "0"),
        ("FLUXORA_RATE_LIMIT_WRITE", "-1"),
        ("FLUXORA_RATE_LIMIT_KEY", "1000001"),
        ("FLUXORA_RATE_LIMIT_ADMIN", "1.5"),
        ("FLUXORA_TRUSTED_PROXIES", "10.0.0.1/8"),  # bits beyond the network
        ("FLUXORA_TRUSTED_PROXIES", "proxy.example"),
        ("FLUXORA_TRUSTED_PROXIES", "::ffff:10.0.0.0/104"),
        ("FLUXORA_CORS_ORIGINS", "*"),
        ("FLUXORA_CORS_ORIGINS", "https://*.example"),
        ("FLUXORA_CORS_ORIGINS", "null"),
        ("FLUXORA_CORS_ORIGINS", "app.example"),
        ("FLUXORA_CORS_ORIGINS", "https://app.example/"),
        ("FLUXORA_CORS_ORIGINS", "https://app.example:65536"),
        ("FLUXORA_CORS_ORIGINS", "https://app.example:"),
        ("FLUXORA_CORS_ORIGINS", "https://user@app.example"),
        ("FLUXORA_CORS_ORIGINS", "https://bücher.example"),
        ("FLUXORA_WEBHOOK_URL", "https://a.example/"),
        ("FLUXORA_WEBHOOK_SECRET", "s" * 257),
        ("FLUXORA_WEBHOOK_ALLOWED_NETWORKS", "consumer.example"),
        ("FLUXORA_WEBHOOK_MAX_ENDPOINTS", "0"),
        ("FLUXORA_WEBHOOK_RETENTION_DAYS", "0"),
        ("FLUXORA_ADMIN_LOG_DAYS", "0"),
        ("FLUXORA_WEBHOOK_ALARM_MS", "999"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: value})
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or name == "FLUXORA_SOURCE"


@given(st.sampled_from([v.name for v in VARIABLES]), st.text(max_size=40))
def test_any_text_is_taken_or_refused_as_configuration(name: str, text: str) -> None:
    with suppress(ConfigError):
        Config.from_env({name: text})


def test_secrets_are_not_in_the_repr() -> None:
    config = Config.from_env(
        {
            "DATABASE_URL": "postgresql://user:hunter22@h/d",
            "INDEXER_WORKER_TOKEN": "hunter22hunter22",
            "STELLAR_RPC_URL": "https://h/hunter22",
            "JWT_SECRET": "hunter22" * 4,
            "FLUXORA_API_KEYS": KEY.entry,
            "FLUXORA_WEBHOOK_URL": "https://h/hunter22",
            "FLUXORA_WEBHOOK_SECRET": "hunter22",
        }
    )
    assert config.webhooks.secret is not None
    assert config.webhooks.secret.reveal() == "hunter22"
    assert "hunter22" not in repr(config)
    assert KEY.entry[5:27] not in repr(config)


def test_a_refused_url_does_not_repeat_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"DATABASE_URL": "mysql://user:hunter22@h/d"})
    assert "hunter22" not in str(caught.value)


def test_too_many_contracts_and_colliding_ids_are_refused() -> None:
    many = [StrKey.encode_contract(n.to_bytes(2) * 16) for n in range(MAX_CONTRACTS + 1)]
    with pytest.raises(ConfigError, match="at most"):
        Config.from_env({"FLUXORA_CONTRACTS": " ".join(many)})
    twins = [StrKey.encode_contract(bytes(31) + bytes([n])) for n in range(2)]
    with pytest.raises(ConfigError, match="first 12"):
        Config.from_env({"FLUXORA_CONTRACTS": " ".join(twins)})


def test_the_example_file_names_every_variable_and_is_valid() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    given_values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given_values) == {variable.name for variable in VARIABLES}
    unquoted = {name: value.strip('"') for name, value in given_values.items()}
    assert Config.from_env(unquoted) == Config.from_env({"STELLAR_RPC_URL": unquoted["STELLAR_RPC_URL"]})
