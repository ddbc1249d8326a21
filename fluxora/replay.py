"""`fluxora replay`: contract events from a file through the same pipeline as everything else.

One JSON object a line, in the form that POST /internal/indexer/contract-events takes. Lines are checked before they are
handed on; a wrong one stops the replay with its number, and what went before it stays recorded. Running it again is
harmless.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import trio

from fluxora.actors.sources.push import PushSource
from fluxora.config import Config
from fluxora.errors import BadRequest, ConfigError, DecodeError, InvalidJson, StorageUnavailable
from fluxora.http import strict_json
from fluxora.http.pushed_event import MAX_EVENTS, Batch, read_batch
from fluxora.runtime import open_runtime

_ATTEMPTS = 30


@dataclass
class Summary:
    """Counts of events, and the log's position at the end."""

    inserted: int = 0
    duplicates: int = 0
    position: int = 0


async def replay(config: Config, path: Path) -> Summary:
    """Record the events of `path` ("-": standard input) in batches; progress on a terminal.

    Raises:
        ConfigError: the file cannot be read.
        DecodeError: a line is wrong; the message has its number and what is wrong.
        StorageUnavailable: PostgreSQL went away and did not come back in time.
    """
    summary, line = Summary(), 0
    async with open_runtime(config) as runtime:
        assert runtime.push is not None
        with await trio.to_thread.run_sync(_open, path) as stream:
            # Whoever types or pipes the lines may be silent for ever: a cancelled replay leaves the read behind.
            while batch := await trio.to_thread.run_sync(list, islice(stream, MAX_EVENTS), abandon_on_cancel=True):
                await _record(runtime.push, batch, line, summary)
                line += len(batch)
                if sys.stderr.isatty():
                    print(f"\r{line} lines", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return summary


def _open(path: Path) -> AbstractContextManager[BinaryIO]:
    """The file as bytes, for its encoding is checked line by line."""
    if str(path) == "-":
        # Not sys.stdin, and never closed: closing waits for a read that was left behind, at the interpreter's end too.
        return nullcontext(open(0, "rb", closefd=False))
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


async def _record(push: PushSource, lines: list[bytes], before: int, summary: Summary) -> None:
    batch = _parse(lines, before)
    for attempt in range(_ATTEMPTS):
        try:
            outcome = await push.submit(batch.events, batch.hashes)
        except StorageUnavailable:
            if attempt == _ATTEMPTS - 1:
                raise
            await trio.sleep(min(0.1 * 2**attempt, 2))  # the pipeline may still be starting
        else:
            summary.inserted += len(outcome.inserted)
            summary.duplicates += len(outcome.duplicates)
            summary.position = outcome.position
            return


def _parse(lines: list[bytes], before: int) -> Batch:
    """Check the lines that follow the first `before`; blank ones are passed over."""
    items, numbers = [], []
    for number, text in enumerate(lines, before + 1):
        if not text.strip():
            continue
        try:
            items.append(strict_json.read(text))
        except InvalidJson as error:
            raise DecodeError(f"line {number}: {error}") from error
        numbers.append(number)
    try:
        return read_batch(items)
    except BadRequest as error:
        field, code, message = (error.details or [("", error.code, str(error))])[0]
        index = field.partition("[")[2].partition("]")[0]
        place = f"line {numbers[int(index)]}" if index.isdigit() else f"lines {before + 1} to {before + len(lines)}"
        raise DecodeError(f"{place}: {field.partition('.')[2] or field}: {message} ({code})") from error
