"""Both servers of the fan-out benchmarks, the readers of each, and a round: something is published, and all read it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from bench import fanout_process, npm, readers_process, tables
from bench.child import Child, Program
from bench.latencies import percentile_ms
from bench.openings import Kind
from bench.processes import cpu_clock, cpu_seconds
from bench.readers_process import Heard
from bench.stories import Flaws
from fluxora.storage.embedded import EmbeddedServer

FOLDER = Path(__file__).parent / "baselines" / "ws"
START_S = 120.0
OPEN_S = 300.0
HEAR_S = 120.0  # longest that readers wait for what is due to them


def missing() -> str | None:
    """What keeps the baseline from running here, None where nothing does. Installs its packages where they are not."""
    return npm.missing(FOLDER)


class Teller:
    """A server that publishes on demand; `postmaster` is that of its database, where it has one."""

    def __init__(self, name: str, program: Program, port: int, postmaster: int | None = None) -> None:
        self.name = name
        self.program = program
        self.port = port
        self._postmaster = postmaster

    def prepare(self, commits: Sequence[Sequence[str]]) -> None:
        """Have the events of the next commits made ready."""
        self.program.ask({"prepare": commits}, within_s=START_S)

    def publish(self, every_ms: float, commits: int) -> tuple[int, list[float]]:
        """Publish them; the position before, and when each commit was published."""
        told = self.program.ask({"everyMs": every_ms}, within_s=START_S + commits * every_ms / 1e3)
        return told["before"], told["published"]

    def cpu_s(self) -> float:
        """CPU seconds of the server's process so far."""
        return cpu_clock(self.program.pid)

    def database_cpu_s(self) -> float:
        """Those of PostgreSQL and its children."""
        return 0.0 if self._postmaster is None else cpu_seconds(self._postmaster)


class Tellers(NamedTuple):
    """Ours, the baseline, and a second one of ours that nobody listens to: what the commits alone cost."""

    ours: Teller
    theirs: Teller
    alone: Teller


def start(stack: ExitStack, folder: Path, *, streams: int, sockets: int, ping_s: float = 3600.0) -> Tellers:
    """Start them, the baseline with an event of ours as its sample. Ours share a PostgreSQL, not a database."""
    server = EmbeddedServer(folder / "data")
    server.open()
    stack.callback(server.close)
    postmaster = int((server.data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0])
    own = []
    for name in ("fluxora", "alone"):
        url = asyncio.run(tables.create_database(server.url, f"told_{name}"))
        task = fanout_process.Task(database_url=url, streams=streams, sockets=sockets, ping_s=ping_s)
        child = stack.enter_context(Child(fanout_process.__name__, task, log=folder / f"{name}.log"))
        serving = child.read(within_s=START_S)
        own.append(Teller(name, child, serving["port"], postmaster))
    options = {"sample": serving["sample"], "position": serving["position"], "pingMs": ping_s * 1e3}
    command = ["env", "NODE_ENV=production", "node", str(FOLDER / "server.js"), msgspec.json.encode(options).decode()]
    program = stack.enter_context(Program("ws", command, log=folder / "ws.log"))
    return Tellers(own[0], Teller("ws", program, program.read(within_s=START_S)["port"]), own[1])


class Readers:
    """The readers of one server, dealt out to processes; a context manager that ends them."""

    def __init__(
        self, teller: Teller, kind: Kind, follows: Sequence[Sequence[str]], *, log: Path, processes: int = 1
    ) -> None:
        self.teller = teller
        task = readers_process.Task(port=teller.port, kind=kind)
        self._children = [Child(readers_process.__name__, task, log=log) for _ in range(processes)]
        self._follows = follows

    def __enter__(self) -> Self:
        for nth, child in enumerate(self._children):
            child.tell({"follows": self._follows[nth :: len(self._children)]})
        for child in self._children:
            child.read(within_s=OPEN_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            child.close()

    def begin(self) -> None:
        """A new round."""
        for child in self._children:
            child.ask({"begin": True}, within_s=START_S)

    def hear(self, wanted: readers_process.Round) -> list[Heard]:
        """What each process heard of it."""
        for child in self._children:
            child.tell(wanted)
        return [msgspec.convert(child.read(within_s=wanted.within_s + START_S), Heard) for child in self._children]

    def keep(self, seconds: float) -> Counter[str]:
        """Answer pings for so long; the sums of what the processes say."""
        for child in self._children:
            child.tell({"seconds": seconds})
        found: Counter[str] = Counter()
        for child in self._children:
            found.update(child.read(within_s=seconds + START_S))
        return found


class Result(msgspec.Struct, kw_only=True):
    """What one round found; `span_s` is from the first publishing to the last delivery."""

    deliveries: int
    flaws: Flaws
    differing: int  # readers that were told other bytes than those with the same subscriptions
    gone: int
    cpu_s: float
    database_cpu_s: float
    readers_cpu_s: float
    span_s: float
    latencies: Counter[int]

    def percentile_ms(self, share: float) -> float:
        """A percentile of the time from publishing to a reader having it."""
        return percentile_ms(self.latencies, share)


def play(readers: Readers, commits: Sequence[Sequence[str]], every_ms: float = 0.0) -> Result:
    """One round: publish the commits, one event for each stream id in them, and have everybody read them."""
    teller = readers.teller
    teller.prepare(commits)
    readers.begin()
    cpu_s, database_cpu_s = teller.cpu_s(), teller.database_cpu_s()
    before, published = teller.publish(every_ms, len(commits))
    events = [(position, one) for position, one in enumerate((one for each in commits for one in each), before + 1)]
    lasts, position = [], before
    for each in commits:
        position += len(each)
        lasts.append(position)
    wanted = readers_process.Round(events=events, commits=list(zip(lasts, published, strict=True)), within_s=HEAR_S)
    heard = readers.hear(wanted)
    cpu_s, database_cpu_s = teller.cpu_s() - cpu_s, teller.database_cpu_s() - database_cpu_s
    flaws, latencies = Flaws(), Counter[int]()
    for one in heard:
        flaws.add(one.flaws)
        latencies.update(dict(one.latencies))
    return Result(
        deliveries=sum(one.deliveries for one in heard),
        flaws=flaws,
        differing=sum(one.differing for one in heard),
        gone=sum(one.gone for one in heard),
        cpu_s=cpu_s,
        database_cpu_s=database_cpu_s,
        readers_cpu_s=sum(one.cpu_s for one in heard),
        span_s=max(0.0, max(one.last_at for one in heard) - published[0]),
        latencies=latencies,
    )
