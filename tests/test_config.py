from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stellar_sdk import StrKey

from fluxora.config import MAX_CONTRACTS, VARIABLES, Config
from fluxora.errors import ConfigError

ROOT = Path(__file__).parent.parent
CONTRACT = StrKey.encode_contract(bytes(range(32)))
OTHER = StrKey.encode_contract(bytes(range(1, 33)))


def test_an_empty_environment_is_a_working_default() -> None:
    config = Config.from_env({})
    assert (config.http.host, config.http.port, config.source.kind) == ("127.0.0.1", 3000, "none")
    assert config.storage.database_url is None
    assert config.http.indexer_worker_token is None


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
        ("DATABASE_URL", "mysql://h/d"),
        ("DATABASE_URL", "postgresql://h:notaport/d"),
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
        }
    )
    assert "hunter22" not in repr(config)


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
