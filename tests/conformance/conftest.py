"""Public reference data, kept outside the repository: where it is, and what happens where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder of the reference data: FLUXORA_FIXTURES, relative to the repository's root (default ../shared/fixtures).

    Without it the tests are skipped; in CI (the variable CI is set) they fail, so that they cannot vanish unnoticed.
    """
    folder = (ROOT / os.environ.get("FLUXORA_FIXTURES", "../shared/fixtures")).resolve()
    if folder.is_dir():
        return folder
    reason = f"reference data not found in {folder}: set FLUXORA_FIXTURES"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
