from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from fluxora.actors import backups as backups_module
from fluxora.actors.backups import RETRY_S, Backups
from fluxora.config import BackupConfig, StorageConfig
from fluxora.errors import ConfigError
from fluxora.storage.backup import default_name, newest

DAY_S = 86_400.0
LONGEST_S = 60.0


class Clock:
    """The world's clock, which the test sets; trio's own is the one that jumps."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def archives(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.dump"))


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(LONGEST_S):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.01)


def made(url: str, folder: Path, clock: Clock, **options: float) -> Backups:
    return Backups(url, BackupConfig(target=f"{folder}/", **options), clock=clock, draw=lambda: 0.5)


async def test_one_is_made_where_there_is_none_and_the_next_when_it_is_old(
    storage_config: StorageConfig, tmp_path: Path, nursery: trio.Nursery
) -> None:
    folder, clock = tmp_path / "kept", Clock(time.time())
    url = storage_config.database_url or ""
    first = made(url, folder, clock)
    await nursery.start(first.run)
    await until(lambda: first.status.newest_s is not None)
    assert len(archives(folder)) == 1
    first.drain()
    again = made(url, folder, clock)  # as after a restart
    await nursery.start(again.run)
    await until(lambda: again.status.newest_s is not None)
    assert len(archives(folder)) == 1
    again.drain()
    clock.now_s += 0.99 * DAY_S
    early = made(url, folder, clock)
    await nursery.start(early.run)
    await until(lambda: early.status.newest_s is not None)
    assert len(archives(folder)) == 1
    early.drain()
    clock.now_s += 0.03 * DAY_S
    late = made(url, folder, clock)
    await nursery.start(late.run)
    await until(lambda: late.status.newest_s == clock.now_s)
    late.drain()
    assert late.status.failures == 0


async def test_the_oldest_go(storage_config: StorageConfig, tmp_path: Path, nursery: trio.Nursery) -> None:
    now_s = time.time()
    for days in range(2, 7):
        (tmp_path / default_name(now_s - days * DAY_S)).write_bytes(b"old")
    before = archives(tmp_path)
    backups = made(storage_config.database_url or "", tmp_path, Clock(now_s), keep=3)
    await nursery.start(backups.run)
    await until(lambda: backups.status.newest_s == now_s)
    backups.drain()
    assert archives(tmp_path)[:2] == before[-2:]
    assert len(archives(tmp_path)) == 3


async def test_what_fails_is_counted_and_tried_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads are at work in between
    backups = made(f"postgresql://x@/x?host={tmp_path}", tmp_path, Clock(time.time()))
    async with trio.open_nursery() as nursery:
        await nursery.start(backups.run)
        began = trio.current_time()
        while backups.status.failures < 3:
            await trio.sleep(RETRY_S / 10)  # which costs no time, but where threads are at work
        assert trio.current_time() - began >= 2 * RETRY_S
        backups.drain()
    assert archives(tmp_path) == []


async def test_a_stop_gives_up_what_is_being_written(
    storage_config: StorageConfig, tmp_path: Path, postgres_run: object
) -> None:
    import asyncpg

    from fluxora.storage.bridge import open_bridge

    url = storage_config.database_url or ""
    folder = tmp_path / "kept"
    backups = made(url, folder, Clock(time.time()))
    async with open_bridge() as bridge:

        async def lock() -> asyncpg.Connection:
            connection = await asyncpg.connect(url)
            await connection.execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            return connection

        async def dumping() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(await connection.fetchval(waiting))

        connection = await bridge.run(lock)
        async with trio.open_nursery() as nursery:
            await nursery.start(backups.run)
            with trio.fail_after(LONGEST_S):
                while not await bridge.run(dumping):
                    await trio.testing.wait_all_tasks_blocked(0.01)
            backups.drain()

        async def close() -> None:
            connection.terminate()

        await bridge.run(close)
    assert backups.status.failures == 0
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("lists", [True, False])
async def test_a_bucket_that_does_not_answer_holds_no_stop_up(
    storage_config: StorageConfig, monkeypatch: pytest.MonkeyPatch, lists: bool
) -> None:
    """It is asked in a thread that nothing ends: whether it lists its archives and takes none, or not even that."""
    pytest.importorskip("boto3", reason="the S3 client is not installed")
    monkeypatch.setattr(backups_module, "GIVE_UP_S", 0.1)
    asked = trio.Event()

    async def bucket(stream: trio.SocketStream) -> None:
        try:
            while request := await stream.receive_some(100_000):
                if not (lists and request.startswith(b"GET ")):
                    asked.set()
                    await trio.sleep_forever()
                body = b"<ListBucketResult></ListBucketResult>"
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{listener.socket.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key-of-the-test",
            "AWS_SECRET_ACCESS_KEY": "s3cret-word",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        nursery.start_soon(trio.serve_listeners, bucket, [listener])
        backups = Backups(storage_config.database_url or "", BackupConfig(target="s3://bucket/kept/"))
        with trio.fail_after(LONGEST_S / 3):
            async with trio.open_nursery() as running:
                await running.start(backups.run)
                await asked.wait()
                backups.drain()
        assert backups.status.failures == 0
        nursery.cancel_scope.cancel()


def test_a_target_is_a_folder() -> None:
    with pytest.raises(ConfigError, match="FLUXORA_BACKUP_TARGET"):
        BackupConfig(target="/backups/one.dump")


def test_the_newest_is_known_by_its_name(tmp_path: Path) -> None:
    assert newest(f"{tmp_path}/").at_s is None
    for name in (default_name(1_700_000_000), default_name(1_800_000_000), "zzz.dump", "fluxora-later.dump"):
        (tmp_path / name).write_bytes(b"")
    assert newest(f"{tmp_path}/").at_s == 1_800_000_000
    assert newest("gs://nowhere/").error
