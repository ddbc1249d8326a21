"""Packages of a Node baseline: installed from its lock file where they are not yet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

INSTALL_S = 60.0  # where nothing can be fetched, what needs the packages is skipped


def missing(folder: Path) -> str | None:
    """What keeps the program in `folder` from running here, None where nothing does."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Node.js 18 or newer)"
    if (folder / "node_modules" / ".package-lock.json").exists():
        return None
    try:
        command = ["npm", "ci", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=True)
    except subprocess.SubprocessError as error:
        words = getattr(error, "stderr", None) or str(error)
        return f"`npm ci` in {folder} failed: {str(words).strip()[-300:]}"
    return None
