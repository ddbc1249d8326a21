"""Requests made from the OpenAPI document against the whole server: the short form of `python -m bench contract`."""

from __future__ import annotations

import os

import pytest

from bench import fuzzed_process, schemathesis_run
from bench.child import Child

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

START_S = 60.0
PER_OPERATION = 30 if os.environ.get("FLUXORA_PROOF") == "long" else 8
SEED = 1  # the same requests each time; the benchmark takes others
LEAST_REQUESTS = 1_000


def test_no_request_gets_an_answer_that_the_document_does_not_say(postgres_url, tmp_path):
    key, entry = schemathesis_run.new_key()
    task = fuzzed_process.Task(database_url=postgres_url, admin_key=entry)
    with Child(fuzzed_process.__name__, task, log=tmp_path / "server.log") as server:
        port = server.read(within_s=START_S)["port"]
        found = schemathesis_run.run(port, key=key, folder=tmp_path, examples=PER_OPERATION, seed=SEED)
        server.alive()
    assert found.complete
    if found.excerpt:
        pytest.fail(found.excerpt)
    assert (found.failures, found.errors) == ([], [])
    assert found.test_cases.with_failures == 0
    assert found.test_cases.generated >= LEAST_REQUESTS
