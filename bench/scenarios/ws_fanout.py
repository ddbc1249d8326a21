"""Live events over WebSockets, against the predecessor's hub (ws 8 on Node): the same messages, the same readers.

Ours are committed to PostgreSQL first, a hundred events in one transaction (`burst`) or one in each (`paced`); the
baseline has them in memory. What is judged is the ratio of deliveries per CPU second of the server's process, and the
99th percentile from publishing to a reader. Any delivery that is lost, doubled or out of place fails the run.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from bench import fanout, fanout_process
from bench.cores import pinned
from bench.fanout import Readers, Teller, play
from bench.fanout_case import Case, add_options, modes
from bench.harness import Run
from bench.latencies import percentile_ms
from bench.stalled import Stalled

CORES = 2
STREAMS = 200
SUBSCRIPTIONS = 20
STALLED_PER_SECOND = 20
FLOOD = 40  # events of a commit that only the stalled reader follows: it has enough of them after a second or so
MOST_STALLED_RATIO = 1.5
CLOSE_WITHIN_S = 30.0
SLOW_CONSUMER = 4001
LEAST_BURST_RATIO = {"one": 10.0, "twenty": 10.0, "all": 10.0, "own": 3.0}  # of `own`, a reader gets a tenth of a burst
SHAPES = {
    "one": "1 stream",  # that all follow
    "twenty": f"{SUBSCRIPTIONS} streams",  # the same
    "all": "*",
    "own": f"{SUBSCRIPTIONS} of {STREAMS} streams",  # at random
}


class WsFanout:
    """Deliveries per CPU second and their latency, ours and the predecessor's."""

    name = "ws_fanout"
    summary = "WebSocket fan-out: deliveries per CPU second and latency, against ws on Node"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """How much, and what of it."""
        parser.add_argument(
            "--sockets", nargs="+", type=int, default=[500], help="WebSockets (500 2000 10000 for the real thing)"
        )
        parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["twenty", "all"], help="who follows what")
        add_options(parser)
        parser.add_argument("--healthy", type=int, default=1_000, help="readers beside a stalled one; 0 leaves it out")

    def run(self, run: Run) -> None:
        """Serve, open, publish, compare."""
        lacking = fanout.missing()
        if lacking is not None:
            run.skip(lacking)
            return
        options = run.options
        with ExitStack() as stack:
            run.note(f"readers, both servers and PostgreSQL share {stack.enter_context(pinned(CORES))} cores")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxora-bench-")))
            folder.chmod(0o755)  # the server runs as a user of its own when this one is root
            with run.stage("serve"):
                most = max([*options.sockets, options.healthy])
                tellers = fanout.start(stack, folder, streams=STREAMS, sockets=most)
            for count in options.sockets:
                for shape in options.shapes:
                    follows, told = who_follows(shape, count)
                    case = Case(f"{count} sockets, {SHAPES[shape]}", "ws", follows, folder, options.processes)
                    reached = sum(told[0] in one or one == ["*"] for one in follows)
                    case.run(
                        run,
                        tellers,
                        modes(options, told, reached, least_burst_ratio=LEAST_BURST_RATIO[shape]),
                        options.rounds,
                    )
            if options.healthy:
                _beside_a_stalled_one(run, tellers.ours, folder)


def who_follows(shape: str, count: int) -> tuple[list[list[str]], list[str]]:
    """For each of `count` readers what it follows, and the streams that events are of."""
    ids = [fanout_process.stream_id(number) for number in range(1, STREAMS + 1)]
    if shape == "own":
        chosen = random.Random(1)
        return [chosen.sample(ids, SUBSCRIPTIONS) for _ in range(count)], ids
    followed = {"one": ids[:1], "twenty": ids[:SUBSCRIPTIONS], "all": ["*"]}[shape]
    return [followed] * count, ids[:1] if shape == "one" else ids[:SUBSCRIPTIONS]


def _beside_a_stalled_one(run: Run, teller: Teller, folder: Path) -> None:
    """The latency of healthy readers, with and without one beside them that reads nothing."""
    options = run.options
    followed, flooded = (fanout_process.stream_id(number) for number in (1, 2))
    commits = [[followed, *[flooded] * FLOOD]] * max(2, round(STALLED_PER_SECOND * max(2.0, options.seconds)))
    quiet, beside = Counter[int](), Counter[int]()
    codes: list[int | None] = []
    flaws = 0
    title = f"{options.healthy} sockets"
    log = folder / "healthy.log"
    with (
        run.stage(f"{title} beside a stalled one"),
        Readers(teller, "ws", [[followed]] * options.healthy, log=log, processes=options.processes) as readers,
    ):
        play(readers, commits[:STALLED_PER_SECOND], 1e3 / STALLED_PER_SECOND)  # warms up
        for _ in range(options.rounds):
            result = play(readers, commits, 1e3 / STALLED_PER_SECOND)
            quiet.update(result.latencies)
            flaws += result.flaws.total + result.gone
            with Stalled(teller.port, flooded) as stalled:
                result = play(readers, commits, 1e3 / STALLED_PER_SECOND)
                codes.append(stalled.close_code(CLOSE_WITHIN_S))
            beside.update(result.latencies)
            flaws += result.flaws.total + result.gone
    for share in (0.50, 0.99):
        name = f"{title}, {STALLED_PER_SECOND} commits a second: p{share * 100:.0f}"
        run.figure(name, percentile_ms(quiet, share), "ms")
        run.figure(f"{name}, beside a stalled one", percentile_ms(beside, share), "ms")
    ratio = percentile_ms(beside, 0.99) / percentile_ms(quiet, 0.99)
    run.equal(f"{title} beside a stalled one: lost, doubled, out of order, not theirs, or ended", flaws, 0)
    run.equal(
        f"{title} beside a stalled one: closed with 4001, of the stalled", codes.count(SLOW_CONSUMER), options.rounds
    )
    run.goal_at_most(f"{title} beside a stalled one: p99, ratio", ratio, MOST_STALLED_RATIO)
