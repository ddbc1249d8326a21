"""What a finding is called, and where its input is kept."""

from __future__ import annotations

import hashlib
import traceback
from pathlib import Path


class Contradiction(AssertionError):
    """The parser and an independent reader of the same bytes do not agree; the text says in what."""


def demand(holds: object, text: str) -> None:
    """Raise unless `holds`.

    Raises:
        Contradiction: it does not.
    """
    if not holds:
        raise Contradiction(text)


def keep(folder: Path, target: str, data: bytes, error: BaseException) -> Path:
    """Write the input into the folder and print it with the error; the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(
        f"{target}: FINDING, kept as {path}\n  input {data!r}\n{''.join(traceback.format_exception(error))}", flush=True
    )
    return path


def place(error: BaseException) -> tuple[str, str]:
    """Where it was raised: two findings of one place count as one."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    text = str(error) if isinstance(error, Contradiction) else ""
    return f"{type(error).__name__} {where}", text[:40]
