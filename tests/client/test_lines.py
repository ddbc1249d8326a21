"""An event on one line: what people read, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import unicodedata

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fluxora.client.following import Update
from fluxora.client.lines import json_line, line

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner, max_size=4)
)


def update(payload: object, **members: str | None) -> Update:
    given = {"event": "stream.updated", "event_id": "e", "action": "withdrew", "stream_id": "stream-1-2", **members}
    return Update(
        position=1043, timestamp="2026-01-01T00:00:00.000Z", payload=msgspec.Raw(msgspec.json.encode(payload)), **given
    )


STREAM = {
    "status": "active",
    "depositAmount": "100.0000000",
    "streamedAmount": "12.5000000",
    "withdrawnAmount": "3.0000000",
}


def test_a_change_shows_what_it_moved_and_what_the_stream_has_come_to() -> None:
    assert line(update({**STREAM, "change": {"amount": "3.0000000"}})).split() == [
        *("1043", "2026-01-01T00:00:00.000Z", "withdrew", "stream-1-2", "active"),
        *("amount", "3.0000000,", "streamed", "12.5000000", "of", "100.0000000,", "withdrawn", "3.0000000"),
    ]


def test_a_taken_back_event_shows_the_stream_as_it_is_again() -> None:
    shown = line(update({"stream": STREAM, "reverts": ["x"]}, event="stream.reverted", action="reverted"))
    assert shown.split()[2:5] == ["stream.reverted", "stream-1-2", "active"]
    gone = line(update({"stream": None, "reverts": ["x"]}, event="stream.reverted", action="reverted"))
    assert gone.split()[2:] == ["stream.reverted", "stream-1-2", "-"]


def test_an_event_of_no_stream() -> None:
    assert line(update({"change": {}}, stream_id=None, action="unknown")).split()[2:] == ["unknown", "-", "-"]


def test_columns_stand_below_each_other() -> None:
    one, other = line(update(STREAM)), line(update(STREAM, action="tu", stream_id="stream-" + 32 * "0"))
    assert one.index("active") == other.index("active")


@given(payload=ANYTHING, action=st.text(), stream_id=st.text(), status=ANYTHING)
def test_nothing_that_a_terminal_obeys_is_printed(payload, action, stream_id, status) -> None:
    for shown in (payload, {**STREAM, "status": status, "change": {"amount": action}, "stream": payload}):
        text = line(update(shown, action=action, stream_id=stream_id))
        assert not {unicodedata.category(one) for one in text} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(ANYTHING)
def test_json_stays_what_it_is_and_is_one_line(value) -> None:
    text = json.dumps({"type": "stream_update", "value": value}, indent="\t", ensure_ascii=False).replace("\n", "\r\n")
    shown = json_line(msgspec.structs.replace(update({}), text=text))
    assert shown.isprintable()
    assert json.loads(shown)["value"] == value
