"""Where `fluxora tail` connects to, and as whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fluxora.client.connection import Headers
from fluxora.errors import ConfigError
from fluxora.variables import CLIENT_VARIABLES

DEFAULT_URL = "http://127.0.0.1:3000"
PATH = "/ws/streams"
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


def socket_url(text: str) -> str:
    """The URL of the server's WebSocket, from that of the server.

    Raises:
        ValueError: this cannot be the URL of a server.
    """
    parts = urlsplit(text)  # which raises it too, and passes over tabs and line breaks
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("a URL is printable ASCII without spaces; the name of a host may need its form in punycode")
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError("the URL of a server is needed: http://host[:port] or https://host[:port]")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("the URL has a credential, a query or a fragment, which it may not; see FLUXORA_KEY")
    if parts.port == 0:
        raise ValueError("port 0 is no port")
    path = parts.path.rstrip("/").removesuffix(PATH) + PATH
    return parts._replace(scheme=_SCHEMES[parts.scheme], path=path).geturl()


@dataclass(frozen=True)
class Settings:
    """What the environment says; the credential is never on the command line, where every user could read it."""

    url: str = socket_url(DEFAULT_URL)
    key: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read the variables of `CLIENT_VARIABLES`.

        Raises:
            ConfigError: a value is wrong, or there are two credentials; one line, naming the variable.
        """
        given: dict[str, Any] = {
            variable.field: variable.parse(variable.name, text)
            for variable in CLIENT_VARIABLES
            if variable.field is not None and (text := environ.get(variable.name, "").strip())
        }
        url = given.pop("url", DEFAULT_URL)
        if "key" in given and "token" in given:
            raise ConfigError("FLUXORA_KEY, FLUXORA_TOKEN: set the one that is to be used, not both")
        try:
            return cls(**given, url=socket_url(url))
        except ValueError as error:
            raise ConfigError(f"FLUXORA_URL: {error}") from error

    @property
    def headers(self) -> Headers:
        """The credential as the handshake carries it."""
        if self.key is not None:
            return (("x-api-key", self.key),)
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)
