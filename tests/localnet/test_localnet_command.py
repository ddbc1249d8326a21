"""`fluxora localnet` as a process: it says what one needs, serves, and ends cleanly."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

import httpx
import pytest
import trio

from fluxora.localnet import command, contract_address

RUN = """
import argparse, sys, trio
from fluxora.localnet import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
trio.run(command.main, parser.parse_args(sys.argv[1:]))
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_and_ends_cleanly_on_a_signal(ending):
    arguments = ["--port", "0", "--seed", "3", "--ledger-every", "0.05", "--streams-per-ledger", "2"]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with trio.fail_after(30):
            text = ""
            while "clear" not in text:
                chunk = await process.stdout.receive_some()
                assert chunk, (await process.stderr.receive_some()).decode()
                text += chunk.decode()
            url = text.split("url", 1)[1].split()[0]
            assert "passphrase  Fluxora Localnet ; 2026" in text
            assert contract_address(3, 0) in text
            assert f"curl -d '{{\"fork\": 3}}' {url}/faults" in text
            async with httpx.AsyncClient() as http:
                found: list[object] = []
                while not found:
                    body = {"jsonrpc": "2.0", "id": 1, "method": "getEvents", "params": {"startLedger": 2}}
                    found = (await http.post(url, json=body)).json()["result"]["events"]
            process.send_signal(ending)
            assert await process.wait() == 0
            assert await process.stderr.receive_some() == b""
    finally:
        process.kill()
        await process.wait()
        for stream in (process.stdout, process.stderr):
            await stream.aclose()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--contract", "GABC"],
        ["--ledger-every", "0"],
        ["--streams-per-ledger", "-1"],
    ],
)
def test_a_bad_option_is_one_clear_line(arguments, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err
