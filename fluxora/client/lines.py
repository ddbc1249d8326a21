"""An event of the log on one line for people; what it holds is not trusted to be printable."""

from __future__ import annotations

from typing import Any

import msgspec

from fluxora.client.following import Update

_MOST = 80  # characters of one field
_BLANKS = str.maketrans("\t\r\n", "   ")


class _Stream(msgspec.Struct, frozen=True, rename="camel"):
    """What is shown of a payload; `stream` is the restored one of a `stream.reverted`."""

    status: Any = None
    deposit_amount: Any = None
    streamed_amount: Any = None
    withdrawn_amount: Any = None
    change: Any = None
    stream: Any = None


_read = msgspec.json.Decoder(_Stream).decode


def line(update: Update) -> str:
    """Position, time, action, stream, its status, what the event moved, and what the stream has come to."""
    try:
        shown = _read(update.payload)
        if isinstance(shown.stream, dict):
            shown = msgspec.convert(shown.stream, _Stream)
    except msgspec.MsgspecError:
        shown = _Stream()
    action = update.event if update.event == "stream.reverted" else update.action
    parts = [
        f"{update.position:>9}",
        _plain(update.timestamp),
        f"{_plain(action):<20}",
        f"{_plain(update.stream_id or '-'):<40}",
        f"{_plain(shown.status or '-'):<9}",
        _amounts(shown),
    ]
    return "  ".join(parts).rstrip()


def _amounts(shown: _Stream) -> str:
    told = []
    amount = shown.change.get("amount") if isinstance(shown.change, dict) else None
    if isinstance(amount, str):
        told.append(f"amount {_plain(amount)}")
    if shown.deposit_amount is not None:
        told.append(f"streamed {_plain(shown.streamed_amount)} of {_plain(shown.deposit_amount)}")
        told.append(f"withdrawn {_plain(shown.withdrawn_amount)}")
    return ", ".join(told)


def _plain(value: Any) -> str:
    """Text that moves no cursor and colours nothing: a terminal obeys what it is sent."""
    text = str(value)[:_MOST]
    return (
        text
        if text.isprintable()
        else "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
    )


def json_line(update: Update) -> str:
    """The message as it came, on one line: a line break in JSON can only stand between its tokens.

    What is not printable stands in strings alone, and is escaped there: to a program it is the same.
    """
    text = update.text.translate(_BLANKS)
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    units = one.encode("utf-16-be")  # one, or a pair of surrogates
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
