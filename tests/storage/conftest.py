from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dumped import FILL, name_of


@pytest.fixture
def filled(postgres_run: Any) -> Iterator[str]:
    """The URL of a database with something in it."""
    url = postgres_run.create()
    postgres_run.sql(FILL, name_of(url))
    yield url
    postgres_run.drop(url)


@pytest.fixture
def other(postgres_run: Any) -> Iterator[str]:
    """The URL of a migrated database that holds something else."""
    url = postgres_run.create()
    postgres_run.sql("INSERT INTO ledgers VALUES (1, 7, 'other', NULL, 7)", name_of(url))
    yield url
    postgres_run.drop(url)


@pytest.fixture
def empty(postgres_run: Any) -> Iterator[str]:
    """The URL of a database without a table."""
    url = postgres_run.create("template0")
    yield url
    postgres_run.drop(url)
