"""Names to addresses: bounded threads, one a name, and every way in which there is no answer."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fluxora.actors.resolver import NameUnresolved, Resolver, system_lookup


class Names:
    """A system resolver of the tests': each name blocks until it is answered."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.most = 0
        self._doors: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def door(self, host: str) -> threading.Event:
        with self._lock:
            return self._doors.setdefault(host, threading.Event())

    def __call__(self, host: str) -> Sequence[str]:
        self.asked[host] += 1
        with self._lock:
            self.running[host] += 1
            self.most = max(self.most, self.running.total())
        assert self.door(host).wait(30)
        with self._lock:
            self.running[host] -= 1
        return ["192.0.2.7", "2001:db8::7"]


async def test_the_systems_answer_has_each_address_once() -> None:
    assert len(system_lookup("127.0.0.1")) == 1
    found = await Resolver().addresses("localhost")
    assert found
    assert all(address.is_loopback for address in found)


async def test_who_asks_for_the_same_name_shares_one_thread() -> None:
    names = Names()
    resolver = Resolver(names)
    found = []

    async def ask() -> None:
        found.append(await resolver.addresses("a.test"))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        names.door("a.test").set()
    assert found == [[ip_address("192.0.2.7"), ip_address("2001:db8::7")]] * 50
    assert names.asked == {"a.test": 1}
    await resolver.addresses("a.test")
    assert names.asked == {"a.test": 2}, "no answer is kept"


async def test_a_name_that_hangs_takes_one_thread_however_often_it_is_given_up() -> None:
    names = Names()
    resolver = Resolver(names, threads=2, within_s=0.02)
    names.door("well.test").set()
    for _ in range(5):
        with pytest.raises(NameUnresolved, match=r"hangs\.test was not resolved within"):
            await resolver.addresses("hangs.test")
    with trio.move_on_after(0.01):
        await resolver.addresses("hangs.test")
    patient = Resolver(names, threads=1)
    assert len(await patient.addresses("well.test")) == 2
    assert names.running["hangs.test"] == 1
    names.door("hangs.test").set()


async def test_threads_are_bounded_and_the_rest_waits_for_its_turn() -> None:
    names = Names()
    resolver = Resolver(names, threads=3)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(resolver.addresses, f"{number}.test")
        with trio.fail_after(10):
            while names.running.total() < 3:
                await trio.sleep(0.001)
        for number in range(20):
            names.door(f"{number}.test").set()
    assert (names.most, names.asked.total()) == (3, 20)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (socket.gaierror(-2, "Name or service not known"), "x.test cannot be resolved: .*not known"),
        (OSError("no network"), "no network"),
        (UnicodeError("label too long"), "label too long"),
        (["not an address"], "cannot be resolved"),
        ([], "no address"),
    ],
)
async def test_no_answer_says_why(answer: Exception | list[str], says: str) -> None:
    def lookup(_host: str) -> list[str]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(NameUnresolved, match=says):
        await Resolver(lookup).addresses("x.test")


def test_an_answer_after_the_end_of_the_run_goes_nowhere() -> None:
    names = Names()

    async def give_up() -> None:
        with pytest.raises(NameUnresolved):
            await Resolver(names, within_s=0.01).addresses("late.test")

    trio.run(give_up)
    names.door("late.test").set()
