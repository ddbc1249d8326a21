from __future__ import annotations

import argparse
import random

import pytest

from bench.harness import Run
from bench.profiles.soak import judge_growth

SECONDS = 1200


def lines(**changes):
    """Twenty minutes of a healthy server, a sample a second."""
    chance = random.Random(1)
    healthy = {
        "Resident memory, MB: server": lambda at: 120 + min(at, 300) * 0.1 + chance.gauss(0, 0.3),  # caches fill
        "Resident memory, MB: PostgreSQL": lambda at: 150 + at * 0.05,
        "Descriptors of the server: beyond connections": lambda _: 24 + chance.choice([0, 0, 0, 1]),
        "Rows in PostgreSQL: dead": lambda at: 20 * (at % 60) + 100,
        "Rows in PostgreSQL: living": lambda at: 10_000 + at * 50,
        "Rows updated or deleted: so far": lambda at: at * 60,
        "Waiting for an actor: recorder": lambda _: chance.choice([0, 0, 1, 3]),
        "Oldest unanswered request, s: age": lambda _: chance.random() * 0.02,
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
        ("Rows in PostgreSQL: dead", lambda at: at * 60, "dead rows"),
        ("Waiting for an actor: recorder", lambda at: at / 10, "backlog: recorder"),
        ("Oldest unanswered request, s: age", lambda at: at / 20, "backlog: oldest unanswered request"),
    ],
    ids=["memory", "descriptors", "dead rows", "inbox", "age"],
)
def test_whatever_grows_fails(name, value, verdict):
    (found,) = failed(lines(**{name: value}))
    assert found.startswith(verdict)


def test_what_is_not_seen_is_said_and_not_judged():
    run = Run("soak", argparse.Namespace())
    judge_growth(run, {})
    assert run.report.verdicts == []
    assert len(run.report.notes) == 2
