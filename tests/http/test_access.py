"""Credentials in headers: who they name, and that nothing else but a refusal ever comes out."""

from __future__ import annotations

import threading
from functools import partial

import jwt
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fluxora.config import AccessConfig
from fluxora.errors import Forbidden, Unauthorized, Unavailable
from fluxora.http import access as module
from fluxora.http.access import MAX_HASHES, Access, Principal, authorize
from fluxora.protocol.api_keys import ENTROPY_BYTES, make

NOW = 1_800_000_000
SECRET = "0123456789abcdef0123456789abcdef"
READER, READER_KEY = make("reader", ["streams:read"], entropy=bytes(range(ENTROPY_BYTES)))
ROOT, ROOT_KEY = make("root", ["admin"], entropy=bytes(range(100, 100 + ENTROPY_BYTES)))
KEYS = AccessConfig(api_keys=(READER_KEY, ROOT_KEY))
BOTH = AccessConfig(api_keys=(READER_KEY, ROOT_KEY), jwt_secret=SECRET)
HOST = ("host", "h.example")
TOKEN = jwt.encode({"exp": NOW + 60, "sub": "bob", "scope": "streams:read streams:write"}, SECRET)


def opened(config=BOTH):
    return Access(config, clock=lambda: float(NOW))


def refused(raised):
    """Every refusal reads the same."""
    assert str(raised.value) == "The credential is not valid"
    assert raised.value.headers == (("www-authenticate", 'Bearer realm="fluxora"'),)
    assert raised.value.details is None


def with_key(text):
    return (HOST, ("x-api-key", text))


def with_token(text):
    return (HOST, ("authorization", text))


def other_secret(number):
    """A key of the reader's name that is not the reader's."""
    return f"flx_reader_{number:043d}"


async def test_nobody():
    for config in (AccessConfig(), BOTH):
        assert opened(config).at_once((HOST,)) is Principal.anonymous()
        assert (await opened(config).principal(())).is_anonymous
    assert not Principal.anonymous().may("streams:read")


async def test_a_key_is_hashed_once_and_then_known():
    access = opened()
    assert access.at_once(with_key(READER)) is None
    principal = await access.principal(with_key(READER))
    assert principal == Principal("key:reader", frozenset({"streams:read"}))
    assert not principal.is_anonymous
    assert access.at_once(with_key(READER)) == principal
    assert await access.principal(with_key(READER)) == principal
    assert READER not in repr(vars(access))


async def test_admin_implies_every_scope():
    principal = await opened().principal(with_key(ROOT))
    assert all(principal.may(scope) for scope in ("streams:read", "streams:write", "admin"))


async def test_a_wrong_secret_is_refused_each_time():
    access = opened()
    wrong = other_secret(1)
    for _ in range(2):
        assert access.at_once(with_key(wrong)) is None
        with pytest.raises(Unauthorized) as raised:
            await access.principal(with_key(wrong))
        refused(raised)
    # The secret of another key is no better.
    with pytest.raises(Unauthorized):
        await access.principal(with_key("flx_root_" + READER.removeprefix("flx_reader_")))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_a_token(scheme):
    principal = opened().at_once(with_token(scheme + TOKEN))
    assert (principal.id, principal.scopes) == ("jwt:bob", frozenset({"streams:read", "streams:write"}))
    assert principal.expires_at == jwt.decode(TOKEN, options={"verify_signature": False})["exp"]
    assert not principal.may("admin")


@pytest.mark.parametrize(
    "headers",
    [
        with_key(""),
        with_key("flx_reader_"),
        with_key(READER + "A"),
        with_key(READER[:-1]),
        with_key(READER.replace("reader", "nobody")),  # a name that is not configured
        with_key(READER_KEY.entry),
        with_key("é" * 60),
        with_key(TOKEN),
        with_token(""),
        with_token("Bearer"),
        with_token("Bearer "),
        with_token("Bearer\t" + TOKEN),
        with_token(TOKEN),
        with_token("Token " + TOKEN),
        with_token("Basic cmVhZGVyOnNlY3JldA=="),
        with_token("Bearer " + READER),
        with_token(f"Bearer {TOKEN}, Bearer {TOKEN}"),
        with_token("Bearer " + jwt.encode({"exp": NOW, "sub": "bob"}, SECRET)),
        with_token("Bearer " + jwt.encode({"sub": "bob"}, SECRET)),
        (*with_key(READER), *with_token("Bearer " + TOKEN)),
        (*with_token("Bearer " + TOKEN), *with_token("Bearer " + TOKEN)),
        (*with_key(READER), *with_key(READER)),
        (*with_key(READER), ("authorization", "")),
    ],
)
async def test_a_credential_that_is_no_good_is_refused_and_never_nobody(headers, monkeypatch):
    monkeypatch.setattr(module, "verify", lambda *_: pytest.fail("nothing here is worth a hash"))
    with pytest.raises(Unauthorized) as raised:
        opened().at_once(headers)
    refused(raised)
    with pytest.raises(Unauthorized) as raised:
        await opened().principal(headers)
    refused(raised)


@pytest.mark.parametrize("headers", [with_key(READER), with_token("Bearer " + TOKEN)])
async def test_a_credential_of_a_kind_that_is_not_configured_is_refused(headers):
    config = AccessConfig(jwt_secret=SECRET) if headers == with_key(READER) else KEYS
    for access in (opened(AccessConfig()), opened(config)):
        with pytest.raises(Unauthorized) as raised:
            await access.principal(headers)
        refused(raised)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["authorization", "x-api-key", "host"]),
            st.text(max_size=80)
            | st.text(st.characters(), max_size=20).map("Bearer ".__add__)
            | st.text(max_size=50).map("flx_reader_".__add__)
            | st.from_regex(r"Bearer [\w.-]{0,80}", fullmatch=True),
        ),
        max_size=4,
    )
)
def test_out_of_garbage_only_refusals_come(headers):
    access = opened()
    if all(name == "host" for name, _ in headers):
        assert access.at_once(headers) is Principal.anonymous()
        return
    with pytest.raises(Unauthorized) as raised:
        access.at_once(headers)
    refused(raised)


# the hashes


class Hashes:
    """Stands in for `verify`: each waits until it is let go on, and says yes to the keys of this file."""

    def __init__(self):
        self.computed = []
        self.begun = threading.Event()
        self._go = threading.Semaphore(0)

    def __call__(self, key, secret):
        self.computed.append((key.name, secret))
        self.begun.set()
        assert self._go.acquire(timeout=60)
        return f"flx_{key.name}_{secret}" in (READER, ROOT)

    def let(self, number):
        self._go.release(number)


@pytest.fixture
def hashes(monkeypatch):
    stand_in = Hashes()
    monkeypatch.setattr(module, "verify", stand_in)
    yield stand_in
    stand_in.let(1000)


async def ask(access, text, outcomes):
    try:
        outcomes.append(await access.principal(with_key(text)))
    except (Unauthorized, Unavailable) as error:
        outcomes.append(type(error))


async def test_many_requests_with_one_new_key_cost_one_hash(hashes):
    access, outcomes = opened(), []
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(ask, access, READER, outcomes)
        await trio.testing.wait_all_tasks_blocked()
        hashes.let(1)
    assert {principal.id for principal in outcomes} == {"key:reader"}
    assert (len(outcomes), len(hashes.computed)) == (200, 1)


async def test_many_requests_with_one_wrong_key_cost_one_hash(hashes):
    access, outcomes = opened(), []
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, access, other_secret(1), outcomes)
        await trio.testing.wait_all_tasks_blocked()
        hashes.let(1)
    assert outcomes == [Unauthorized] * 50
    assert len(hashes.computed) == 1


async def test_so_many_hashes_may_wait_and_no_more(hashes):
    access, waiting, late = opened(), [], []
    async with trio.open_nursery() as nursery:
        for number in range(MAX_HASHES):
            nursery.start_soon(ask, access, other_secret(number), waiting)
        await trio.testing.wait_all_tasks_blocked()
        await ask(access, READER, late)
        assert late == [Unavailable]
        await trio.to_thread.run_sync(hashes.begun.wait, 60)  # a thread takes its time to begin
        assert len(hashes.computed) == 1, "one at a time"
        hashes.let(MAX_HASHES + 1)
    assert waiting == [Unauthorized] * MAX_HASHES
    await ask(access, READER, late)
    assert late[1].id == "key:reader"


async def test_a_hash_that_does_not_get_its_turn_is_given_up(hashes, autojump_clock):
    access, first, second = opened(), [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, access, READER, first)
        await trio.testing.wait_all_tasks_blocked()
        await ask(access, ROOT, second)
        assert second == [Unavailable]
        hashes.let(1)
    assert first[0].id == "key:reader", "its thread was under way, and what it found is not thrown away"
    assert [name for name, _ in hashes.computed] == ["reader"]


async def test_a_client_that_leaves_does_not_take_the_others_with_it(hashes):
    access, outcomes = opened(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, access, READER, [])
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as leavers:
                leavers.start_soon(ask, access, ROOT, [])
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(3):
                    nursery.start_soon(partial(ask, access, ROOT, outcomes))
                await trio.testing.wait_all_tasks_blocked()
                leaving.cancel()
        hashes.let(2)
    assert [principal.id for principal in outcomes] == ["key:root"] * 3
    assert [name for name, _ in hashes.computed] == ["reader", "root"]


# what a principal may do


def test_authorize():
    reader, root = Principal("key:reader", frozenset({"streams:read"})), Principal("key:root", frozenset({"admin"}))
    authorize(Principal.anonymous(), "streams:write", anonymous_ok=True)
    authorize(reader, "streams:read", anonymous_ok=False)
    authorize(root, "streams:write", anonymous_ok=False)
    with pytest.raises(Unauthorized) as raised:
        authorize(Principal.anonymous(), "streams:read", anonymous_ok=False)
    assert raised.value.headers == (("www-authenticate", 'Bearer realm="fluxora"'),)
    for anonymous_ok in (True, False):
        with pytest.raises(Forbidden, match="streams:write"):
            authorize(reader, "streams:write", anonymous_ok=anonymous_ok)


@pytest.mark.parametrize(
    ("config", "admin"),
    [
        (AccessConfig(), False),
        (AccessConfig(api_keys=(READER_KEY,)), False),
        (AccessConfig(api_keys=(READER_KEY, ROOT_KEY)), True),
        (AccessConfig(jwt_secret=SECRET), True),
    ],
)
def test_what_is_configured(config, admin):
    assert opened(config).configured_admin is admin
    assert opened(config).required is False
    assert opened(AccessConfig(jwt_secret=SECRET, required=True)).required is True
