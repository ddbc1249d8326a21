"""Receivers of webhooks: a small HTTP server of this machine, and the endpoints that the server sends to it.

The first line of its input is the scene; then:
  Wanted     make so many endpoints, answered at once with a Told; another Told says once a second how it is
  Until      wait until each has all that is due to it, or time is up; answered with one End, the endpoints taken away
"""

from __future__ import annotations

import gc
import random
import select
import signal
import socket
import time
from typing import Any

import msgspec

from bench.child import Input, say
from bench.latencies import bucket
from bench.profiles.endpoint import Malformed, exchange, received
from bench.profiles.followers_process import ALL_ONE_IN, LINGER_S, WINDOW_S, Count, End, Story, Told, Until, Wanted
from bench.profiles.scene import Scene
from bench.profiles.traffic import RECEIVERS
from bench.profiles.traffic.forms import Receivers, Registered, Wrong, one_in

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
WITHIN_S = 30.0
_END = b"\r\n\r\n"


class Place:
    """One endpoint, and the positions that it was told, in the order in which they came."""

    __slots__ = ("endpoint", "follows", "form", "told")

    def __init__(self, form: Receivers, endpoint: Registered, follows: str) -> None:
        self.form = form
        self.endpoint = endpoint
        self.follows = follows
        self.told: list[int] = []

    def has_all(self, lasts: dict[str, int]) -> bool:
        """Whether it was told as much as is due: of everything each position, of one stream in order up to the last."""
        last = lasts.get(self.follows, 0)
        if self.follows == "*":
            return len(set(self.told)) >= last - self.endpoint.start
        return last <= self.endpoint.start or (bool(self.told) and self.told[-1] >= last)

    def story(self) -> Story:
        """What it was told. Where everything comes, it may come in any order."""
        in_order = self.follows != "*"
        runs = _runs(self.told if in_order else sorted(self.told))
        return Story(self.form.name, self.follows, self.endpoint.start, runs, whole=True)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the profile ends it, in order
    gc.disable()  # pauses of its own are not the server's
    lines = Input()
    house = House(msgspec.json.decode(lines.next_line(), type=Scene), lines)
    try:
        while line := house.next_line():
            asked: dict[str, Any] = msgspec.json.decode(line)
            if "wanted" in asked:
                house.open(msgspec.convert(asked, Wanted).wanted)
                say(house.look())
            else:
                say(house.end(msgspec.convert(asked, Until)))
    finally:
        house.leave()


class House:
    """All endpoints of this process, and the connections that deliveries come on."""

    def __init__(self, scene: Scene, asked: Input) -> None:
        self._scene = scene
        self._input = asked
        self._chance = random.Random(scene.seed)
        self._forms = {name: form() for name, form in RECEIVERS.items()}
        self._places: list[Place] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self._listener.settimeout(0)
        self._connections: dict[int, tuple[socket.socket, bytearray]] = {}
        self._epoll = select.epoll()
        for one in (asked, self._listener):
            self._epoll.register(one, select.EPOLLIN)
        self._reset()

    def open(self, wanted: dict[str, int]) -> None:
        """Make the endpoints; one that the server refuses counts as an error."""
        for name, count in wanted.items():
            for nth in range(count):
                follows = "*" if nth % ALL_ONE_IN == 0 or not self._scene.hot else one_in(self._chance, self._scene.hot)
                self._register(self._forms[name], follows)

    def _register(self, form: Receivers, follows: str) -> None:
        scene, counts = self._scene, self._counts[form.name]
        counts.tried += 1
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/{len(self._places)}"
        try:
            status, body = exchange(scene.endpoint, form.register(scene, url, follows), within_s=WITHIN_S)
            self._places.append(Place(form, form.registered(status, body), follows))
        except (OSError, Malformed, Wrong) as error:
            counts.errors[f"no endpoint: {error}"] += 1

    def next_line(self) -> bytes:
        """The next line of input, b"" at its end; until it is here, deliveries are taken."""
        while (line := self._input.line()) is None:
            left = self._began + WINDOW_S - time.monotonic()
            if self._turn(max(0.0, left)) and not self._input.take():
                return b""
            if left <= 0:
                say(self.look())
        return line

    def end(self, until: Until) -> End:
        """Take deliveries to the last one, and tell everything."""
        deadline = time.monotonic() + until.within_s
        while time.monotonic() < deadline and not all(place.has_all(until.lasts) for place in self._places):
            self._turn(0.1)
        deadline = time.monotonic() + LINGER_S
        while (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        stories = [place.story() for place in self._places]
        return End(stories, self.look())

    def leave(self) -> None:
        """Take the endpoints away: nobody will be there."""
        for place in self._places:
            try:
                exchange(self._scene.endpoint, place.form.remove(self._scene, place.endpoint), within_s=WITHIN_S)
            except (OSError, Malformed):
                break  # the server has ended, too
        self._places.clear()

    def look(self) -> Told:
        """What has come since the last look."""
        now = time.monotonic()
        for name in self._forms:
            self._counts[name].live = sum(place.form.name == name for place in self._places)
        busy = (time.process_time() - self._cpu_s) / max(1e-3, now - self._began)
        told = Told(ended=now - self._scene.zero, counts=self._counts, busy=busy, deliveries_on=len(self._connections))
        self._reset()
        gc.collect(0)
        return told

    def _reset(self) -> None:
        self._began, self._cpu_s = time.monotonic(), time.process_time()
        self._counts = {name: Count() for name in self._forms}

    def _turn(self, seconds: float) -> bool:
        """Take what comes within so long; True where there is input, too."""
        asked = False
        for fd, _ in self._epoll.poll(seconds):
            if fd == self._input.fileno():
                asked = True
            elif fd == self._listener.fileno():
                sock, _address = self._listener.accept()
                sock.settimeout(0)
                self._connections[sock.fileno()] = sock, bytearray()
                self._epoll.register(sock.fileno(), select.EPOLLIN)
            else:
                self._read(fd)
        return asked

    def _read(self, fd: int) -> None:
        sock, buffer = self._connections[fd]
        data = received(sock)
        at = time.monotonic() - self._scene.zero
        if data is None:
            return
        if not data:
            del self._connections[fd]
            sock.close()
            return
        buffer += data
        while (request := _taken(buffer)) is not None:
            sock.send(ANSWER if self._take(*request, at) else UNKNOWN)

    def _take(self, path: str, headers: list[tuple[str, str]], body: bytes, at: float) -> bool:
        """Whether it is for one that is here."""
        number = path.removeprefix("/")
        if not number.isdecimal() or int(number) >= len(self._places):
            return False
        place = self._places[int(number)]
        counts = self._counts[place.form.name]
        counts.deliveries += 1
        try:
            message = place.form.event(headers, body, place.endpoint)
        except Wrong as error:
            counts.errors[str(error)] += 1
            return True
        place.told.append(message.position)
        due = self._scene.due_of(message.event_id)
        if due is not None:
            counts.latencies[bucket(at - due)] += 1
        return True


def _taken(buffer: bytearray) -> tuple[str, list[tuple[str, str]], bytes] | None:
    """The first whole request, taken out of the buffer: its path, headers and body. None while there is none."""
    end = buffer.find(_END)
    if end < 0:
        return None
    first, *lines = buffer[:end].decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = int(dict(headers).get("content-length", "0"))
    begin = end + len(_END)
    if len(buffer) < begin + length:
        return None
    body = bytes(buffer[begin : begin + length])
    del buffer[: begin + length]
    return first.split(" ")[1], headers, body


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    """The same, as first and last of those that follow upon each other."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs


if __name__ == "__main__":
    main()
