"""Fluxora: the backend of token streaming on Stellar.

::

    async with fluxora.open_runtime(fluxora.Config(...)) as rt:
        print(rt.url)

`Config` and its sections say what to run, `open_runtime` runs it, `errors` holds every error that it raises. `webhooks`
is for the other side: `webhooks.verify` checks a delivery that was received.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fluxora import errors as errors
    from fluxora import webhooks as webhooks
    from fluxora.config import AccessConfig as AccessConfig
    from fluxora.config import BackupConfig as BackupConfig
    from fluxora.config import Config as Config
    from fluxora.config import Contract as Contract
    from fluxora.config import HttpConfig as HttpConfig
    from fluxora.config import LimitConfig as LimitConfig
    from fluxora.config import PipelineConfig as PipelineConfig
    from fluxora.config import SourceConfig as SourceConfig
    from fluxora.config import StorageConfig as StorageConfig
    from fluxora.config import WebhookConfig as WebhookConfig
    from fluxora.runtime import Runtime as Runtime
    from fluxora.runtime import open_runtime as open_runtime

_HOMES = {
    "AccessConfig": "fluxora.config",
    "BackupConfig": "fluxora.config",
    "Config": "fluxora.config",
    "Contract": "fluxora.config",
    "HttpConfig": "fluxora.config",
    "LimitConfig": "fluxora.config",
    "PipelineConfig": "fluxora.config",
    "SourceConfig": "fluxora.config",
    "StorageConfig": "fluxora.config",
    "WebhookConfig": "fluxora.config",
    "Runtime": "fluxora.runtime",
    "open_runtime": "fluxora.runtime",
}
__all__ = ["__version__", "errors", "webhooks", *sorted(_HOMES)]  # noqa: PLE0604 (names served by __getattr__)


def __getattr__(name: str) -> Any:
    """Import on first use, so that one light module can be imported without the server behind it."""
    import importlib  # noqa: PLC0415 (lazy by design)

    if name in ("errors", "webhooks"):
        return importlib.import_module(f"fluxora.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fluxora' has no attribute {name!r}")
