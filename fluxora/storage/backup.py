"""Backups: the whole database in PostgreSQL's custom format, to a file or an S3 bucket, and back from there.

Promises
- Reads and writes go on while a backup is made: it is one snapshot.
- An archive appears under its name only after it was written whole and read back: its checksum, and its contents as
  pg_restore lists them. What failed leaves nothing behind.
- A restore is one transaction: it happens whole, or the database stays as it was. Afterwards the database equals the
  archive. What could not be taken away by it (tables that the archive does not know) refuses it before it begins.
- Secrets are on no command line, in no result and in no log.

Everything here blocks: it is called from a thread, or from a program that does nothing else.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import IO

import msgspec

from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.storage.archives import CHUNK, SUFFIX, Archive, ArchiveError, Hashed, archive
from fluxora.storage.pg_programs import ProgramFailed, Programs, Server, last_words, server_of

HAS_TRANSACTION_TIMEOUT = 17  # the version of PostgreSQL that knows this setting, which newer programs always set
PASSING = ("webhook_claims", "webhook_workers", "limit_processes", "limit_rounds")
"""Tables that an archive has empty: who does what just now. A process that still is there would hold it for good."""
_TIMEOUT_LINE = b"SET transaction_timeout = 0;\n"
_PREAMBLE = 64  # lines of SQL among which it stands
_TABLE = re.compile(r"^\d+; \d+ \d+ TABLE (\S+) (\S+) ", re.MULTILINE)
_TABLES = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)
_END_OTHERS = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
_NAMED = "%Y%m%dT%H%M%SZ"
_LONGEST_LISTING = 64 << 20
_WAIT_S = 10

Progress = Callable[[int], None]


class BackupResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a backup or a restore. `error` is why it failed, in the words of the program that refused.

    `position` is that of the log after a restore: those above it are given again.
    """

    success: bool
    message: str
    error: str | None = None
    archive: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    position: int | None = None
    removed: list[str] = []


class Stop:
    """Ends what runs, from another thread; what it was doing fails then, and leaves nothing behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def __call__(self) -> None:
        """Stop it."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.kill()

    @contextmanager
    def ends(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Have `process` end by the end of the block, and at once when this is called."""
        with self._lock:
            self._running.add(process)
            if self.stopped:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
            process.kill()  # nothing to one that has ended; before its input ends, which could pass for a good end
            process.wait(_WAIT_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # of what was not written
                        pipe.close()


def default_name(now_s: float) -> str:
    """How an archive that is made now is called; names sort by time."""
    return f"fluxora-{datetime.fromtimestamp(now_s, UTC):{_NAMED}}{SUFFIX}"


class Newest(msgspec.Struct, frozen=True):
    """When the newest archive of a folder was made, in Unix seconds, by its name; None where there is none."""

    at_s: float | None
    error: str | None = None


def newest(folder: str) -> Newest:
    """The newest archive in `folder` (a path or s3://bucket/prefix, with a / at its end) among those named by us."""
    try:
        made = [at_s for place in archive(folder + default_name(0)).siblings() if (at_s := _made_at(place)) is not None]
    except (ConfigError, ArchiveError) as error:
        return Newest(None, str(error))
    return Newest(max(made, default=None))


def _made_at(place: Archive) -> float | None:
    """When one was made that is named by us, in Unix seconds; None for others."""
    name = place.name.rpartition("/")[2]
    try:
        return datetime.strptime(name, f"fluxora-{_NAMED}{SUFFIX}").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def backup(
    url: str, target: str, *, keep: int | None = None, progress: Progress | None = None, stop: Stop | None = None
) -> BackupResult:
    """Write the database at `url` to `target`: a path or s3://bucket/key, in a folder (…/) under a name of its own.

    With `keep`, only that many of the newest archives that are named by us stay in the folder, this one among them if
    it is. Raises nothing but defects: what went wrong is in the result.
    """
    began = time.monotonic()
    stop = stop or Stop()
    try:
        server = server_of(url)
        place = archive(target + default_name(time.time()) if target.endswith("/") else target)
        size = _dump(server, place, progress, stop)
        removed = [] if keep is None else _retire(place, keep)
    except (ConfigError, StorageUnavailable, ArchiveError, ProgramFailed) as error:
        return BackupResult(success=False, message="Backup failed", error=_told(error, stop))
    seconds = round(time.monotonic() - began, 3)
    return BackupResult(
        success=True, message="Backup written", archive=place.name, bytes=size, seconds=seconds, removed=removed
    )


def restore(
    url: str, source: str, *, disconnect: bool = False, progress: Progress | None = None, stop: Stop | None = None
) -> BackupResult:
    """Make the database at `url` what the archive at `source` holds.

    Other connections to it must have ended; with `disconnect` they are. Raises nothing but defects.
    """
    began = time.monotonic()
    stop = stop or Stop()
    try:
        place = archive(source)
        server = server_of(url)
        _check_archive(server.programs, place, stop)
        _check_database(server, place, stop, disconnect=disconnect)
        size = _load(server, place, progress, stop)
    except (ConfigError, StorageUnavailable, ArchiveError, ProgramFailed) as error:
        return BackupResult(success=False, message="Restore failed", error=_told(error, stop))
    seconds = round(time.monotonic() - began, 3)
    return BackupResult(
        success=True,
        message="Restored",
        archive=place.name,
        bytes=size,
        seconds=seconds,
        position=_position(server),
    )


def _position(server: Server) -> int | None:
    """Where the log ends; None where the database cannot say so just now: it is restored all the same."""
    try:
        ((position,),) = server.ask("SELECT position FROM log_head")
    except StorageUnavailable:
        return None
    return int(position)


def _told(error: Exception, stop: Stop) -> str:
    return "it was stopped" if stop.stopped else str(error)


# -- making one --------------------------------------------------------------------------------------------------------


def _dump(server: Server, place: Archive, progress: Progress | None, stop: Stop) -> int:
    command = [
        server.programs.path("pg_dump"),
        "--format=custom",
        "--no-password",
        "--lock-wait-timeout=60000",
        *(f"--exclude-table-data=*.{table}" for table in PASSING),
    ]
    with _running(server, command, stop, writes=True) as (process, said):
        assert process.stdout is not None

        def verify(written: IO[bytes], sha256: str) -> None:
            _verify(server.programs, written, sha256, place.name, stop)

        return place.write(
            Hashed(process.stdout, progress),  # type: ignore[arg-type]  # all that is asked of it is to be read
            lambda: _ended(process, "pg_dump", said),
            verify,
        )


def _verify(programs: Programs, written: IO[bytes], sha256: str, name: str, stop: Stop) -> None:
    hashed = Hashed(written)
    _listing(programs, hashed, stop)
    if hashed.sha256 != sha256:
        raise ArchiveError(f"{name}: what was read back differs from what was written")


def _retire(place: Archive, keep: int) -> list[str]:
    ours = [one for one in place.siblings() if _made_at(one) is not None and one.name != place.name]
    gone = ours[: max(0, len(ours) - (keep if _made_at(place) is None else keep - 1))]
    for one in gone:
        one.remove()
    return [one.name for one in gone]


# -- bringing one back -------------------------------------------------------------------------------------------------


def _check_archive(programs: Programs, place: Archive, stop: Stop) -> None:
    """Read it to its end: it must be an archive, and what its checksum says."""
    said = place.checksum()
    with place.read() as file:
        hashed = Hashed(file)
        _listing(programs, hashed, stop)
    if said is not None and hashed.sha256 != said:
        raise ArchiveError(f"{place.name}: the archive is not what its checksum says; it is damaged or incomplete")


def _check_database(server: Server, place: Archive, stop: Stop, *, disconnect: bool) -> None:
    with place.read() as file:
        known = set(_TABLE.findall(_listing(server.programs, Hashed(file), stop)))
    left = sorted(f"{schema}.{name}" for schema, name in server.ask(_TABLES) if (schema, name) not in known)
    if left:
        raise ConfigError(
            f"the database has tables that the archive does not know and that would stay: {', '.join(left[:8])}; "
            "restore into an empty database, or drop them first"
        )
    if disconnect:
        server.ask(_END_OTHERS)
    ((others,),) = server.ask(_OTHERS)
    if others != "0":
        raise ConfigError(
            f"{others} other connections to the database are open: stop every Fluxora on it first "
            "(--disconnect ends whatever is left)"
        )


def _load(server: Server, place: Archive, progress: Progress | None, stop: Stop) -> int:
    ways = ["--clean", "--if-exists", "--exit-on-error", "--no-password"]
    restore_program = server.programs.path("pg_restore")
    with place.read() as file:
        hashed = Hashed(file, progress)
        if server.programs.version >= HAS_TRANSACTION_TIMEOUT > server.version:
            _load_as_sql(server, [restore_program, *ways, "--file=-"], hashed, stop)
        else:
            command = [restore_program, *ways, "--single-transaction", f"--dbname={server.database}"]
            with _running(server, command, stop, reads=True) as (process, said):
                _feed(process, hashed)
                _ended(process, "pg_restore", said)
    return hashed.size


def _load_as_sql(server: Server, command: Sequence[str], source: Hashed, stop: Stop) -> None:
    """For a server older than the programs: it does not know a setting that they make, which is left out here."""
    psql = [
        server.programs.path("psql"),
        "--no-psqlrc",
        "--no-password",
        "--quiet",
        "--single-transaction",
        "--set=ON_ERROR_STOP=1",
        "--file=-",
    ]
    with (
        _running(server, command, stop, reads=True, writes=True) as (reader, said_by_reader),
        _running(server, psql, stop, reads=True) as (writer, said_by_writer),
    ):
        assert reader.stdout is not None
        assert writer.stdin is not None
        feeder = _Feeder(reader, source)
        feeder.start()
        try:
            for _ in range(_PREAMBLE):
                line = reader.stdout.readline()
                if line != _TIMEOUT_LINE:
                    writer.stdin.write(line)
            while data := reader.stdout.read(CHUNK):
                writer.stdin.write(data)
            feeder.done()
            _ended(reader, "pg_restore", said_by_reader)  # or psql, told of an end, would commit what it has
            writer.stdin.close()
        except BrokenPipeError:
            pass  # psql has refused something, and says what
        _ended(writer, "psql", said_by_writer)


# -- PostgreSQL's programs ---------------------------------------------------------------------------------------------


@contextmanager
def _running(
    server: Server, command: Sequence[str], stop: Stop, *, reads: bool = False, writes: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A program, ended with the block; `reads`, `writes`: over a pipe. Beside it, what it says of failures."""
    with tempfile.TemporaryFile() as said:  # a pipe could fill while nobody reads it
        process = subprocess.Popen(  # noqa: S603 (a program of PostgreSQL, no shell)
            command,
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.PIPE if writes else subprocess.DEVNULL,
            stderr=said,
            env=dict(server.environment),
        )
        with stop.ends(process):
            yield process, said


def _feed(process: subprocess.Popen[bytes], source: Hashed) -> None:
    """Give it everything; it may have had enough before."""
    assert process.stdin is not None
    try:
        while data := source.read(CHUNK):
            process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:
        while source.read(CHUNK):
            pass  # for its checksum


class _Feeder(threading.Thread):
    """`_feed` beside whoever reads what the program makes of it."""

    def __init__(self, process: subprocess.Popen[bytes], source: Hashed) -> None:
        super().__init__(name="restore-feeder", daemon=True)
        self._process = process
        self._source = source
        self._failure: Exception | None = None

    def run(self) -> None:
        """Until all is read; a source that fails ends the program."""
        try:
            _feed(self._process, self._source)
        except Exception as error:  # noqa: BLE001 (raised by `done`, in the thread that waits)
            self._failure = error
            self._process.kill()

    def done(self) -> None:
        """Raise what went wrong; the program has ended or is about to."""
        self.join(_WAIT_S)
        if self._failure is not None:
            raise self._failure


def _listing(programs: Programs, source: Hashed, stop: Stop) -> str:
    """What an archive says that it holds. All of `source` is read."""
    with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 (as above)
            [programs.path("pg_restore"), "--list"], stdin=subprocess.PIPE, stdout=listed, stderr=said
        )
        with stop.ends(process):
            _feed(process, source)
            _ended(process, "pg_restore", said)
        listed.seek(0)
        return listed.read(_LONGEST_LISTING).decode(errors="replace")


def _ended(process: subprocess.Popen[bytes], name: str, said: IO[bytes]) -> None:
    """Wait for its end.

    Raises:
        ProgramFailed: it did not do its work.
    """
    if process.wait() != 0:
        said.seek(0)
        raise ProgramFailed(f"{name}: {last_words(said.read(CHUNK))}")
