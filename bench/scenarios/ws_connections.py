"""What an open WebSocket costs while nothing is said: memory of the server's process, and CPU for the heartbeat.

Each socket has one subscription, answers pings, and hears nothing else. Beside it the predecessor's hub (ws 8 on Node)
with as many. Memory is what is resident, as the system counts it; what the kernel keeps for a socket is in neither.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import fanout, fanout_process
from bench.cores import pinned
from bench.fanout import Readers, Teller
from bench.harness import Run
from bench.processes import resident_bytes

CORES = 2
STREAMS = 200
MOST_BYTES, FEW_BYTES = 25_000, 12_000  # of an idle socket: the goal, and what would be fine
WARM = 100  # sockets opened and closed before, so that what the first ones load is in no one's figure
SETTLE_S = 1.0


@dataclass(frozen=True)
class _Idle:
    """What idle sockets cost: memory of each, CPU seconds of each heartbeat of each, and cores for all."""

    bytes: float
    beat_cpu_s: float
    cores: float


class WsConnections:
    """Memory and CPU of idle WebSockets, ours and the predecessor's."""

    name = "ws_connections"
    summary = "idle WebSockets: resident memory and heartbeat CPU of each, beside ws on Node"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How many and how long."""
        parser.add_argument(
            "--sockets", nargs="+", type=int, default=[2_000], help="WebSockets (2000 10000 for the real thing)"
        )
        parser.add_argument(
            "--ping", type=float, default=3.0, help="seconds between two pings (30, the default of the server, as well)"
        )
        parser.add_argument("--beats", type=int, default=2, help="pings of each socket that are measured")
        parser.add_argument("--processes", type=int, default=1, help="processes that hold the other ends")

    def run(self, run: Run) -> None:
        """Open and wait, ours and theirs at the same time."""
        lacking = fanout.missing()
        if lacking is not None:
            run.skip(lacking)
            return
        with ExitStack() as stack:
            run.note(f"readers, both servers and PostgreSQL share {stack.enter_context(pinned(CORES))} cores")
            for count in run.options.sockets:
                _measure(run, count)


def _measure(run: Run, count: int) -> None:
    """With servers of their own, since memory that was used once is seldom given back."""
    ids = [fanout_process.stream_id(number) for number in range(1, STREAMS + 1)]
    follows = [[ids[number % STREAMS]] for number in range(count)]
    options = run.options
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
        folder.chmod(0o755)  # the server runs as a user of its own when this one is root
        with run.stage(f"{count} sockets: serve"):
            tellers = fanout.start(stack, folder, streams=STREAMS, sockets=count, ping_s=options.ping)
        found = {}
        for teller in (tellers.ours, tellers.theirs):
            with run.stage(f"{count} sockets: {teller.name}"):
                found[teller.name] = _idle(run, teller, follows, folder)
    for name, side in zip(("", f", baseline {tellers.theirs.name}"), found.values(), strict=True):
        run.figure(f"{count} sockets: resident memory of each{name}", side.bytes / 1e3, "KB")
        run.figure(f"{count} sockets: CPU of one heartbeat of one{name}", side.beat_cpu_s * 1e6, "us")
        share = side.cores * 100
        run.figure(f"{count} sockets: share of a core, pings {options.ping:g} s apart{name}", share, "%")
    ours = found[tellers.ours.name]
    run.goal_at_most(f"{count} sockets: resident bytes of each", ours.bytes, MOST_BYTES)
    run.goal_at_most(f"{count} sockets: resident bytes of each, further", ours.bytes, FEW_BYTES)


def _idle(run: Run, teller: Teller, follows: list[list[str]], folder: Path) -> _Idle:
    """Open, wait, and look."""
    options, count = run.options, len(follows)
    log = folder / f"{teller.name}-readers.log"
    with Readers(teller, "ws", follows[:WARM], log=log):
        pass
    time.sleep(SETTLE_S)
    before = resident_bytes(teller.program.pid)
    with Readers(teller, "ws", follows, log=log, processes=options.processes) as readers:
        readers.keep(max(SETTLE_S, options.ping))  # for those that were opened first may be due already
        resident = resident_bytes(teller.program.pid)
        cpu_s = teller.cpu_s()
        kept = readers.keep(options.ping * options.beats)
        cpu_s = teller.cpu_s() - cpu_s
    run.equal(f"{count} sockets, {teller.name}: still open", kept["left"], count)
    run.equal(f"{count} sockets, {teller.name}: messages that were not expected", kept["strange"], 0)
    enough = kept["pings"] >= count * (options.beats - 1)
    run.equal(f"{count} sockets, {teller.name}: pings for all", enough, required=True)
    return _Idle((resident - before) / count, cpu_s / max(1, kept["pings"]), cpu_s / (options.ping * options.beats))
