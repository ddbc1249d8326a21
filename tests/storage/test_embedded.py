from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from scripted import CONTRACT, DECIMALS, batch, created, withdrew

from fluxora.config import StorageConfig
from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.protocol.messages import stream_id
from fluxora.storage.embedded import EmbeddedServer, open_embedded
from fluxora.storage.store import EventQuery, open_store


@pytest.fixture
def data_dir() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="fluxora-"))
    yield place
    server = EmbeddedServer(place)
    if server.answers():
        server.open()
        server.close()
    shutil.rmtree(place)


def pid_of(server: EmbeddedServer) -> int:
    return int((server.data / "postmaster.pid").read_text().split("\n", 1)[0])


async def test_data_survives_a_restart(data_dir: Path) -> None:
    config = StorageConfig(data_dir=data_dir)
    async with open_store(config, decimals=DECIMALS) as store:
        assert await store.migrate() != []
        lease = await store.try_lease()
        assert lease is not None
        await store.append([batch([created(100, 0, 1)])], lease=lease.number)
    assert not EmbeddedServer(data_dir).answers()
    async with open_store(config, decimals=DECIMALS) as store:
        assert await store.migrate() == []
        assert await store.position() == 1
        settings = await store._read(_settings)
        assert settings == {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "listen_addresses": ""}


async def _settings(connection) -> dict[str, str]:
    names = ["fsync", "full_page_writes", "synchronous_commit", "listen_addresses"]
    return {name: await connection.fetchval(f"SHOW {name}") for name in names}


async def test_two_users_share_the_server_and_the_last_one_stops_it(data_dir: Path) -> None:
    async with open_embedded(data_dir) as first:
        pid = pid_of(EmbeddedServer(data_dir))
        async with open_embedded(data_dir) as second:
            assert first == second
        assert EmbeddedServer(data_dir).answers()
        assert pid_of(EmbeddedServer(data_dir)) == pid
    assert not EmbeddedServer(data_dir).answers()


_USER = """
import sys, time
from pathlib import Path
from fluxora.storage.embedded import EmbeddedServer
EmbeddedServer(Path(sys.argv[1])).open()
print("open", flush=True)
time.sleep(600)
"""


async def test_killed_user_leaves_nothing_stale(data_dir: Path) -> None:
    def user() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _USER, str(data_dir)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
        )

    with await trio.to_thread.run_sync(user) as process:
        assert process.stdout is not None
        while await trio.to_thread.run_sync(process.stdout.readline) != "open\n":  # after the log's lines
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(process.wait)
    server = EmbeddedServer(data_dir)
    assert server.answers()  # its server outlives it
    pid = pid_of(server)
    async with open_embedded(data_dir):
        assert pid_of(server) == pid
    assert not server.answers()  # and the dead one no longer counts as a user


async def test_killed_server_recovers_what_was_committed(data_dir: Path) -> None:
    config = StorageConfig(data_dir=data_dir)
    async with open_store(config, decimals=DECIMALS) as store:
        await store.migrate()
        lease = await store.try_lease()
        assert lease is not None
        await store.append([batch([created(100, 0, 1)])], lease=lease.number)
        os.kill(pid_of(EmbeddedServer(data_dir)), signal.SIGQUIT)  # an immediate shutdown: no checkpoint
        with trio.fail_after(10):
            await lease.lost.wait()
    async with open_store(config, decimals=DECIMALS) as store:
        assert len(await store.events(EventQuery())) == 1


async def test_outage_fails_reads_in_time_and_heals_by_itself(data_dir: Path) -> None:
    config = StorageConfig(data_dir=data_dir)
    async with open_store(config, decimals=DECIMALS) as store:
        await store.migrate()
        lease = await store.try_lease()
        assert lease is not None
        await store.append([batch([created(100, 0, 1)])], lease=lease.number)
        server = EmbeddedServer(data_dir)
        await trio.to_thread.run_sync(stop_now, server)
        for _ in range(3):
            started = trio.current_time()
            with pytest.raises(StorageUnavailable):
                await store.stream(stream_id(CONTRACT, 1, 1))
            assert trio.current_time() - started < config.read_deadline_s + 0.3
        with pytest.raises(StorageUnavailable):
            await store.append([batch([withdrew(101, 0, 1)])], lease=lease.number)
        with pytest.raises(StorageUnavailable):
            await store.try_lease()
        with trio.fail_after(5):
            await lease.lost.wait()
        await trio.to_thread.run_sync(server.open)
        assert await store.stream(stream_id(CONTRACT, 1, 1)) is not None
        again = await store.try_lease()
        assert again is not None
        done = await store.append([batch([withdrew(101, 0, 1)])], lease=again.number)
        assert done.position == 2
        await trio.to_thread.run_sync(server.close)


async def test_server_that_hangs_fails_reads_in_time_and_heals(data_dir: Path) -> None:
    config = StorageConfig(data_dir=data_dir, pool_size=2)
    async with open_store(config, decimals=DECIMALS) as store:
        await store.migrate()
        assert await store.position() == 0
        family = [pid_of(EmbeddedServer(data_dir)), *children_of(pid_of(EmbeddedServer(data_dir)))]
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):  # more than there are connections
                started = trio.current_time()
                with pytest.raises(StorageUnavailable):
                    await store.position()
                assert trio.current_time() - started < config.read_deadline_s + 0.3
        finally:
            for pid in family:
                os.kill(pid, signal.SIGCONT)
        with trio.fail_after(10):
            while True:
                try:
                    assert await store.position() == 0
                except StorageUnavailable:
                    continue
                break


def stop_now(server: EmbeddedServer) -> None:
    server._prepare_root()
    server._pg("pg_ctl", "stop", "-D", str(server.data), "-m", "immediate", "-w")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_start_that_was_killed_midway_is_done_again(data_dir: Path) -> None:
    half = data_dir / "postgres.new-1"
    half.mkdir()
    (half / "PG_VERSION").write_text("18")
    async with open_embedded(data_dir):
        assert not half.exists()


async def test_pid_file_of_somebody_else_does_not_hinder_the_start(data_dir: Path) -> None:
    async with open_embedded(data_dir):
        pid_file = EmbeddedServer(data_dir).data / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
    lines[0] = str(os.getpid())  # as after a container restart, where numbers begin anew
    pid_file.write_text("\n".join(lines) + "\n")
    async with open_embedded(data_dir):
        assert pid_of(EmbeddedServer(data_dir)) != os.getpid()


async def test_unusable_data_directories_are_refused_in_words(data_dir: Path) -> None:
    for spoilt in ("a,b", 'a"b', "a$b", "a`b", "a\nb"):
        with pytest.raises(ConfigError, match="PostgreSQL cannot use a path with"):
            await open_embedded(data_dir / spoilt).__aenter__()
    with pytest.raises(ConfigError, match="too long for a Unix socket"):
        async with open_embedded(data_dir / ("d" * 120)):
            pass
    (data_dir / "file").touch()
    with pytest.raises(ConfigError, match="not writable"):
        async with open_embedded(data_dir / "file"):
            pass
    (data_dir / "full" / "postgres").mkdir(parents=True)
    (data_dir / "full" / "postgres" / "letter.txt").touch()
    with pytest.raises(ConfigError, match="holds no PostgreSQL data"):
        async with open_embedded(data_dir / "full"):
            pass
