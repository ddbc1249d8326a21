"""What load, stress and soak have in common: their options, the system they load, and what is reported and judged."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.harness import Run, Verdict
from bench.profiles import endpoint, mix, system, thresholds
from bench.profiles.drive import Drive
from bench.profiles.measures import Measures, Points, spread
from bench.profiles.stopping import Stopping
from bench.profiles.thresholds import Threshold
from bench.profiles.traffic import ALL, RECEIVERS, REQUESTS, TOLD, WEIGHTS

MOST_DISTURBANCE = 0.15  # of the machine
SPARE_SOCKETS = 200  # beyond the followers: those that are just being replaced
PROMISES = ("lost count==0", "doubled count==0", "redelivered count==0", "disordered count==0")
SPEED = (
    "http_req_duration p(99)<250",
    "http_req_duration{scenario:rest_reads} p(99)<250",
    "ws_delivery_latency p(99)<500",
    "sse_delivery_latency p(99)<500",
    "webhook_delivery_latency p(99)<1000",
    "generator_busy p(95)<0.9",
)
SERVED = ("errors rate<0.001", "dropped_iterations count==0")


def add_options(parser: argparse.ArgumentParser, *, followers: int, streams: int = 5_000) -> None:
    """The options of every profile."""
    kinds = "; ".join(f"{name} ({one.summary})" for name, one in ALL.items())
    default = ",".join(f"{name}={weight:g}" for name, weight in WEIGHTS.items())
    parser.add_argument(
        "--url", type=endpoint.parse, help="load this server instead of one started here (its limits of rate apply)"
    )
    parser.add_argument(
        "--mix",
        type=mix.parse,
        default=WEIGHTS,
        metavar="NAME=WEIGHT,...",
        help=f"scenarios and their weights among requests, and among followers: {kinds}. Default: {default}",
    )
    parser.add_argument("--followers", type=_whole, default=followers, help="followers at the peak (%(default)s)")
    parser.add_argument(
        "--threshold",
        type=thresholds.parse,
        action="append",
        default=[],
        dest="thresholds",
        metavar="TEXT",
        help="a condition that fails the run, in place of the profile's own of that name: "
        "'http_req_duration{scenario:rest_reads} p(99)<250' (may be given again)",
    )
    parser.add_argument("--streams", type=_positive, default=streams, help="streams in the database (%(default)s)")
    parser.add_argument("--generators", type=_positive, default=1, help="processes that send requests, and that follow")
    parser.add_argument("--connections", type=_positive, default=128, help="most of the requests (%(default)s)")
    parser.add_argument("--seed", type=_whole, default=1, help="of all that is drawn by chance (%(default)s)")


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return number


def _positive(text: str) -> int:
    number = _whole(text)
    if not number:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


@contextmanager
def driving(run: Run, *, full: bool = False) -> Iterator[Drive]:
    """The system, loaded as the options say; at the end of the block what was found is in the report.

    `full`: its caches are filled before.

    Raises:
        SystemExit: the mix names no scenario that there is.
    """
    options = run.options
    with ExitStack() as stack:
        stopping = stack.enter_context(Stopping())
        sockets = options.followers + SPARE_SOCKETS
        target = system.start(stack, run, url=options.url, streams=options.streams, sockets=sockets)
        weights = _playable(
            run,
            options.mix,
            can_push=target.worker_token is not None,
            can_administer=target.admin_headers is not None,
        )
        drive = stack.enter_context(Drive(run, target, weights=weights, stopping=stopping, full=full))
        try:
            yield drive
        finally:
            _describe(run, drive.measures)
        drive.finish()
        if stopping:
            run.interrupt()


def _playable(run: Run, weights: dict[str, float], *, can_push: bool, can_administer: bool) -> dict[str, float]:
    unknown = sorted(weights.keys() - WEIGHTS.keys())
    if unknown:
        raise SystemExit(f"--mix: there is no scenario {', '.join(unknown)}; there are {', '.join(WEIGHTS)}")
    if "ingest" in weights and not can_push:
        run.note("INDEXER_WORKER_TOKEN is not set: nothing is pushed, and followers hear of registrations alone")
        weights = {name: weight for name, weight in weights.items() if name != "ingest"}
    if not can_administer and any(name in RECEIVERS for name in weights):
        run.note("no webhooks: the credential may make no endpoint, or the server is not on this machine")
        weights = {name: weight for name, weight in weights.items() if name not in RECEIVERS}
    if not any(name in REQUESTS for name in weights):
        raise SystemExit(f"--mix: one of {', '.join(REQUESTS)} is needed, or nothing would happen")
    return weights


def own_thresholds(drive: Drive, texts: Sequence[str]) -> list[Threshold]:
    """The profile's thresholds of what takes part, and those that were given."""
    taking_part = drive.taking_part
    heard = {TOLD[name].latency for name in taking_part if name in TOLD and "ingest" in taking_part}
    silent = {one.latency for one in TOLD.values()} - heard
    own = [
        threshold
        for threshold in map(thresholds.parse, texts)
        if threshold.metric not in silent and (threshold.scenario is None or threshold.scenario in taking_part)
    ]
    return thresholds.merged(own, drive.options.thresholds)


def judge(run: Run, measures: Measures, conditions: Sequence[Threshold]) -> None:
    """A verdict for each."""
    for threshold in conditions:
        value = measures.of(threshold.metric, threshold.scenario).value(threshold.aggregate)
        found = "nothing was measured" if value is None else f"{value:.4g}"
        passed = value is not None and threshold.holds(value)
        run.report.verdicts.append(Verdict(threshold.name, threshold.required, found, passed))


def _describe(run: Run, measures: Measures) -> None:
    """Figures and lines of all that was measured."""
    series = measures.series
    for name, latencies in sorted(measures.latencies.items()):
        for share in (50, 95, 99):
            value = measures.of(_metric(name), name).value(f"p({share})")
            if value is not None and latencies:
                run.figure(f"{name}: p{share}", value, "ms", spread=spread(series[f"Latency of {name}, ms: p{share}"]))
    answered = sum(measures.answered.values())
    if measures.seconds:
        rate = answered / measures.seconds
        run.figure("answers", rate, "/s", spread=spread(series["Throughput, /s: answers"]))
        told = sum(measures.deliveries.values())
        run.figure("deliveries", told / measures.seconds, "/s", spread=spread(series["Deliveries, /s: followers 1"]))
    run.figure("answers, all", answered, "")
    run.figure("latest that a request was sent behind its time", measures.late_s * 1e3, "ms")
    for name, points in sorted(series.items()):
        run.series(name, points)
        if name.startswith(("CPU, ", "CPU of an actor, ", "Load generators, ", "Machine, ", "Resident memory, ")):
            values = [value for _, value in points] or [0.0]
            plot, _, line = name.partition(": ")
            what, _, unit = plot.partition(", ")
            run.figure(f"{what} of {line}, mean", _mean(points), unit, spread=spread(points))
            run.figure(f"{what} of {line}, most", max(values), unit)
    own = sum(_mean(points) for name, points in series.items() if name.startswith(("CPU, ", "Load generators, ")))
    busy = series.get("Machine, cores: busy")
    if busy and _mean(busy) - own > MOST_DISTURBANCE * run.report.machine.cores:
        run.note(f"{_mean(busy) - own:.2f} cores were busy with something else: latencies are higher for it")
    for name, reasons in sorted(measures.errors.items()):
        for reason, count in reasons.most_common(5):
            run.note(f"{count} errors of {name}: {reason}")


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points) if points else 0.0


def _metric(scenario: str) -> str:
    return TOLD[scenario].latency if scenario in TOLD else "http_req_duration"
