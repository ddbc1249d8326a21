"""What docs/embedding.md shows must be so: each of its programs runs, as whoever copies it would run it."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
FOLLOWING, CONFIGURED, PUSHED, HOSTED, LOGGED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place() -> Iterator[Path]:
    """A working directory of a short path, for PostgreSQL's socket lies below its .fluxora."""
    with tempfile.TemporaryDirectory(prefix="fx-") as folder:
        yield Path(folder)


def environment(**variables: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("FLUXORA_", "DATABASE_URL"))}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def run(program: str, place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=place,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_follower_goes_on_where_it_was_left(place: Path) -> None:
    positions: list[int] = []
    for _ in range(2):
        done = run(FOLLOWING, place)
        positions += [int(line.split()[0]) for line in done.stdout.splitlines() if line[:1].isdigit()]
        assert "runtime.stopped" in done.stderr
        assert positions == list(range(1, int((place / "reached.txt").read_text()) + 1))
    assert len(positions) >= 20


def test_the_configuration_is_that_of_the_variables_and_the_code_and_shows_no_password(place: Path) -> None:
    secret = "postgresql://me:s3cret-word@127.0.0.1/db"
    done = run(CONFIGURED, place, DATABASE_URL=secret, PORT="4711", INDEXER_WORKER_TOKEN="t" * 32)
    assert done.stdout.startswith("0 push StorageConfig(")
    assert "s3cret-word" not in done.stdout


def test_what_is_pushed_is_recorded_and_worth_what_its_terms_say(place: Path) -> None:
    assert run(PUSHED, place).stdout == "1 active 1.0000000\n"


def test_a_program_that_has_set_up_its_logs_keeps_them(place: Path) -> None:
    done = run(LOGGED, place)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["service"] for line in lines} == {"treasury"}
    assert {"runtime.started", "treasury.ready", "runtime.stopped"} <= {line["event"] for line in lines}


def test_the_hosting_example_serves_over_tls_and_stops_when_it_is_told_to(place: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(f"{place}/server.pem")
    certificate.private_key_pem.write_to_path(f"{place}/server.key")
    authority.cert_pem.write_to_path(f"{place}/authority.pem")
    with subprocess.Popen(
        [sys.executable, "-c", HOSTED.replace("127.0.0.1:8443", "127.0.0.1:0")],
        cwd=place,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (found := re.search(r"Running on https://127\.0\.0\.1:(\d+)", said)):
                line = process.stderr.readline()
                assert line, said
                said += line
            trusting = ssl.create_default_context(cafile=f"{place}/authority.pem")
            with httpx.Client(http2=True, verify=trusting, timeout=30) as client:
                answer = client.get(f"https://localhost:{found[1]}/health")
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            assert "server" not in answer.headers
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=60)
            assert process.returncode == 0, said + rest
            assert "runtime.stopped" in rest
        finally:
            process.kill()
