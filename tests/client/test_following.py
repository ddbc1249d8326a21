"""The rules of a client: over any cuts, each event of the log that matches is had once.

The other side is a model of the contract: subscriptions of one connection in any interleaving that it allows, and what
was sent and not yet received is lost with the connection.
"""

from __future__ import annotations

import json
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxora.client.following import (
    FIRST_DELAY_S,
    MOST_DELAY_S,
    MOST_PATIENCE_S,
    PAUSE_S,
    Backoff,
    Following,
    Update,
    after_close,
)
from fluxora.errors import FollowRefused, FollowReset
from fluxora.protocol import sockets
from fluxora.protocol.close_codes import CLOSE_CODES
from fluxora.protocol.messages import LogEvent
from fluxora.protocol.sockets import ALL, Selector

SELECTORS = tuple(Selector("stream", name) for name in "abc")


def update(position: int) -> str:
    event = LogEvent(position, f"id-{position}", "stream.updated", "withdrew", "stream-1", 7, None, None, 0, b'{"a":1}')
    return sockets.stream_update(event).decode()


class Service:
    """The log, and how far everybody has been told of it; `matches[n]` are the selectors of position n + 1."""

    def __init__(self) -> None:
        self.matches: list[frozenset[Selector]] = []
        self.head = 0


class Connection:
    """One connection as the contract has it: an event once, whichever of its subscriptions matches it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sent: deque[str] = deque()
        self.live: set[Selector] = set()
        self.pending: tuple[Selector, str, int] | None = None  # it, its ref, and how far it has come
        self._told: set[int] = set()

    def receive(self, text: str) -> None:
        wanted = sockets.parse(text.encode())
        assert isinstance(wanted, sockets.Subscribe)
        assert wanted.ref is not None
        assert self.pending is None, "one after the other"
        if wanted.after is None:
            self.live.add(wanted.selector)
            self.sent.append(sockets.ack(wanted.ref, self.service.head, recovered=False).decode())
        else:
            self.pending = wanted.selector, wanted.ref, wanted.after

    def tell(self, position: int, selectors: set[Selector]) -> None:
        if position not in self._told and selectors & self.service.matches[position - 1]:
            self._told.add(position)
            self.sent.append(update(position))

    def advance(self) -> None:
        """The hub deals out the next event of the log."""
        if self.service.head < len(self.service.matches):
            self.service.head += 1
            self.tell(self.service.head, self.live)

    def catch_up(self) -> None:
        if self.pending is None:
            return
        selector, ref, after = self.pending
        if after < self.service.head:
            self.tell(after + 1, {selector})
            self.pending = selector, ref, after + 1
        else:
            self.pending = None
            self.live.add(selector)
            self.sent.append(sockets.ack(ref, self.service.head, recovered=True).decode())


class Client:
    """Follows over one connection after another."""

    def __init__(self, service: Service, following: Following) -> None:
        self.following = following
        self.had: list[int] = []
        self.begun: int | None = None
        self._service = service
        self.connect()

    def connect(self) -> None:
        self.connection = Connection(self._service)
        self.following.connected()
        self._ask()

    def _ask(self) -> None:
        message = self.following.ask()
        if message is not None:
            self.connection.receive(message)

    def deliver(self) -> None:
        if self.connection.sent:
            text = self.connection.sent.popleft()
            message = json.loads(text)
            if message["type"] == "ack" and self.begun is None:
                self.begun = int(message["position"])
            told = self.following.take(text)
            if isinstance(told, Update):
                assert told.text == text
                self.had.append(told.position)
            self._ask()

    def finish(self) -> None:
        """Without another cut, until there is nothing more to tell."""
        while True:
            self.connection.advance()
            self.connection.catch_up()
            self.deliver()
            at_rest = self.connection.pending is None and not self.connection.sent and self.following.live
            if at_rest and self._service.head == len(self._service.matches):
                return


MATCHES = st.frozensets(st.sampled_from((*SELECTORS, Selector("stream", "other"))), max_size=3)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["advance", "catch_up", "deliver"]), st.integers(1, 6)),
    st.just(("cut", 1)),
    st.tuples(MATCHES, st.just(1)),
)


@settings(max_examples=1_000, deadline=None)
@given(
    before=st.lists(MATCHES, max_size=12),
    wanted=st.lists(st.sampled_from(SELECTORS), min_size=1, max_size=3, unique=True),
    after=st.none() | st.integers(0, 12),
    steps=st.lists(STEPS, max_size=120),
)
def test_over_any_cuts_each_event_is_had_once(before, wanted, after, steps) -> None:
    service = Service()
    service.matches += before
    service.head = len(before)
    after = None if after is None else min(after, len(before))
    client = Client(service, Following(wanted, after))
    for step, times in steps:
        for _ in range(times):
            if isinstance(step, frozenset):
                service.matches.append(step)
            elif step == "cut":
                client.connect()
            elif step == "deliver":
                client.deliver()
            else:
                getattr(client.connection, step)()
    client.finish()
    begun = client.begun if after is None else after
    assert begun is not None
    expected = [at for at, matched in enumerate(service.matches, 1) if at > begun and matched & {*wanted}]
    assert sorted(client.had) == expected
    if len(wanted) == 1:
        assert client.had == expected
    # A new event leaves nothing to remember: memory does not grow while nothing goes wrong.
    service.matches.append(frozenset(wanted))
    client.finish()
    assert client.had[-1] == len(service.matches) == client.following.after
    assert not client.following._had


def test_a_client_that_forgets_what_it_had_would_tell_it_twice() -> None:
    """The case that needs more than positions: cut while the second one catches up with what the first one told."""
    service = Service()
    service.matches += [frozenset(SELECTORS[:2]), frozenset(SELECTORS[:1]), frozenset(SELECTORS[1:2])]
    service.head = 3
    client = Client(service, Following(SELECTORS[:2], 0))
    for _ in range(4):
        client.connection.catch_up()
        client.deliver()
    assert client.had == [1, 2]
    client.connect()
    client.finish()
    assert client.had == [1, 2, 3]


def test_what_is_new_to_one_does_not_move_another_that_catches_up() -> None:
    service = Service()
    service.matches += [frozenset(SELECTORS[1:2])] * 3
    service.head = 3
    client = Client(service, Following(SELECTORS[:2], 0))
    while SELECTORS[0] not in client.connection.live:
        client.connection.catch_up()
    client.deliver()
    service.matches.append(frozenset(SELECTORS[:1]))
    client.connection.advance()
    client.deliver()
    assert client.had == [4]
    client.connect()
    client.finish()
    assert client.had == [4, 1, 2, 3]


def test_an_acknowledgement_is_where_it_goes_on() -> None:
    service = Service()
    service.matches += [frozenset(SELECTORS[2:])] * 9
    service.head = 9
    client = Client(service, Following(SELECTORS[:2], 0))
    client.finish()
    assert client.following.after == 9


def test_a_history_of_one_selector_costs_no_memory() -> None:
    service = Service()
    service.matches += [frozenset(SELECTORS[:1])] * 50
    service.head = 50
    client = Client(service, Following(SELECTORS[:1], 0))
    for position in range(1, 51):
        client.connection.catch_up()
        client.deliver()
        assert client.following.after == position
        assert not client.following._had


def test_what_it_asks_for_is_what_the_server_reads() -> None:
    address = "GB3JDWCQJCWMJ3IILWIGDTQJJC5567PGVEVXSCVPEQOTDN64VJBDQBYX"
    following = Following([ALL, Selector("sender", address), Selector("recipient", address), SELECTORS[0]], 5)
    following.connected()
    asked = []
    while (message := following.ask()) is not None:
        wanted = sockets.parse(message.encode())
        assert isinstance(wanted, sockets.Subscribe)
        asked.append((wanted.selector, wanted.after))
        assert following.ask() is None
        following.take(sockets.ack(wanted.ref, 5, recovered=True).decode())
    assert asked == [(ALL, 5), (Selector("sender", address), 5), (Selector("recipient", address), 5), (SELECTORS[0], 5)]
    assert following.live


def test_a_reset_says_where_it_was_and_where_to_go_on() -> None:
    following = Following([ALL], 7)
    following.connected()
    following.ask()
    with pytest.raises(FollowReset) as caught:
        following.take(sockets.reset(99, "Too far").decode())
    assert (caught.value.after, caught.value.position) == (7, "99")
    assert "position 7" in str(caught.value)
    assert "position 99" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        sockets.error("FORBIDDEN", "No").decode(),
        "nothing",
        "[]",
        '{"type": 5}',
        '{"type": "stream_update", "position": "1"}',
        update(1).replace('"1"', '"one"'),
        '{"type": "ack", "ref": "0", "position": "x"}',
        '{"type": "ack", "ref": "0"}',
    ],
)
def test_what_cannot_be_understood_or_is_refused_ends_it(text) -> None:
    following = Following([ALL], 0)
    following.connected()
    following.ask()
    with pytest.raises(FollowRefused):
        following.take(text)


@pytest.mark.parametrize("text", ['{"type": "pong"}', '{"type": "new.kind", "x": [1]}', '{"type":"ack","ref":"9"}'])
def test_what_is_not_for_it_is_passed_over(text) -> None:
    following = Following([ALL], 0)
    following.connected()
    following.ask()
    assert following.take(text) is None
    assert following.take(sockets.ack("0", 0, recovered=True).decode()) is not None


def test_each_close_code_means_what_the_server_says_that_it_means() -> None:
    assert {close.code: after_close(close.code) for close in CLOSE_CODES} == {
        1001: "resume",
        1008: "after_pause",
        1009: "after_pause",
        4001: "resume",
        4002: "resume",
        4003: "from_rest",
        4401: "with_new_token",
        4403: "no",
    }
    assert {after_close(code) for code in (None, 1000, 1005, 1006, 1011, 1012, 1013, 4000, 4999)} == {"resume"}


@given(chance=st.floats(0, 1), asked_s=st.floats(0, 1e9))
def test_the_wait_grows_to_a_bound_and_begins_anew(chance, asked_s) -> None:
    backoff = Backoff()
    waits = [backoff.delay_s("resume", chance) for _ in range(2_000)]
    assert waits[0] <= FIRST_DELAY_S
    assert all(before <= after <= MOST_DELAY_S for before, after in pairwise(waits))
    assert waits[-1] >= MOST_DELAY_S / 2
    backoff.reset()
    assert backoff.delay_s("resume", chance) == waits[0]
    assert PAUSE_S <= backoff.delay_s("after_pause", chance) <= PAUSE_S + MOST_DELAY_S
    asked = backoff.delay_s("resume", chance, asked_s=asked_s)
    assert min(asked_s, MOST_PATIENCE_S) <= asked <= MOST_PATIENCE_S + MOST_DELAY_S
