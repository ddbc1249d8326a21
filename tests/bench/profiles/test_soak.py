from __future__ import annotations

import argparse
import random

import pytest

from bench.harness import Run
from bench.profiles.soak import judge_growth
from bench.profiles.watch import DEAD, GONE, VACUUMED_AT

SECONDS = 1200


def lines(**changes):
    """Twenty minutes of a healthy server, a sample a second."""
    chance = random.Random(1)
    healthy = {
        "Resident memory, MB: server": lambda at: 120 + min(at, 300) * 0.1 + chance.gauss(0, 0.3),  # caches fill
        "Resident memory, MB: PostgreSQL": lambda at: 150 + at * 0.05,
        "Descriptors of the server: beyond connections": lambda _: 24 + chance.choice([0, 0, 0, 1]),
        f"{DEAD}streams": lambda at: 20 * (at % 60) + 100,
        f"{VACUUMED_AT}streams": lambda at: 550 + at * 2,
        f"{GONE}streams": lambda at: at * 20,
        f"{DEAD}log_head": lambda at: 5 + at % 40,
        f"{VACUUMED_AT}log_head": lambda _: 50,
        f"{GONE}log_head": lambda at: at * 5,
        "Waiting for an actor: recorder": lambda _: chance.choice([0, 0, 1, 3]),
        "Oldest unanswered request, s: age": lambda _: chance.random() * 0.02,
        "Oldest webhook delivery, s: age": lambda at: at % 2,
        "Ingest behind the chain, s: since the last ledger closed": lambda at: at % 5 + chance.random(),
        "Events behind the log: hub": lambda _: chance.choice([0, 0, 0, 10]),
    } | changes
    return {name: [(float(at), float(value(at))) for at in range(SECONDS)] for name, value in healthy.items()}


def failed(found):
    run = Run("soak", argparse.Namespace())
    judge_growth(run, found)
    return [verdict.name for verdict in run.report.verdicts if not verdict.passed]


def test_a_healthy_server_passes():
    assert failed(lines()) == []


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("Resident memory, MB: server", lambda at: 120 + at * 0.02 + (at % 7) * 0.2, "growth of the server"),
        ("Descriptors of the server: beyond connections", lambda at: 24 + at // 100, "descriptors"),
        (f"{DEAD}streams", lambda at: at * 20, "dead rows of streams"),
        (f"{DEAD}log_head", lambda at: at, "dead rows of log_head"),
        ("Waiting for an actor: recorder", lambda at: at / 10, "backlog: recorder"),
        ("Oldest unanswered request, s: age", lambda at: at / 20, "backlog: oldest unanswered request"),
        ("Oldest webhook delivery, s: age", lambda at: at / 100, "backlog: oldest webhook delivery"),
        ("Ingest behind the chain, s: since the last ledger closed", lambda at: at / 100, "backlog: ingest behind"),
        ("Events behind the log: hub", lambda at: at, "backlog: events behind the log, hub"),
    ],
    ids=["memory", "descriptors", "dead rows", "dead rows of one", "inbox", "age", "webhooks", "ingest", "hub"],
)
def test_whatever_grows_fails(name, value, verdict):
    (found,) = failed(lines(**{name: value}))
    assert found.startswith(verdict)


def test_what_is_not_seen_is_said_and_not_judged():
    run = Run("soak", argparse.Namespace())
    judge_growth(run, {})
    assert run.report.verdicts == []
    assert len(run.report.notes) == 2
