"""Fill what a server keeps in memory up to its bounds, so that what grows afterwards is none of that.

The read cache keeps the streams that were read or listed last, the hub whose the streams are that events came of last,
and the feed the newest events of the log. Streams that are registered while a soak goes on would else fill the first
two, and what is pushed the last.
"""

from __future__ import annotations

from bench.profiles.endpoint import Malformed, exchange
from bench.profiles.readback import Reader, Unreadable
from bench.profiles.scene import Scene, pushed
from bench.profiles.system import creation
from bench.profiles.traffic.ingest import push

STREAMS = 50_000  # of the read cache
EVENTS = 20_000  # each of another stream: as many as the hub remembers, and more than the feed keeps
PAGE, AT_ONCE = 100, 200
WITHIN_S = 60.0


def fill(scene: Scene, reader: Reader) -> tuple[int, int]:
    """List as many streams and push as many events as are kept; how many there were of each.

    Raises:
        Unreadable, Wrong, OSError: the server did not answer as it should.
    """
    return _list_streams(reader), _push_events(scene) if scene.hot else 0


def _list_streams(reader: Reader) -> int:
    found, cursor = 0, ""
    while found < STREAMS:
        page = reader.get(f"/api/streams?limit={PAGE}{cursor}", dict)
        found += len(page["streams"])
        if not page["hasMore"]:
            break
        cursor = f"&cursor={page['nextCursor']}"
    return found


def _push_events(scene: Scene) -> int:
    """Creations at the time 0 of the run, numbered behind those of the hot streams."""
    first = len(scene.hot_numbers)
    for begin in range(first, first + EVENTS, AT_ONCE):
        events = [
            pushed(scene, 0.0, nth, "created", creation(scene.hot_numbers[0] + nth, scene.people, nth))
            for nth in range(begin, begin + AT_ONCE)
        ]
        asked = push(scene, events)
        try:
            status, body = exchange(scene.endpoint, asked.octets, within_s=WITHIN_S)
        except Malformed as error:
            raise Unreadable(str(error)) from error
        asked.judge(status, body)
    return EVENTS
