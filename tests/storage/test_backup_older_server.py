"""A server that is older than the newest programs: they set what it does not know."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dumped import FILL

from fluxora.storage import pg_programs
from fluxora.storage.backup import HAS_TRANSACTION_TIMEOUT, backup, restore
from fluxora.storage.embedded import EmbeddedServer
from fluxora.storage.migrate import migrations

OLDER = sorted(
    folder
    for folder in Path("/usr/lib/postgresql").glob("*/bin")
    if (folder / "postgres").exists() and 14 <= int(folder.parent.name) < HAS_TRANSACTION_TIMEOUT
)


class Older(EmbeddedServer):
    """Of another version than the wheel's."""

    bin = property(lambda _self: OLDER[0])  # type: ignore[assignment]

    def _pg(self, program: str, *args: str, **options: Any) -> None:
        super()._pg(program, *(arg for arg in args if arg != "--locale-provider=builtin"), **options)


@pytest.fixture(scope="module")
def older() -> Iterator[EmbeddedServer]:
    if not OLDER:
        pytest.skip("no server of PostgreSQL 14 to 16 is installed")
    with tempfile.TemporaryDirectory(prefix="fluxora-older-") as folder:
        Path(folder).chmod(0o755)
        server = Older(Path(folder) / "d")
        server.open()
        try:
            yield server
        finally:
            server.close()


@pytest.mark.parametrize("programs", ["its own", "newer"])
def test_there_and_back(older: EmbeddedServer, tmp_path: Path, programs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if programs == "newer":
        newest = max(pg_programs.installed().items())
        assert newest[0] >= HAS_TRANSACTION_TIMEOUT
        monkeypatch.setattr(pg_programs, "installed", lambda: dict([newest]))
    url = older.url
    psql(older, "DROP SCHEMA public CASCADE; CREATE SCHEMA public;" + "".join(one.sql for one in migrations()))
    psql(older, FILL)
    before = dump(older)
    result = backup(url, str(tmp_path / "x.dump"))
    assert result.success, result
    psql(older, "DELETE FROM events WHERE position > 10; INSERT INTO ledgers VALUES (1, 1, 'x', NULL, 1)")
    assert dump(older) != before
    result = restore(url, str(tmp_path / "x.dump"))
    assert result.success, result
    assert dump(older) == before
    # What breaks off in the middle changes nothing.
    whole = (tmp_path / "x.dump").read_bytes()
    (tmp_path / "x.dump.sha256").unlink()
    for cut in range(len(whole) // 3, len(whole), len(whole) // 7):
        (tmp_path / "x.dump").write_bytes(whole[:cut])
        assert not restore(url, str(tmp_path / "x.dump")).success
        assert dump(older) == before


def psql(server: EmbeddedServer, sql: str) -> None:
    command = [str(server.bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "--dbname", server.url, "-f", "-"]
    done: Any = subprocess.run(command, input=sql.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def dump(server: EmbeddedServer) -> str:
    command = [str(server.bin / "pg_dump"), "--dbname", server.url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))
