"""`fluxora backup` and `fluxora restore`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fluxora.config import Config
from fluxora.storage.backup import BackupResult, backup, restore
from fluxora.storage.embedded import EmbeddedServer

EPILOG = """\
TARGET is a file, a folder (with a / at its end, for a name with the time in it) or s3://bucket/key, streamed there and
verified. S3 takes its endpoint, region and credentials from the variables and files of the AWS tools (AWS_PROFILE,
AWS_ENDPOINT_URL_S3, ...). The database is the one of DATABASE_URL, or the embedded one below FLUXORA_DATA_DIR.
The result is one JSON object on standard output: {"success", "message", "error"?, ...}. Exit code 0 or 1.
"""
_SHOW_EVERY_S = 0.5


def add_backup_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `fluxora backup`."""
    parser.add_argument("target", help="where to: a file, a folder/ or s3://bucket/key")
    parser.add_argument(
        "--keep",
        type=_positive,
        metavar="N",
        help="of the archives in its folder that are named by their time (fluxora-*Z.dump), keep the newest N",
    )


def add_restore_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `fluxora restore`."""
    parser.add_argument("source", help="what from: a file or s3://bucket/key")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    parser.add_argument("--disconnect", action="store_true", help="end the other connections to the database first")


def run_backup(arguments: argparse.Namespace) -> int:
    """Write one archive.

    Raises:
        ConfigError: the configuration cannot work.
    """
    with _database() as url:
        return _report(backup(url, arguments.target, keep=arguments.keep, progress=_progress("written")))


def run_restore(arguments: argparse.Namespace) -> int:
    """Make the database what an archive holds.

    Raises:
        ConfigError: the configuration cannot work.
    """
    if not arguments.yes:
        if not sys.stdin.isatty():
            print("fluxora: a restore replaces the whole database; say --yes if that is meant", file=sys.stderr)
            return 2
        answer = input("This replaces everything in the database by what the archive holds. Type yes to go on: ")
        if answer.strip() != "yes":
            print("fluxora: nothing was done", file=sys.stderr)
            return 1
    with _database() as url:
        return _report(restore(url, arguments.source, disconnect=arguments.disconnect, progress=_progress("restored")))


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number from 1 on is needed")
    return int(text)


@contextmanager
def _database() -> Iterator[str]:
    """The URL of the configured database; the embedded one runs for the length of the block at least."""
    storage = Config.from_env(os.environ).storage
    if storage.database_url is not None:
        yield storage.database_url
        return
    server = EmbeddedServer(Path(storage.data_dir))
    server.open()
    try:
        yield server.url
    finally:
        server.close()


class _Meter:
    """Says on a terminal how far it is, now and then."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._next = 0.0

    def __call__(self, size: int) -> None:
        """`size`: bytes so far."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SHOW_EVERY_S
            print(f"\r{size / 1e6:,.1f} MB {self._verb}", end="", file=sys.stderr, flush=True)


def _progress(verb: str) -> _Meter | None:
    return _Meter(verb) if sys.stderr.isatty() else None


def _report(result: BackupResult) -> int:
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(json.dumps(msgspec.to_builtins(result)))
    return 0 if result.success else 1
