"""Settings that parse and cannot work: one clear line, code 2, no traceback, and no secret in what is said."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from processes import Served, environment, run, serve
from waiting import eventually

PASSWORD = "correct-horse"


def the_line(errors: str) -> str:
    """The one line of standard error that is not a line of the log."""
    [line] = [line for line in errors.splitlines() if not line.startswith("{")]
    assert "Traceback" not in errors
    assert PASSWORD not in errors
    return line


@pytest.mark.parametrize("host", ["a..b", "bad host", "no.such.host.invalid", "192.0.2.1"])
async def test_an_address_that_cannot_be_listened_on(postgres_url: str, host: str) -> None:
    done = await run("serve", environ=environment(PORT="0", HOST=host, DATABASE_URL=postgres_url))
    assert the_line(done.stderr).startswith(f"fluxora: PORT, HOST: cannot listen on {host}:0: ")
    assert done.returncode == 2


@pytest.mark.parametrize("port", ["99999", "-1", "http", "9" * 5000])
async def test_a_port_that_is_none(port: str) -> None:
    done = await run("dev", f"--port={port}", environ=environment())
    assert the_line(done.stderr).startswith("fluxora: PORT: a whole number from 0 to 65535 is needed")
    assert done.returncode == 2


async def test_a_port_that_is_taken(postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = await run("serve", environ=environment(PORT=str(port), DATABASE_URL=postgres_url))
    line = f"fluxora: PORT, HOST: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert (done.returncode, the_line(done.stderr)) == (2, line)


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize("query", ["sslmode=bogus", "target_session_attrs=none"])
async def test_a_database_url_that_no_server_could_be_reached_with(command: str, query: str) -> None:
    url = f"postgresql://fluxora:{PASSWORD}@127.0.0.1:1/x?{query}"
    done = await run(command, environ=environment(PORT="0", DATABASE_URL=url))
    assert the_line(done.stderr).startswith("fluxora: DATABASE_URL: ")
    assert done.returncode == 2


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from fluxora.__main__ import main
sys.exit(main(["serve"]))
"""


async def test_a_flood_of_connections_leaves_room_for_the_rest(postgres_url: str, tmp_path: Path) -> None:
    environ = environment(PORT="0", DATABASE_URL=postgres_url)
    async with serve(environ, tmp_path / "serve.log", ("-c", LIMITED)) as served, AsyncExitStack() as flood:
        address = httpx.URL(await served.ready())
        for _ in range(300):  # more than it may have files
            await flood.enter_async_context(await trio.open_tcp_stream(address.host, address.port or 0))
        await eventually(partial(answered, served, 503), "it says that there are too many", within_s=5)
        await flood.aclose()
        await eventually(partial(answered, served, 200), "it serves once the flood is over")
        log = served.text
    assert "http.connections_bounded" in log
    assert "Too many open files" not in log


async def answered(served: Served, status: int) -> bool:
    try:
        return (await served.get("/api/streams")).status_code == status
    except httpx.TransportError:  # only so many at a time are told why
        return False
