from __future__ import annotations

from bench.profiles.followers_process import Story
from bench.profiles.readback import Row, lasts, of_followers, of_writes

LOG = [
    Row("1-0000000000000000001-0000000000", "stream-a", "11", "created"),
    Row("1-0000000000000000002-0000000000", "stream-b", "12", "created"),
    Row("1-0000000000000000003-0000000000", "stream-a", "13", "withdrew"),
    Row("0196-7b-uuid", "stream-c", "14", "created"),
    Row("1-0000000000000000004-0000000000", "stream-a", "15", "withdrew"),
]
STORED = ["0000000000000000003-0000000000", "0000000000000000004-0000000000", "stream-c"]


def story(follows, start, *positions, whole=True):
    return Story("ws_followers", follows, start, [(position, position) for position in positions], whole=whole)


def test_what_was_answered_as_stored_is_in_the_log_once():
    assert of_writes(STORED, LOG).total == 0
    assert of_writes([*STORED, "stream-d", "0000000000000000009-0000000000"], LOG).lost == 2
    assert of_writes(STORED, [*LOG, LOG[-1]]).doubled == 1
    again = Row("0196-7b-another", "stream-c", "16", "created")
    assert of_writes(STORED, [*LOG, again]).doubled == 1


def test_followers_are_due_what_the_log_holds_of_theirs():
    assert of_followers([story("stream-a", 10, 11, 13, 15), story("*", 12, 13, 14, 15)], LOG).total == 0
    assert of_followers([story("stream-a", 10, 11, 15)], LOG).lost == 1
    assert of_followers([story("stream-a", 10, 11, 13)], LOG).lost == 1
    assert of_followers([story("stream-a", 10, 11, 13, whole=False)], LOG).total == 0  # it left before the last one
    assert of_followers([story("stream-a", 10, 13, whole=False)], LOG).lost == 1
    assert of_followers([story("stream-a", 10, 11, 13, 13, 15)], LOG).doubled == 1
    assert of_followers([story("stream-a", 10, 13, 11, 15)], LOG).disordered == 1
    assert of_followers([story("stream-a", 10, 11, 12, 13, 15)], LOG).strange == 1
    assert of_followers([story("stream-z", 10)], LOG).total == 0


def test_runs_stand_for_all_that_is_in_them():
    assert of_followers([Story("sse_followers", "*", 10, [(11, 13), (14, 15)], whole=True)], LOG).total == 0
    assert of_followers([Story("sse_followers", "*", 10, [(11, 12), (14, 15)], whole=True)], LOG).lost == 1


def test_the_last_position_of_each():
    assert lasts(LOG) == {"*": 15, "stream-a": 15, "stream-b": 12, "stream-c": 14}
    assert lasts([]) == {}
