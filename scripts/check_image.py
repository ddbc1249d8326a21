"""Build the image with buildah, without a container engine, and run what is in it: `make image-check`.

The base is made by debootstrap, unless BASE_IMAGE names another one. Needs root, buildah, debootstrap and the network.
Checks: it runs as no root, has no compiler and no pip, is healthy, serves, ends on SIGTERM with 0, says in one line why
it cannot start, and writes nowhere but to its volume. Prints sizes and times.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "image"
SUITE = "bookworm"
IMAGE = "localhost/fluxora:check"
UID = 10_001
START_S = 90.0
STOP_S = 20.0
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def main() -> int:
    """Build, check, say what was found."""
    for program in ("buildah", *(() if os.environ.get("BASE_IMAGE") else ("debootstrap",))):
        if shutil.which(program) is None:
            print(f"{program} is not installed (Debian: apt-get install {program})", file=sys.stderr)
            return 2
    CACHE.mkdir(parents=True, exist_ok=True)
    base = os.environ.get("BASE_IMAGE") or _base()
    began = time.monotonic()
    _build(base)
    print(f"built in {time.monotonic() - began:.0f} s; {_size(IMAGE)}, of which the base is {_size(base)}")
    with _container() as container:
        _check_contents(container)
        _check_refusals(container)
        _check_life(container)
    print("the image is sound")
    return 0


def _buildah(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["buildah", "--storage-driver", "vfs", *args], capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"buildah {args[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def _base() -> str:
    """A minimal Debian with Python, made once."""
    name, tree = f"localhost/fluxora-base:{SUITE}", CACHE / "base.tar"
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            include = "--include=python3,python3-venv,ca-certificates"
            command = ["debootstrap", "--variant=minbase", include, SUITE, f"{folder}/root"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["tar", "-C", f"{folder}/root", "-cf", f"{tree}.new", "."], check=True)
        Path(f"{tree}.new").replace(tree)
    file = CACHE / "Basefile"
    file.write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
    _buildah("bud", "--isolation", "chroot", "--layers", "-t", name, "-f", str(file), str(CACHE))
    return name


def _build(base: str) -> None:
    """Certificates of this machine are lent to pip, which may have to go through a proxy that has its own."""
    config = CACHE / "pip.conf"
    config.write_text(f"[global]\ncert = {CERTIFICATES}\n", encoding="utf-8")
    lent = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--volume", f"{config}:/etc/pip.conf:ro"]
    # Docker's format, since OCI's has no health check.
    _buildah(
        "bud",
        "--format",
        "docker",
        "--isolation",
        "chroot",
        *lent,
        "--build-arg",
        f"BASE_IMAGE={base}",
        "-t",
        IMAGE,
        str(ROOT),
    )


def _size(image: str) -> str:
    found = json.loads(_buildah("images", "--json", image).stdout)
    return str(found[0]["size"])


@contextmanager
def _container() -> Iterator[str]:
    name = _buildah("from", IMAGE).stdout.strip()
    try:
        yield name
    finally:
        _buildah("rm", name, check=False)


def _run(container: str, *command: str, volume: Path | None = None, **variables: str) -> list[str]:
    """The command line that runs `command` in the container."""
    lent = [] if volume is None else ["--volume", f"{volume}:/data"]
    told = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    return [
        "buildah",
        "--storage-driver",
        "vfs",
        "run",
        "--isolation",
        "chroot",
        *lent,
        *told,
        container,
        "--",
        *command,
    ]


def _output(container: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _run(container, *command, **variables), capture_output=True, text=True, check=False, timeout=START_S
    )


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        sys.exit(f"{what}: {found!r}, not {wanted!r}")
    print(f"ok: {what}", flush=True)


def _check_contents(container: str) -> None:
    config = json.loads(_buildah("inspect", container).stdout)["OCIv1"]["config"]
    docker = json.loads(_buildah("inspect", container).stdout)["Docker"]["config"]
    _expect("entry point in exec form", config["Entrypoint"] + config["Cmd"], ["fluxora", "serve"])
    _expect("stop signal", config["StopSignal"], "SIGTERM")
    _expect("user", config["User"], f"{UID}:{UID}")
    _expect("one port", list(config["ExposedPorts"]), ["3000/tcp"])
    _expect("health check", docker.get("Healthcheck", {}).get("Test"), ["CMD", "fluxora", "status", "--quiet"])
    _expect("runs as no root", _output(container, "id", "-u").stdout.strip(), str(UID))
    for program in ("cc", "gcc", "g++", "make", "pip", "pip3"):
        _expect(f"no {program}", _output(container, "sh", "-c", f"command -v {program}").returncode, 127)
    version = _output(container, "fluxora", "--version")
    _expect("starts", version.returncode, 0)


def _check_refusals(container: str) -> None:
    wrong = _output(container, "fluxora", "serve", FLUXORA_SOURCE="sideways")
    _expect("a bad value: exit code", wrong.returncode, 2)
    _expect("a bad value: one line", len(_plain(wrong.stderr)), 1)
    away = _output(container, "fluxora", "serve", DATABASE_URL="postgresql://fluxora@127.0.0.1:1/fluxora", PORT="0")
    _expect("no database: exit code", away.returncode, 1)
    _expect("no database: one line", len(_plain(away.stderr)), 1)
    print(f"    {_plain(away.stderr)[0]}")


def _plain(text: str) -> list[str]:
    """Lines that are no log, nor buildah's own."""
    return [line for line in text.splitlines() if line.startswith("fluxora: ")]


def _check_life(container: str) -> None:
    root = Path(_buildah("mount", container).stdout.strip())
    with tempfile.TemporaryDirectory(prefix="fluxora-image-", dir="/tmp") as folder:  # a short path, for sockets
        data = Path(folder)
        os.chown(data, UID, UID)
        script = "echo $$ > /data/pid; exec fluxora serve"
        began = time.monotonic()
        with (data / "serve.log").open("wb") as log:
            command = _run(container, "sh", "-c", script, volume=data, PORT="0", HOST="127.0.0.1")
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = _url(data / "serve.log", server)
            print(f"serves after {time.monotonic() - began:.1f} s")
            status = _output(container, "fluxora", "status", url)
            _expect("health passes", status.returncode, 0)
            print("\n".join(f"    {line}" for line in status.stdout.splitlines()))
            pid = int((data / "pid").read_text(encoding="ascii"))
            _expect("the server is no root's", Path(f"/proc/{pid}").stat().st_uid, UID)
            began = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            _expect("ends on SIGTERM with 0", server.wait(STOP_S), 0)
            print(f"ended after {time.monotonic() - began:.1f} s")
        finally:
            server.kill()
            server.wait()
        gone = _output(container, "fluxora", "status", "--quiet", url)
        _expect("health fails once it is gone", gone.returncode, 1)
        newer = [
            "find",
            str(root),
            "-xdev",
            "-newer",
            str(data / "pid"),
            "-type",
            "f",
            "-not",
            "-path",
            f"{root}/data/*",
        ]
        found = subprocess.run(newer, capture_output=True, text=True, check=True).stdout.split()
        written = [path for path in found if not path.startswith((f"{root}/etc/", f"{root}/run/"))]  # buildah's own
        _expect("nothing written but to its volume", written, [])


def _url(log: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"event": "runtime.started"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    sys.exit(f"it does not serve:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
