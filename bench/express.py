"""The predecessor to be measured against: Express 4 with helmet, every stream in memory (baselines/express)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.child import Program

FOLDER = Path(__file__).parent / "baselines" / "express"
INSTALL_S = 300.0


def missing() -> str | None:
    """What keeps it from running here, None where nothing does. Installs its packages where they are not yet."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Node.js 18 or newer)"
    if (FOLDER / "node_modules" / ".package-lock.json").exists():
        return None
    try:
        subprocess.run(["npm", "ci"], cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_S, check=True)
    except subprocess.SubprocessError as error:
        words = getattr(error, "stderr", None) or str(error)
        return f"`npm ci` in {FOLDER} failed: {str(words).strip()[-300:]}"
    return None


def start(streams: Path, *, log: Path) -> Program:
    """Serve the streams of a file, one as JSON a line; its first line tells the `port`."""
    command = ["env", "NODE_ENV=production", "node", str(FOLDER / "server.js"), str(streams)]
    return Program("express", command, log=log)
