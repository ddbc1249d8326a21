"""The runtime of the ingest benchmark in a process of its own: says when it begins, runs until its input ends."""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import trio

import fluxora
from bench.child import say
from fluxora import logs
from fluxora.config import Config, Contract, HttpConfig, SourceConfig, StorageConfig

PROFILE_LINES = 25
THREADS = ("trio", "storage")


class Task(msgspec.Struct, kw_only=True):
    """What to ingest from where into what."""

    database_url: str
    rpc_url: str
    contract_id: str
    passphrase: str
    start_ledger: int
    profile: str | None


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    logs.configure("info", human=False)
    with _profiled(task.profile):
        trio.run(_ingest, task)


async def _ingest(task: Task) -> None:
    config = Config(
        contracts=(Contract(id=task.contract_id),),
        storage=StorageConfig(database_url=task.database_url),
        http=HttpConfig(port=0),
        source=SourceConfig(
            kind="rpc",
            rpc_urls=(task.rpc_url,),
            network_passphrase=task.passphrase,
            start_ledger=task.start_ledger,
            poll_interval_s=0.2,
        ),
    )
    say({"began": time.monotonic()})
    async with fluxora.open_runtime(config):
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


@contextmanager
def _profiled(thread: str | None) -> Iterator[None]:
    """Profile one thread; the table is the last line said."""
    if thread is None:
        yield
        return
    profile = cProfile.Profile()
    if thread == "trio":
        profile.enable()
    else:
        _enable_in(thread, profile)
    try:
        yield
    finally:
        profile.disable()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(PROFILE_LINES)
        say({"profile": text.getvalue()})


def _enable_in(name: str, profile: cProfile.Profile) -> None:
    """Enable a profile in the thread of that name as soon as it starts, which is the only one to do it."""

    def begin(_frame: object, _event: str, _argument: object) -> None:
        sys.setprofile(None)
        if threading.current_thread().name == f"fluxora-{name}":
            profile.enable()

    threading.setprofile(begin)


if __name__ == "__main__":
    main()
