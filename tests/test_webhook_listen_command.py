"""`fluxora webhooks listen` as a command: its options, what it prints where, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import fluxora
from fluxora.protocol import signing
from fluxora.protocol.signing import Secret
from fluxora.webhook_listener import SECRET_VARIABLE, add_arguments

ROOT = Path(fluxora.__file__).parent.parent
SECRET = Secret.from_bytes(bytes(range(32)))
EVENT = {"event": "stream.updated", "action": "withdrew", "streamId": "stream-1", "position": "7", "eventId": "e-7"}
BODY = json.dumps(EVENT).encode()


def signed(secret: Secret = SECRET) -> dict[str, str]:
    return dict(signing.headers("msg_we_1_7", int(time.time()), "stream.updated", BODY, [secret]))


@contextmanager
def command(
    *arguments: str, secret: str | None = SECRET.reveal(), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    env.pop("FLUXORA_WEBHOOK_SECRET", None)
    if secret is not None:
        env["FLUXORA_WEBHOOK_SECRET"] = secret
    process = subprocess.Popen(
        [sys.executable, "-m", "fluxora", "webhooks", "listen", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def port_in(line: str) -> str:
    assert line.startswith("Listening on http://127.0.0.1:"), line
    return line.split()[2].rstrip(";")


def test_the_command_prints_json_and_ends_after_one():
    with command("--once", "--json") as process:
        url = port_in(process.stderr.readline())
        assert httpx.post(url, content=BODY, headers=signed(secret=Secret.from_bytes(bytes(32)))).status_code == 401
        assert httpx.post(url, content=BODY, headers=signed()).status_code == 200
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    refused, accepted = map(json.loads, out.splitlines())
    assert (refused["status"], accepted["status"], accepted["event"]) == (401, 200, EVENT)
    assert SECRET.reveal() not in out + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_on_a_signal(number):
    with command("--secret-from", "ANOTHER", secret=None, ANOTHER=SECRET.reveal()) as process:
        url = port_in(process.stdout.readline())
        assert httpx.post(url, content=BODY, headers=signed()).status_code == 200
        assert process.stdout.readline().split()[:3] == ["200", "accepted", "stream.updated"]
        process.send_signal(number)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_the_command_ends_quietly_when_nobody_reads_it():
    with command() as process:
        url = port_in(process.stdout.readline())
        process.stdout.close()
        process.stdout = None
        assert httpx.post(url, content=BODY, headers=signed()).status_code == 200
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_without_a_secret_the_command_says_what_to_set():
    with command(secret=None) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("fluxora: FLUXORA_WEBHOOK_SECRET: set it to the endpoint's secret")


def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command("--port", str(port)) as process:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith(f"fluxora: --host, --port: cannot listen on 127.0.0.1:{port}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--port", "x"],
        ["--port", "0065536"],
        ["--fail", "1.1"],
        ["--fail", "-0.1"],
        ["--fail", "nan"],
        ["--slow", "inf"],
        ["--slow", "x"],
        ["--count", "0"],
        ["--count", "1.5"],
        ["--count", "9" * 5_000],
        ["--count", "2", "--once"],
        ["--secret", "x"],
    ],
)
def test_what_an_option_cannot_be_is_refused(arguments, capsys):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


def test_the_options_have_defaults():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args([])
    assert (given.host, given.port, given.fail, given.slow, given.count, given.json) == (
        "127.0.0.1",
        4000,
        0,
        0,
        None,
        False,
    )
    assert given.secret_from == SECRET_VARIABLE
    assert parser.parse_args(["--once"]).count == 1
