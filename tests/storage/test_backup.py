"""Backups with PostgreSQL's own programs: what is written, what comes back, and what is left of what fails."""

from __future__ import annotations

import os
import subprocess
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from dumped import ROWS, name_of, text_of

from fluxora.storage import backup as backups
from fluxora.storage.backup import Stop, backup, restore
from fluxora.storage.pg_programs import installed


def test_a_restored_database_equals_the_one_that_was_backed_up(
    postgres_run: Any, filled: str, empty: str, other: str, tmp_path: Path
) -> None:
    result = backup(filled, f"{tmp_path}/kept/")
    assert result.success, result
    assert result.archive is not None
    archive = Path(result.archive)
    assert archive.stat().st_size == result.bytes
    assert archive.stat().st_mode & 0o077 == 0, "others can read it"
    checked = subprocess.run(
        ["sha256sum", "-c", f"{archive.name}.sha256"], cwd=archive.parent, capture_output=True, check=False
    )
    assert checked.returncode == 0
    assert len(list(archive.parent.iterdir())) == 2, "something else was left"
    before = text_of(postgres_run, filled)
    assert before.count("top_up") == ROWS
    for target in (empty, other):
        assert text_of(postgres_run, target) != before
        assert restore(target, str(archive)).success
        assert text_of(postgres_run, target) == before


def test_it_is_one_snapshot_while_the_database_is_written_to(
    postgres_run: Any, filled: str, empty: str, tmp_path: Path
) -> None:
    writing, stop = threading.Event(), threading.Event()

    def write() -> None:
        import asyncio

        import asyncpg

        async def pairs() -> None:
            connection = await asyncpg.connect(filled)
            number = ROWS
            try:
                while not stop.is_set():
                    async with connection.transaction():  # always two at a time
                        for _ in range(2):
                            number += 1
                            await connection.execute("INSERT INTO ledgers VALUES (1, $1, 'x', NULL, 0)", number)
                    writing.set()
            finally:
                await connection.close()

        asyncio.run(pairs())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert writing.wait(30)
        result = backup(filled, str(tmp_path / "live.dump"))
    finally:
        stop.set()
        writer.join()
    assert result.success, result
    assert restore(empty, str(tmp_path / "live.dump")).success
    ((count,),) = postgres_run.sql("SELECT count(*) FROM ledgers", name_of(empty))
    assert count > 0
    assert count % 2 == 0, "half of a transaction"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "postgresql://"),
        ("mysql://x/y", "postgresql://"),
        ("postgresql://user:s3cret-word@[broken/db", "postgresql://"),
        ("postgresql://user:s3cret-word@127.0.0.1/db?nonsense=1", "nonsense"),
    ],
)
def test_a_bad_url_is_refused_before_anything_is_spawned(
    url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed()  # their versions are asked for once

    def spawned(*_args: object, **_options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", spawned)
    for result in (backup(url, str(tmp_path / "x.dump")), restore(url, str(tmp_path / "x.dump"))):
        assert not result.success
        assert told in (result.error or "")
        assert "s3cret-word" not in repr(result)
    assert list(tmp_path.iterdir()) == []


def test_bad_credentials(postgres_run: Any, tmp_path: Path) -> None:
    url = postgres_run.url("fluxora").replace("fluxora@", "nobody-here:s3cret-word@")
    result = backup(url, str(tmp_path / "x.dump"))
    assert not result.success
    assert "nobody-here" in (result.error or "")
    assert "s3cret-word" not in repr(result)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    result = backup(f"postgresql://x:s3cret-word@/x?host={tmp_path}", str(tmp_path / "x.dump"))
    assert not result.success
    assert "PostgreSQL cannot answer" in (result.error or "")
    assert "s3cret-word" not in repr(result)


def test_a_full_disk_leaves_nothing_behind(filled: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a file system")
    try:
        result = backup(filled, str(small / "x.dump"))
        assert not result.success
        assert "No space left" in (result.error or "")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_older_archive_stays_where_its_successor_fails(postgres_run: Any, filled: str, tmp_path: Path) -> None:
    target = tmp_path / "x.dump"
    assert backup(filled, str(target)).success
    before = target.read_bytes()
    postgres_run.sql("ALTER TABLE events RENAME TO events_", name_of(filled))
    stop = Stop()
    stop()
    assert not backup(filled, str(target), stop=stop).success
    assert target.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.dump", "x.dump.sha256"]


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "no archive", "plain SQL", "empty", "absent"])
def test_a_damaged_archive_changes_nothing(
    postgres_run: Any, filled: str, other: str, tmp_path: Path, damage: str, *, checksum: bool
) -> None:
    target = tmp_path / "x.dump"
    assert backup(filled, str(target)).success
    whole = target.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "truncated": whole[: len(whole) - 2_000],
        "flipped": whole[:middle] + bytes(octet ^ 0xFF for octet in whole[middle : middle + 64]) + whole[middle + 64 :],
        "no archive": b"\0" * 10_000,
        "plain SQL": text_of(postgres_run, filled).encode(),
        "empty": b"",
    }
    if damage == "absent":
        target.unlink()
    else:
        target.write_bytes(damaged[damage])
    if not checksum:
        target.with_name("x.dump.sha256").unlink()
    before = text_of(postgres_run, other)
    result = restore(other, str(target))
    assert not result.success
    assert result.error
    assert text_of(postgres_run, other) == before


def test_live_connections_refuse_a_restore(postgres_run: Any, filled: str, other: str, tmp_path: Path) -> None:
    target = str(tmp_path / "x.dump")
    assert backup(filled, target).success
    environment = {**os.environ, "PGAPPNAME": "somebody"}
    command = [str(postgres_run.server.bin / "psql"), "--dbname", other, "-qAt"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as somebody:
        assert somebody.stdin is not None
        assert somebody.stdout is not None
        somebody.stdin.write(b"SELECT 1;\n")
        somebody.stdin.flush()
        assert somebody.stdout.readline() == b"1\n"
        before = text_of(postgres_run, other)
        refused = restore(other, target)
        assert not refused.success
        assert "1 other connections" in (refused.error or "")
        assert text_of(postgres_run, other) == before
        assert restore(other, target, disconnect=True).success
        somebody.stdin.close()
    assert text_of(postgres_run, other) == text_of(postgres_run, filled)


def test_what_a_restore_could_not_take_away_refuses_it(
    postgres_run: Any, filled: str, other: str, tmp_path: Path
) -> None:
    target = str(tmp_path / "x.dump")
    assert backup(filled, target).success
    for name in ("newer", '"odd, ""name"""'):
        postgres_run.sql(f"CREATE TABLE {name} (x int)", name_of(other))
    before = text_of(postgres_run, other)
    result = restore(other, target)
    assert not result.success
    assert 'public.newer, public.odd, "name"' in (result.error or "")
    assert text_of(postgres_run, other) == before


def test_only_the_newest_archives_are_kept(filled: str, tmp_path: Path) -> None:
    for day in range(1, 6):
        (tmp_path / f"fluxora-2026010{day}T000000Z.dump").write_bytes(b"old")
        (tmp_path / f"fluxora-2026010{day}T000000Z.dump.sha256").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("not ours")
    result = backup(filled, f"{tmp_path}/", keep=3)
    assert result.success
    assert [Path(name).name[:16] for name in result.removed] == [
        "fluxora-20260101",
        "fluxora-20260102",
        "fluxora-20260103",
    ]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len([name for name in left if name.endswith(".dump")]) == 3
    assert len([name for name in left if name.endswith(".sha256")]) == 3
    assert "notes.txt" in left


def test_archives_of_other_names_are_nobodys_to_remove(filled: str, tmp_path: Path) -> None:
    """A folder may hold another database's dumps, and archives that somebody named, on either side of ours."""
    others = ["another.dump", "before-upgrade.dump", "zebra.dump"]
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    for day in range(1, 4):
        (tmp_path / f"fluxora-2026010{day}T000000Z.dump").write_bytes(b"old")
    result = backup(filled, f"{tmp_path}/", keep=2)
    assert [Path(name).name[:16] for name in result.removed] == ["fluxora-20260101", "fluxora-20260102"]
    named = backup(filled, f"{tmp_path}/aaa.dump", keep=1)
    assert [Path(name).name[:16] for name in named.removed] == ["fluxora-20260103"]
    left = {path.name for path in tmp_path.glob("*.dump")}
    assert left == {*others, "aaa.dump", Path(str(result.archive)).name}


def test_stopped_in_the_middle(postgres_run: Any, filled: str, tmp_path: Path) -> None:
    """While pg_dump waits for a lock; nothing else would end it for a minute."""
    stop = Stop()
    command = [str(postgres_run.server.bin / "psql"), "--dbname", filled, "-qAt"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as somebody:
        assert somebody.stdin is not None
        assert somebody.stdout is not None
        somebody.stdin.write(b"BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE; SELECT 1;\n")
        somebody.stdin.flush()
        assert somebody.stdout.readline() == b"1\n"
        results: list[backups.BackupResult] = []
        making = threading.Thread(target=lambda: results.append(backup(filled, str(tmp_path / "x.dump"), stop=stop)))
        making.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'fluxora-backup' AND wait_event_type = 'Lock'"
        )
        while postgres_run.sql(waiting)[0][0] == 0:
            assert making.is_alive(), results
        stop()
        making.join(30)
        somebody.stdin.close()
    assert [(one.success, one.error) for one in results] == [(False, "it was stopped")]
    assert list(tmp_path.iterdir()) == []


def test_no_secret_on_a_command_line(
    postgres_run: Any, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    real = subprocess.Popen

    class Noted(real):  # type: ignore[misc,valid-type]
        def __init__(self, command: list[str], **options: object) -> None:
            lines.append(" ".join(command))
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    url = filled.replace("fluxora@", "fluxora:s3cret-word@")
    assert backup(url, str(tmp_path / "x.dump")).success
    assert restore(url, str(tmp_path / "x.dump")).success
    assert len(lines) >= 5
    assert not [line for line in lines if "s3cret-word" in line or "postgresql://" in line]


def test_the_checksum_is_of_the_archive(filled: str, tmp_path: Path) -> None:
    assert backup(filled, str(tmp_path / "x.dump")).success
    told = (tmp_path / "x.dump.sha256").read_text()
    assert told == f"{sha256((tmp_path / 'x.dump').read_bytes()).hexdigest()}  x.dump\n"
