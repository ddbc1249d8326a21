from __future__ import annotations

import os
import select
import socket
from collections import Counter
from dataclasses import dataclass

import pytest

from bench.child import Input
from bench.latencies import bucket
from bench.profiles.endpoint import Endpoint
from bench.profiles.generator_process import Generator, Task
from bench.profiles.lanes import MOST_WAITING, Job, Lanes
from bench.profiles.scene import Scene

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@dataclass
class Asked:
    octets: bytes

    def judge(self, status, body):
        return (f"{status} {body.decode()}",)


class Server:
    """Accepts, and answers when it is told to."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.clients = []

    def accept(self):
        self.clients.append(self.listener.accept()[0])
        return self.clients[-1]

    def close(self):
        for one in (self.listener, *self.clients):
            one.close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def epoll():
    with select.epoll() as made:
        yield made


@pytest.fixture
def ended():
    return []


@pytest.fixture
def lanes(server, epoll, ended):
    made = Lanes(Endpoint("127.0.0.1", server.port), epoll, 1, lambda *what: ended.append(what))
    yield made
    made.give_up("the test is over")


def job(due):
    return Job("rest_reads", due, Asked(b"GET / HTTP/1.1\r\n\r\n"))


def turn(epoll, lanes):
    for fd, event in epoll.poll(10):
        assert lanes.ready(fd, event)


def test_one_connection_answers_one_after_the_other_and_who_waits_grows_old(server, epoll, lanes, ended):
    for due in (1.0, 2.0, 3.0):
        assert lanes.put(job(due))
    assert (lanes.unanswered, lanes.open, lanes.oldest_due()) == (3, 1, 1.0)
    client = server.accept()
    assert client.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
    client.sendall(ANSWER[:20])
    turn(epoll, lanes)
    assert ended == []
    client.sendall(ANSWER[20:])
    turn(epoll, lanes)
    ((first, _, wrong, stored),) = ended
    assert (first.due, wrong, stored) == (1.0, None, ("200 {}",))
    assert (lanes.unanswered, lanes.oldest_due()) == (2, 2.0)
    assert client.recv(100) == b"GET / HTTP/1.1\r\n\r\n"


def test_a_connection_that_ends_takes_its_request_along_and_the_next_gets_another(server, epoll, lanes, ended):
    lanes.put(job(1.0))
    lanes.put(job(2.0))
    server.accept().close()
    turn(epoll, lanes)
    assert [(one.due, wrong) for one, _, wrong, _ in ended] == [(1.0, "the connection ended before the answer")]
    assert server.accept().recv(100)
    assert lanes.oldest_due() == 2.0


def test_a_server_that_is_gone_fails_each_request_and_no_more_than_that(server, epoll, lanes, ended):
    lanes.put(job(1.0))
    for due in range(2, 3_000):
        lanes.put(job(float(due)))
    client = server.accept()
    server.listener.close()
    client.close()
    turn(epoll, lanes)
    assert len(ended) == 2_999
    assert (lanes.open, lanes.unanswered, lanes.oldest_due()) == (0, 0, None)


def test_too_many_that_wait_are_not_taken_and_giving_up_ends_them(server, lanes, ended):
    assert all(lanes.put(job(float(due))) for due in range(MOST_WAITING + 1))
    assert not lanes.put(job(0.0))
    lanes.give_up("over")
    assert Counter(wrong for _, _, wrong, _ in ended) == {"over": MOST_WAITING + 1}
    assert lanes.open == 0


def test_a_latency_counts_from_when_the_request_was_due(server):
    reading, writing = os.pipe()

    class Piped(Input):
        def fileno(self):
            return reading

    scene = Scene(
        endpoint=Endpoint("127.0.0.1", server.port),
        zero=100.0,
        first_ledger=1,
        offset_s=0.0,
        contract_id="",
        hot=[],
        hot_numbers=[],
        ids=[],
        people=[],
        headers={},
        admin_headers=None,
        worker_token=None,
        seed=1,
    )
    generator = Generator(Task(nth=0, of=1, connections=1), scene, Piped())
    generator._ended(job(due=7.0), 109.5, None, ())
    assert generator._done["rest_reads"].latencies == {bucket(2.5): 1}
    os.close(reading)
    os.close(writing)
