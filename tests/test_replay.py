"""Lines of a replayed file before they reach the pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxora.errors import ConfigError, DecodeError
from fluxora.replay import _open, _parse


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"eventId": "\xe4"}', b"{]", b"[1]", b"{}"])
def test_a_wrong_line_is_named(line: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^line 14: "):
        _parse([b"\n", b"  \n", line + b"\n"], 11)


def test_blank_lines_are_nothing() -> None:
    batch = _parse([b"\n", b" \t\n"], 0)
    assert (batch.events, batch.hashes) == ([], {})


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        _open(tmp_path / "none")
    with pytest.raises(ConfigError, match="Is a directory"):
        _open(tmp_path)
