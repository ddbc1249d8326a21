"""Where a client connects to, and as whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxora.client.settings import Settings, socket_url
from fluxora.config import Config
from fluxora.errors import ConfigError
from fluxora.variables import CLIENT_VARIABLES, VARIABLES


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("http://127.0.0.1:3000", "ws://127.0.0.1:3000/ws/streams"),
        ("https://fluxora.example/", "wss://fluxora.example/ws/streams"),
        ("HTTPS://fluxora.example", "wss://fluxora.example/ws/streams"),
        ("ws://h:1/ws/streams", "ws://h:1/ws/streams"),
        ("wss://h/behind/a/proxy", "wss://h/behind/a/proxy/ws/streams"),
        ("http://[::1]:3000", "ws://[::1]:3000/ws/streams"),
    ],
)
def test_the_url_of_a_server_is_that_of_its_socket(given: str, made: str) -> None:
    assert socket_url(given) == made
    assert Settings.from_env({"FLUXORA_URL": given}).url == made


@pytest.mark.parametrize(
    "given",
    [
        *("", "localhost:3000", "ftp://h", "http://"),
        *("http://u:hunter22@h", "http://h?token=hunter22", "http://h#hunter22"),
        *("http://h:0", "http://h:99999", "http://h:x", "http://[::1", "http://h h/", "http://h/a\tb", "http://bücher"),
    ],
)
def test_what_is_no_such_url_is_refused_in_one_line_without_its_secret(given: str) -> None:
    with pytest.raises(ValueError) as caught:
        socket_url(given)
    assert "hunter22" not in str(caught.value)
    if given:
        with pytest.raises(ConfigError) as refused:
            Settings.from_env({"FLUXORA_URL": given})
        assert str(refused.value).startswith("FLUXORA_URL: ")
        assert "\n" not in str(refused.value)


@given(st.text(max_size=30))
def test_any_text_is_a_url_or_a_value_error(text: str) -> None:
    try:
        made = socket_url(text)
    except ValueError:
        return
    assert made.startswith(("ws://", "wss://"))
    assert made.isascii()
    assert made.isprintable()


def test_a_credential_goes_into_its_header_and_is_never_shown() -> None:
    assert Settings.from_env({}).headers == ()
    assert Settings.from_env({"FLUXORA_KEY": "fxk_hunter22"}).headers == (("x-api-key", "fxk_hunter22"),)
    settings = Settings.from_env({"FLUXORA_TOKEN": " hunter22 "})
    assert settings.headers == (("authorization", "Bearer hunter22"),)
    assert "hunter22" not in repr(settings)


@pytest.mark.parametrize("name", ["FLUXORA_KEY", "FLUXORA_TOKEN"])
@pytest.mark.parametrize("value", ["hunter22 hunter22", "hunter22\r\nx: y", "hünter22", "hunter22" * 2_000])
def test_what_cannot_stand_in_a_header_is_refused_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert "nter22" not in str(caught.value)


def test_two_credentials_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="FLUXORA_KEY, FLUXORA_TOKEN: "):
        Settings.from_env({"FLUXORA_KEY": "a", "FLUXORA_TOKEN": "b"})


def test_a_server_takes_no_offence_at_what_is_for_its_clients() -> None:
    assert not {variable.name for variable in CLIENT_VARIABLES} & {variable.name for variable in VARIABLES}
    environ = {variable.name: "anything" for variable in CLIENT_VARIABLES}
    assert Config.from_env(environ) == Config.from_env({})
