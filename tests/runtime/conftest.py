from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("processes", "truth", "followers")

from truth import Books, open_books  # noqa: E402 (its assertions explain themselves once pytest has rewritten them)


@pytest.fixture
def bare_url(postgres_run: Any) -> Iterator[str]:
    """An empty database without a schema."""
    url = postgres_run.create("template1")
    yield url
    postgres_run.drop(url)


@pytest.fixture
def other_url(postgres_run: Any) -> Iterator[str]:
    """A second migrated, empty database."""
    url = postgres_run.create()
    yield url
    postgres_run.drop(url)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A data directory for a PostgreSQL of the test's own; short, for the server's socket lies below it."""
    folder = Path(tempfile.mkdtemp(prefix="fxrun-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def books_of() -> AsyncIterator[Callable[[str], Any]]:
    """Opens books of a database; closed before the database is dropped."""
    async with AsyncExitStack() as stack:

        async def opened(url: str) -> Books:
            return await stack.enter_async_context(open_books(url))

        yield opened
