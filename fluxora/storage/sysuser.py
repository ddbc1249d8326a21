"""The system user of embedded PostgreSQL when the program runs as root, which PostgreSQL refuses to.

The owner of existing data is kept; else the user `fluxora` is taken, and made where it is missing.
"""

from __future__ import annotations

import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fluxora import logs
from fluxora.errors import ConfigError

NAME = "fluxora"

log = logs.get("embedded")


@dataclass(frozen=True)
class Owner:
    """Numeric ids to run the server with."""

    uid: int
    gid: int


def server_owner(data: Path) -> Owner:
    """Who runs the server on `data`.

    Raises:
        ConfigError: no user can be found or made.
    """
    try:
        existing = data.stat().st_uid
    except FileNotFoundError:
        existing = 0
    try:
        entry = pwd.getpwuid(existing) if existing else pwd.getpwnam(NAME)
    except KeyError:
        entry = _make()
    if existing not in (0, entry.pw_uid):  # the data came with another machine's ids
        shutil.chown(data, entry.pw_uid, entry.pw_gid)
        for path in data.rglob("*"):
            shutil.chown(path, entry.pw_uid, entry.pw_gid)
    return Owner(entry.pw_uid, entry.pw_gid)


def let_through(folder: Path) -> None:
    """Let other users pass `folder` and those above it; pass, not list. Nothing below it is touched."""
    for part in (folder, *folder.parents):
        mode = part.stat().st_mode
        if not mode & stat.S_IXOTH:
            log.warning("embedded.directory_opened", directory=str(part), added="o+x")
            part.chmod(mode | stat.S_IXOTH)


def let_run(programs: Path) -> None:
    """Let other users run PostgreSQL's programs, which may have been installed under a strict umask."""
    let_through(programs)
    if (programs / "initdb").stat().st_mode & stat.S_IXOTH and (programs / "postgres").stat().st_mode & stat.S_IROTH:
        return
    for part in programs.parent.rglob("*"):  # bin, lib and share of the one installation
        if not part.is_symlink():
            mode = part.stat().st_mode
            runs = stat.S_IXOTH if mode & stat.S_IXUSR else 0
            part.chmod(mode | stat.S_IROTH | runs)


def _make() -> pwd.struct_passwd:
    commands = (
        ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", NAME],
        ["adduser", "-S", "-D", "-H", NAME],  # BusyBox
    )
    for command in commands:
        program = shutil.which(command[0])
        if program is not None:
            try:
                subprocess.run([program, *command[1:]], check=True, capture_output=True, timeout=30)  # noqa: S603
                return pwd.getpwnam(NAME)
            except (subprocess.SubprocessError, OSError, KeyError) as error:
                log.warning("embedded.user_not_made", program=program, error=str(error))
    raise ConfigError(
        f"embedded PostgreSQL does not run as root and no system user {NAME!r} could be made: "
        "run as another user, make that user, or set DATABASE_URL"
    )
