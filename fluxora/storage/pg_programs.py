"""PostgreSQL's own programs: which of those that are installed suit a server, and how they are told where it is.

They are told through the environment, never by arguments: those can be read by every user of the machine.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from fluxora.errors import ConfigError, StorageUnavailable
from fluxora.storage.embedded import installed_programs

ASK_LIMIT_S = 20
_DEBIAN = Path("/usr/lib/postgresql")
_SAID = 2_000  # characters of what a program said
# What a connection URI may say (libpq, section 32.1.2), as the variable that says the same.
_VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "channel_binding": "PGCHANNELBINDING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "options": "PGOPTIONS",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
}


class ProgramFailed(Exception):
    """One of PostgreSQL's programs did not do its work; the message is what it said."""


@dataclass(frozen=True)
class Server:
    """A database, and the programs that suit it. `environment` holds the password."""

    database: str
    version: int  # major
    programs: Programs
    environment: Mapping[str, str] = field(repr=False)

    def ask(self, sql: str) -> list[list[str]]:
        """The rows of a query, as text.

        Raises:
            StorageUnavailable: the server cannot be reached, or refuses.
        """
        return _ask(self.programs, self.environment, sql)


@dataclass(frozen=True)
class Programs:
    """A folder of programs of one major version."""

    folder: Path
    version: int

    def path(self, name: str) -> str:
        """The program's file."""
        return str(self.folder / name)


def server_of(url: str) -> Server:
    """The server of a database URL, asked for its version.

    Raises:
        ConfigError: the URL cannot be used, or no program on this machine is new enough for the server.
        StorageUnavailable: the server cannot be reached, or refuses.
    """
    environment = environment_of(url)
    everything = installed()
    if not everything:
        raise ConfigError("PostgreSQL's programs (pg_dump, pg_restore, psql) are not installed; install a client of it")
    newest = everything[max(everything)]
    (row,) = _ask(newest, environment, "SELECT current_setting('server_version_num'), current_database()")
    version = int(row[0]) // 10_000
    suitable = [number for number in everything if number >= version]
    if not suitable:
        raise ConfigError(
            f"the server is PostgreSQL {version} and the newest pg_dump here is of {newest.version}: "
            f"install PostgreSQL's client programs of version {version}"
        )
    return Server(row[1], version, everything[min(suitable)], environment)


def environment_of(url: str) -> dict[str, str]:
    """The variables that tell libpq what `url` says; those of this process that say something else are left out.

    Raises:
        ConfigError: it is no URL of PostgreSQL, or says what a variable cannot.
    """
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        usable = parts.scheme in {"postgresql", "postgres"}
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("DATABASE_URL: a URL that starts with postgresql:// is needed")
    said = {"dbname": unquote(parts.path.removeprefix("/"))}
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    said["user"] = unquote(user)
    if colon:
        said["password"] = unquote(password)
    if hosts:
        pairs = [_host_and_port(one) for one in hosts.split(",")]
        said["host"] = ",".join(unquote(host) for host, _ in pairs)
        said["port"] = ",".join(port for _, port in pairs)
    said.update((name, value) for name, value in query if name != "ssl")
    unknown = sorted(set(said) - set(_VARIABLES))
    if unknown:
        raise ConfigError(f"DATABASE_URL: the parameter {unknown[0]} cannot be used here")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    told = {_VARIABLES[name]: value for name, value in said.items() if value.strip(",")}
    return {**own, "LC_ALL": "C", "TZ": "UTC", "PGAPPNAME": "fluxora-backup", "PGCONNECT_TIMEOUT": "10", **told}


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = text.partition(":")
    return host, port


@cache
def installed() -> dict[int, Programs]:
    """Programs by major version: those of the PATH, of Debian's packages and of the wheel, in this order."""
    folders = []
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        folders.append(Path(on_path).parent)
    folders += sorted(_DEBIAN.glob("*/bin"))
    folders += [folder for _, folder in sorted(installed_programs().items())]
    found: dict[int, Programs] = {}
    for folder in folders:
        if all((folder / name).exists() for name in ("pg_dump", "pg_restore", "psql")):
            version = _version_of(folder / "pg_restore")
            if version is not None:
                found.setdefault(version, Programs(folder, version))
    return found


def _version_of(program: Path) -> int | None:
    try:
        said = subprocess.run(  # noqa: S603 (a program of PostgreSQL, no shell)
            [str(program), "--version"], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=True
        ).stdout
        return int(said.rpartition(") ")[2].split()[0].partition(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _ask(programs: Programs, environment: Mapping[str, str], sql: str) -> list[list[str]]:
    command = [programs.path("psql"), "--no-psqlrc", "--no-password", "--csv", "--tuples-only", "--command", sql]
    try:
        done = subprocess.run(  # noqa: S603 (as above)
            command,
            capture_output=True,
            env=dict(environment),
            timeout=ASK_LIMIT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        raise StorageUnavailable(f"PostgreSQL cannot answer: {last_words(error.stderr)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StorageUnavailable("PostgreSQL cannot answer: it took too long") from error
    return list(csv.reader(io.StringIO(done.stdout.decode(errors="replace"), newline="")))


def last_words(said: bytes) -> str:
    """What a program said last, on one line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-6:])[:_SAID] or "it said nothing"
