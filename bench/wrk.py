"""wrk, the load generator (https://github.com/wg/wrk, the Debian package wrk): a process of its own, cheap in CPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

SCRIPT = Path(__file__).parent / "load.lua"
GRACE_S = 30.0


class Load(msgspec.Struct, frozen=True):
    """What one run of wrk saw. `refused`: answers of 400 and more; `broken`: socket errors and timeouts."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        """Whatever was no success."""
        return self.refused + self.broken


def is_installed() -> bool:
    """True where wrk can be run."""
    return shutil.which("wrk") is not None


def load(
    url: str,
    lines: Path,
    *,
    connections: int,
    seconds: int,
    method: Literal["GET", "POST"] = "GET",
    order: Literal["random", "walk"] = "walk",
) -> Load:
    """Keep `connections` busy for `seconds`: GET the paths in the file `lines`, or POST its lines to `url`.

    One thread, so that what it takes from the server's cores is the same at any number of connections.

    Raises:
        subprocess.SubprocessError: wrk failed or did not end; what it printed is in the error.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), url]
    ended = subprocess.run(
        [*command, "--", method, str(lines), order],
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_S,
        check=False,
    )
    return read(ended.stdout, ended.stderr)


def read(output: str, complaints: str = "") -> Load:
    """The figures in what wrk printed with load.lua.

    Raises:
        subprocess.SubprocessError: there are none.
    """
    last = output.rstrip().rpartition("\n")[2]
    try:
        return msgspec.json.decode(last, type=Load)
    except msgspec.MsgspecError as error:
        raise subprocess.SubprocessError(f"wrk gave no figures: {output[-500:]} {complaints[-500:]}") from error
