from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxora.http.connection import Connection

OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_all():
    yield
    while OPENED:
        OPENED.pop().close()


def pair(**options) -> tuple[Connection, trio.SocketStream]:
    ends = socket.socketpair()
    OPENED.extend(ends)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
    return Connection(ours, **options), theirs


async def receive_exactly(stream: trio.SocketStream, size: int) -> bytes:
    received = b""
    with trio.fail_after(10):
        while len(received) < size:
            data = await stream.receive_some(size - len(received))
            assert data
            received += data
    return received


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "send", "yield"]), st.integers(1, 20_000)),
        min_size=1,
        max_size=12,
    )
)
async def test_offered_and_sent_bytes_never_interleave(steps):
    connection, peer = pair()
    frames = [(b"%c" % (65 + i)) * size for i, (_, size) in enumerate(steps)]
    accepted: list[bytes] = []

    async def send(frame: bytes) -> None:
        await connection.send_all(frame)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.flush_forever)
        for (step, _), frame in zip(steps, frames, strict=True):
            if step == "offer":
                assert connection.offer(frame)
                accepted.append(frame)
            elif step == "send":
                nursery.start_soon(send, frame)
                accepted.append(frame)
            else:
                await trio.lowlevel.checkpoint()
        received = await receive_exactly(peer, sum(map(len, accepted)))
        nursery.cancel_scope.cancel()
    # Every frame is whole: each letter forms one run.
    for frame in accepted:
        assert frame in received
    await peer.aclose()
    await connection.aclose()


async def test_offers_keep_their_order_ahead_of_a_later_send():
    connection, peer = pair()
    big = b"a" * 100_000
    assert connection.offer(big)
    assert connection.offer(b"b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"c")
        assert await receive_exactly(peer, len(big) + 2) == big + b"bc"
    assert connection.offered_bytes == 0


async def test_what_is_offered_waits_behind_what_is_queued_though_there_is_room():
    connection, peer = pair()
    assert connection.offer(b"a" * 100_000)
    here = os.read(peer.socket.fileno(), 100_000)
    assert connection.offer(b"b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"")
        assert here + await receive_exactly(peer, 100_001 - len(here)) == b"a" * 100_000 + b"b"


async def test_what_is_offered_waits_behind_what_is_being_sent_though_there_is_room():
    connection, peer = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"a" * 100_000)
        await trio.testing.wait_all_tasks_blocked()
        here = os.read(peer.socket.fileno(), 100_000)
        assert connection.offer(b"b")
        assert here + await receive_exactly(peer, 100_001 - len(here)) == b"a" * 100_000 + b"b"
    assert connection.offer(b"c")
    assert await receive_exactly(peer, 1) == b"c"


async def test_offer_is_refused_whole_beyond_the_bound():
    connection, peer = pair(max_offered_bytes=1000)
    assert connection.offer(b"a" * 100_000)  # begun on the wire, so the rest has to follow
    held = connection.offered_bytes
    assert not connection.offer(b"b" * 500)
    assert connection.offered_bytes == held
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"")
        assert await receive_exactly(peer, 100_000) == b"a" * 100_000
    assert connection.offer(b"c")
    assert await receive_exactly(peer, 1) == b"c"


async def test_what_is_being_sent_counts_towards_the_bound():
    connection, peer = pair(max_offered_bytes=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"a" * 50_000)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.offered_bytes > 1000
        assert not connection.offer(b"b"), "it would wait beside what has been taken over to be sent"
        assert await receive_exactly(peer, 50_000) == b"a" * 50_000
    assert connection.offered_bytes == 0
    assert connection.offer(b"c")
    assert await receive_exactly(peer, 1) == b"c"


async def test_the_last_words_have_room_beyond_the_bound():
    connection, peer = pair(max_offered_bytes=1000)
    assert connection.offer(b"a" * 50_000)
    assert not connection.offer(b"b")
    connection.offer_last(b"z")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"")
        assert await receive_exactly(peer, 50_001) == b"a" * 50_000 + b"z"
    await connection.aclose()
    connection.offer_last(b"too late")
    await peer.aclose()


async def test_offer_says_no_once_the_peer_is_gone():
    connection, peer = pair()
    await peer.aclose()
    assert not connection.offer(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"y")


async def test_a_peer_that_leaves_breaks_the_send_that_waits_for_it():
    connection, peer = pair()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await connection.send_all(b"x" * 1_000_000)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
    assert connection.is_broken


async def test_a_peer_that_left_breaks_a_first_send():
    connection, peer = pair()
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"x")
    assert connection.is_broken


async def test_a_reader_that_takes_nothing_is_cut_off_even_under_a_shield():
    connection, peer = pair(write_timeout_s=0.05)
    with trio.fail_after(5), trio.CancelScope(shield=True), pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"x" * 1_000_000)
    assert not connection.offer(b"y")
    await peer.aclose()


async def test_a_slow_but_steady_reader_gets_everything():
    connection, peer = pair(write_timeout_s=0.5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, b"x" * 300_000)
        for _ in range(10):
            await receive_exactly(peer, 30_000)


async def test_a_cancelled_send_breaks_the_stream():
    connection, peer = pair()
    with trio.move_on_after(0.02):
        await connection.send_all(b"x" * 1_000_000)
    with pytest.raises(trio.BrokenResourceError):
        await connection.send_all(b"y")
    await peer.aclose()


async def test_replayed_bytes_come_first_and_within_the_asked_size():
    connection, peer = pair()
    await peer.send_all(b"later")
    connection.replay(b"first")
    assert await connection.receive_some(2) == b"fi"
    assert await connection.receive_some() == b"rst"
    assert await connection.receive_some() == b"later"
    await peer.aclose()
    assert await connection.receive_some() == b""


async def test_aclose_wakes_a_receiver():
    connection, peer = pair()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(connection.aclose)
        assert await peer.receive_some() == b""
        await peer.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await connection.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await connection.send_all(b"x")
    assert not connection.offer(b"x")


async def test_abort_wakes_a_sender():
    connection, peer = pair()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await connection.send_all(b"x" * 1_000_000)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        connection.abort()
    await peer.aclose()


async def test_the_last_answer_arrives_though_the_peer_is_still_sending():
    # Over TCP, closing with unread input resets the connection and can take the answer with it.
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener, trio.open_nursery() as nursery:
        peer = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        connection = Connection(await listener.accept())

        async def answer() -> None:
            await connection.receive_some(10)
            await connection.send_all(b"no")
            await connection.aclose()

        nursery.start_soon(answer)
        await peer.send_all(b"x" * 500_000)
        assert await receive_exactly(peer, 2) == b"no"
        await peer.aclose()


async def test_closing_gives_whoever_serves_a_moment_and_no_more():
    connection, peer = pair()
    with trio.fail_after(5), connection.scope:
        await peer.aclose()
        await connection.aclose()
        await trio.sleep_forever()
    assert connection.scope.cancelled_caught
