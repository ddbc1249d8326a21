"""One PostgreSQL for a test run, and a fresh migrated database in it for each test that asks.

The workers of a parallel run share the server as processes of the program would: by its data directory. The last one
to leave stops it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
import structlog

from fluxora import logs
from fluxora.config import StorageConfig
from fluxora.storage import migrate
from fluxora.storage.embedded import EmbeddedServer

_TEMPLATE = "fluxora_template"

# Where nobody sets logging up, structlog has rich print each traceback with all locals: tenths of a CPU second each.
structlog.get_config()["processors"][-1].exception_formatter = structlog.dev.plain_traceback


class PostgresRun:
    """The run's server; `create` makes a database like the migrated one and returns its URL."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server

    def url(self, database: str) -> str:
        return self.server.url.replace("/fluxora?", f"/{database}?")

    def sql(self, text: str, database: str = "postgres") -> list[asyncpg.Record]:
        """Run a statement outside any trio run."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.url(database))
            try:
                return await connection.fetch(text)
            finally:
                await connection.close()

        return asyncio.run(run())

    def create(self, template: str = _TEMPLATE) -> str:
        name = f"t_{uuid.uuid4().hex}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.sql(f"DROP DATABASE {_name(url)} WITH (FORCE)")

    def make_template(self) -> None:
        if self.sql(f"SELECT 1 FROM pg_database WHERE datname = '{_TEMPLATE}'"):
            return
        self.sql(f"CREATE DATABASE {_TEMPLATE}_new")
        url = self.url(f"{_TEMPLATE}_new")
        asyncio.run(migrate.apply(url, StorageConfig(database_url=url), migrate.migrations()))
        self.sql(f"ALTER DATABASE {_TEMPLATE}_new RENAME TO {_TEMPLATE}")


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    with (place / "workers.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A runtime in this process sets logging up for all of it; the next test finds it as the first one did."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        logs._json_level.clear()


@pytest.fixture(scope="session")
def postgres_run() -> Iterator[PostgresRun]:
    # A short path: the server's socket lies below it.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid():x}"
    place = Path(tempfile.gettempdir()) / f"fluxora-{run[:10]}"
    server = EmbeddedServer(place / "pg")
    with _locked(place):
        server.open()
        postgres = PostgresRun(server)
        postgres.make_template()
    try:
        yield postgres
    finally:
        with _locked(place):
            server.close()
            if not server.answers():  # the last one out
                shutil.rmtree(place)


@pytest.fixture
def postgres_url(postgres_run: PostgresRun) -> Iterator[str]:
    """A fresh, migrated, empty database."""
    url = postgres_run.create()
    yield url
    postgres_run.drop(url)


@pytest.fixture
def storage_config(postgres_url: str, tmp_path: Path) -> StorageConfig:
    """Storage on a fresh, migrated, empty database."""
    return StorageConfig(database_url=postgres_url, data_dir=tmp_path, pool_size=4)
