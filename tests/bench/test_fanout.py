from __future__ import annotations

import argparse
import json
import os
import socket
import time
from contextlib import ExitStack
from threading import Thread

import h11
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage
from wsproto.frame_protocol import FrameProtocol, Opcode

from bench import fanout, npm
from bench.child import Child, Program
from bench.fanout import Readers, Teller, play
from bench.harness import Run
from bench.processes import cpu_clock
from bench.readers_process import Heard
from bench.scenarios.sse import Sse
from bench.scenarios.ws_connections import WsConnections
from bench.scenarios.ws_fanout import WsFanout, who_follows
from bench.stalled import Stalled
from bench.stories import NO_EVENT, Flaws, Story, chunks, frames, judge

PATIENCE_S = 30
WALKS = {"ws": frames, "sse": chunks}
DUE = [11, 12, 13, 14]


def ws(position, filling=""):
    """A message, framed by wsproto; its payload has a position of its own, which is another."""
    told = {"type": "stream_update", "payload": {"position": "7", "memo": filling}, "position": str(position)}
    return bytes(FrameProtocol(client=False, extensions=[]).send_data(json.dumps(told, separators=(",", ":"))))


def sse(position, filling=""):
    """An event, in a chunk by h11."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    connection.next_event()
    connection.send(h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")]))
    text = f"id: {position}\nevent: stream.updated\ndata: {json.dumps({'id: ': filling})}\n\n"
    return connection.send(h11.Data(data=text.encode()))


MAKE = {"ws": ws, "sse": sse}


def received(make, positions):
    return b"".join(make(position) for position in positions)


# -- stories -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WALKS)
@given(st.data())
def test_a_story_is_what_was_told_however_it_is_cut(kind, data):
    told = data.draw(st.lists(st.tuples(st.integers(1, 10**18), st.sampled_from([0, 1, 60, 130, 70_000])), max_size=3))
    octets = b"".join(MAKE[kind](position, "x" * size) for position, size in told)
    story = Story(WALKS[kind])
    readers = [0, 0]
    while min(readers) < len(octets):
        which = data.draw(st.sampled_from([one for one in (0, 1) if readers[one] < len(octets)]))
        at = readers[which]
        size = data.draw(st.integers(1, max(1, len(octets) - at)))
        assert story.take(at, octets[at : at + size])
        readers[which] += size
    assert story.positions == [position for position, _ in told]
    assert story.ends[-1:] == ([len(octets)] if told else [])
    for place, end in enumerate(story.ends):
        assert story.told(end) == place + 1
        assert story.told(end - 1) == place


@pytest.mark.parametrize("kind", WALKS)
@given(st.data())
def test_a_bit_that_differs_is_seen_and_told_apart(kind, data):
    octets = received(MAKE[kind], DUE)
    story = Story(WALKS[kind])
    assert story.take(0, octets)
    place = data.draw(st.integers(0, len(octets) - 1))
    other = octets[:place] + bytes((octets[place] ^ 1 << data.draw(st.integers(0, 7)),)) + octets[place + 1 :]
    assert not story.take(0, other)
    assert story.positions == DUE


def test_who_was_told_something_else_gets_a_story_of_its_own():
    story = Story(frames)
    shared = received(ws, DUE[:2])
    assert story.take(0, shared + ws(13))
    assert not story.take(len(shared), ws(14))
    own = story.apart(len(shared))
    assert own.take(len(shared), ws(14))
    assert own.positions == [11, 12, 14]
    assert story.positions == [11, 12, 13]


def test_what_is_no_event_is_none():
    story = Story(frames)
    told = [b"\x89\x00", b'\x81\x0f{"type":"pong"}', b"\x88\x02\x0f\xa1", b'\x82\x10"position":"12" ']
    assert story.take(0, b"".join(told))
    assert story.positions == [NO_EVENT] * 4


@given(st.lists(st.integers(1, 9), max_size=12), st.sets(st.integers(1, 9)))
def test_whatever_was_not_told_as_it_should_be_is_a_flaw(told, due):
    found = judge(told, sorted(due))
    assert (found.total == 0) is (told == sorted(due))
    assert found.lost == len(due - set(told))
    assert found.strange == sum(position not in due for position in told)
    assert found.doubled == sum(told.count(position) - 1 for position in due & set(told))


def test_flaws_add_up():
    flaws = Flaws(lost=1)
    flaws.add(Flaws(lost=1, doubled=2, disordered=3, strange=4), times=3)
    assert flaws == Flaws(lost=4, doubled=6, disordered=9, strange=12)
    assert flaws.total == 31


# -- readers -----------------------------------------------------------------------------------------------------------


class Speaker:
    """A server that tells each of its readers what it is bidden to."""

    def __init__(self, kind, folder):
        self._kind = kind
        self._log = folder / "readers"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.peers = []

    def __enter__(self):
        self._stack = ExitStack()
        self._stack.enter_context(self._listener)
        task = {"port": self._listener.getsockname()[1], "kind": self._kind}
        self.readers = self._stack.enter_context(Child("bench.readers_process", task, log=self._log))
        return self

    def __exit__(self, *error):
        self._stack.close()

    def open(self, count):
        self.readers.tell({"follows": [["s"]] * count})
        self.peers = [self._stack.enter_context(self._listener.accept()[0]) for _ in range(count)]
        for peer in self.peers:
            (self._shake_hands if self._kind == "ws" else self._begin)(peer)
        assert self.readers.read(within_s=PATIENCE_S) == {"opened": count}
        if self._kind == "ws":
            assert [peer.recv(65536)[0] for peer in self.peers] == [0x80 | Opcode.PONG] * count
        self.readers.ask({"begin": True}, within_s=PATIENCE_S)

    def _shake_hands(self, peer):
        connection = WSConnection(ConnectionType.SERVER)
        while True:
            connection.receive_data(peer.recv(65536))
            for event in connection.events():
                if isinstance(event, Request):
                    peer.sendall(connection.send(AcceptConnection()))
                elif isinstance(event, TextMessage):
                    assert json.loads(event.data) == {"type": "subscribe", "streamId": "s", "ref": "last"}
                    peer.sendall(b"\x89\x00")  # which may come before
                    ack = {"type": "ack", "ref": "last", "position": "10", "recovered": False}
                    peer.sendall(connection.send(TextMessage(json.dumps(ack, separators=(",", ":")))))
                    return

    def _begin(self, peer):
        assert peer.recv(65536).startswith(b"GET /api/events/stream?streamId=s HTTP/1.1\r\n")
        begin = b"retry: 3000\nid: 10\n\n"
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        peer.sendall(head + b"%x\r\n%b\r\n" % (len(begin), begin))

    def heard(self, *, within_s=PATIENCE_S):
        published = time.monotonic()
        events = [(position, "s") for position in DUE] + [(15, "another")]
        wanted = {"events": events, "commits": [(12, published), (15, published)], "within_s": within_s}
        return msgspec.convert(self.readers.ask(wanted, within_s=2 * PATIENCE_S), Heard)


@pytest.fixture
def speaker(request, tmp_path):
    with Speaker(request.param, tmp_path) as made:
        yield made


@pytest.mark.parametrize("speaker", WALKS, indirect=True)
def test_readers_that_are_told_everything_say_so(speaker):
    speaker.open(3)
    for peer in speaker.peers:
        peer.sendall(received(MAKE[speaker._kind], DUE))
    heard = speaker.heard()
    assert heard.flaws == Flaws()
    assert heard.deliveries == heard.due == 3 * len(DUE)
    assert heard.gone == 0
    assert sum(count for _, count in heard.latencies) == heard.deliveries


@pytest.mark.parametrize("speaker", WALKS, indirect=True)
@pytest.mark.parametrize(
    ("told", "flaws"),
    [
        ([11, 12, 14], Flaws(lost=1)),
        ([11, 12, 12, 13, 14], Flaws(doubled=1)),
        ([11, 13, 12, 14], Flaws(disordered=1)),
        ([11, 12, 13, 14, 15], Flaws(strange=1)),
        ([], Flaws(lost=4)),
    ],
)
def test_one_reader_that_is_told_something_else_is_found(speaker, told, flaws):
    speaker.open(3)
    for peer, positions in zip(speaker.peers, (DUE, told, DUE), strict=True):
        peer.sendall(received(MAKE[speaker._kind], positions))
    assert speaker.heard(within_s=0.3).flaws == flaws  # which is waited for only where something never comes


@pytest.mark.parametrize("speaker", WALKS, indirect=True)
def test_what_differs_from_what_others_were_told_is_found_though_the_position_is_right(speaker):
    make = MAKE[speaker._kind]
    speaker.open(2)
    speaker.peers[0].sendall(received(make, DUE))
    speaker.peers[1].sendall(make(11) + make(12, "x") + make(13) + make(14))
    heard = speaker.heard()
    assert heard.flaws == Flaws()
    assert heard.differing == 1


@pytest.mark.parametrize("speaker", WALKS, indirect=True)
def test_a_connection_that_ends_is_counted(speaker):
    speaker.open(2)
    speaker.peers[0].sendall(received(MAKE[speaker._kind], DUE))
    speaker.peers[1].close()
    heard = speaker.heard(within_s=0.3)
    assert heard.gone == 1
    assert heard.flaws == Flaws(lost=4)


@pytest.mark.parametrize("speaker", ["ws"], indirect=True)
def test_pings_are_answered_and_counted(speaker):
    speaker.open(1)
    (peer,) = speaker.peers
    connection = FrameProtocol(client=False, extensions=[])
    for sent in (b"\x89\x00", b"\x89\x00\x89\x00"):
        peer.sendall(sent)
        connection.receive_bytes(peer.recv(65536))
        assert [frame.opcode for frame in connection.received_frames()] == [Opcode.PONG]
    kept = speaker.readers.ask({"seconds": 0}, within_s=PATIENCE_S)
    assert kept == {"pings": 3, "strange": 0, "left": 1}
    assert speaker.readers.ask({"seconds": 0}, within_s=PATIENCE_S)["pings"] == 0


@pytest.mark.parametrize(("last", "code"), [(b"\x88\x02\x0f\xa1", 4001), (b"", None)])
def test_a_stalled_one_tells_the_code_of_its_end(last, code):
    def serve():
        peer, _ = listener.accept()
        with peer:
            while not peer.recv(65536).endswith(b"\r\n\r\n"):
                pass
            peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            peer.recv(65536)
            peer.sendall(b'\x81\x13{"recovered":false}' + received(ws, DUE) + last)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve)
        thread.start()
        with Stalled(listener.getsockname()[1], "s") as stalled:
            assert stalled.close_code(PATIENCE_S, still_s=0.0) == code
        thread.join()


# -- the baseline, and whole scenarios ---------------------------------------------------------------------------------


@pytest.fixture
def baseline(tmp_path):
    if reason := fanout.missing():
        pytest.skip(reason)
    sample = {"event": "stream.updated", "eventId": "1-x", "action": "withdrew", "ledger": 5, "timestamp": "t"}
    options = {"sample": {**sample, "payload": {"memo": "payroll"}}, "position": 10, "pingMs": 3_600_000}
    command = ["node", str(fanout.FOLDER / "server.js"), json.dumps(options)]
    with Program("ws", command, log=tmp_path / "log") as program:
        yield Teller("ws", program, program.read(within_s=PATIENCE_S)["port"])


@pytest.mark.parametrize("kind", WALKS)
def test_the_baseline_tells_everybody_what_they_follow(baseline, kind, tmp_path):
    follows = [["a"], ["a"], ["b"], ["*"]] if kind == "sse" else [["a"], ["a", "b"], ["b", "c"], ["*"]]
    with Readers(baseline, kind, follows, log=tmp_path / "readers", processes=2) as readers:
        for commits, deliveries in (([["a", "b", "a"], ["c"]], {"sse": 9, "ws": 11}), ([["a"]], {"sse": 3, "ws": 3})):
            result = play(readers, commits)
            assert result.flaws == Flaws()
            assert result.differing == result.gone == 0
            assert result.deliveries == result.latencies.total() == deliveries[kind]
            assert result.cpu_s > 0


def test_without_node_the_scenarios_are_skipped_and_say_so(monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda _name: None)
    for scenario in (WsFanout(), WsConnections(), Sse()):
        run = Run(scenario.name, argparse.Namespace(strict=False))
        scenario.run(run)
        assert run.report.skipped is not None
        assert "node" in run.report.skipped


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        (WsFanout(), ["--sockets", "6", "--shapes", "own", "--healthy", "3"]),
        (Sse(), ["--streams", "6", "--shapes", "one"]),
    ],
)
def test_nothing_is_lost_in_a_small_run(scenario, options):
    if reason := fanout.missing():
        pytest.skip(reason)
    parser = argparse.ArgumentParser()
    scenario.add_options(parser)
    run = Run(scenario.name, parser.parse_args([*options, "--rounds", "1", "--seconds", "0.05", "--rate", "600"]))
    scenario.run(run)
    assert run.report.passed, run.report
    assert len(run.report.verdicts) > 5


def test_idle_sockets_stay_open_in_a_small_run():
    if reason := fanout.missing():
        pytest.skip(reason)
    run = Run("ws_connections", argparse.Namespace(sockets=[5], ping=1.0, beats=1, processes=1))
    WsConnections().run(run)
    assert run.report.passed, run.report


def test_who_follows_what():
    follows, told = who_follows("own", 50)
    assert {len(set(one)) for one in follows} == {20}
    assert len({tuple(one) for one in follows}) == 50
    assert len(told) == 200
    follows, told = who_follows("twenty", 3)
    assert follows == [told] * 3


# -- figures -----------------------------------------------------------------------------------------------------------


def test_the_cpu_clock_of_a_process_is_its_own_cpu_time():
    before = time.process_time()
    read = cpu_clock(os.getpid())
    assert before <= read <= time.process_time()
