"""Archives in a bucket of a real S3-compatible server: streamed there and back, nothing of them on the disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from dumped import text_of

from fluxora.storage import archives
from fluxora.storage.backup import backup, restore

boto3: Any = pytest.importorskip("boto3", reason="the S3 client is not installed")
BUCKET = "backups"
STREAMED = (5 << 30) if os.environ.get("FLUXORA_PROOF") == "long" else (192 << 20)


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's server, in a process of its own and on a free port."""
    pytest.importorskip("moto.server", reason="the S3 server is not installed")
    folder = tmp_path_factory.mktemp("moto")
    environment = {**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1048576", "TMPDIR": str(folder)}
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stderr is not None
            url = None
            for line in server.stderr:
                if match := re.search(rb"Running on (http://127\.0\.0\.1:\d+)", line):
                    url = match[1].decode()
                    break
            assert url is not None, "the S3 server did not start"
            drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            yield url
            drain.kill()
            drain.wait()
        finally:
            server.kill()


@pytest.fixture
def client(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_url,
        "AWS_ACCESS_KEY_ID": "key-of-the-test",
        "AWS_SECRET_ACCESS_KEY": "s3cret-word",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=one["Key"])
    client.delete_bucket(Bucket=BUCKET)


def keys(client: Any) -> list[str]:
    return [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def test_there_and_back(
    postgres_run: Any, filled: str, empty: str, *, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = backup(filled, f"s3://{BUCKET}/daily/x.dump")
    assert result.success, result
    assert keys(client) == ["daily/x.dump", "daily/x.dump.sha256"]
    assert client.head_object(Bucket=BUCKET, Key="daily/x.dump")["ContentLength"] == result.bytes
    assert restore(empty, f"s3://{BUCKET}/daily/x.dump").success
    assert text_of(postgres_run, empty) == text_of(postgres_run, filled)
    assert list(tmp_path.iterdir()) == [], "something went over the disk"


def test_a_named_folder_keeps_the_newest(filled: str, client: Any) -> None:
    for day in range(1, 4):
        client.put_object(Bucket=BUCKET, Key=f"daily/fluxora-2026010{day}T000000Z.dump", Body=b"old")
    client.put_object(Bucket=BUCKET, Key="daily/deeper/fluxora-20250101T000000Z.dump", Body=b"another's")
    result = backup(filled, f"s3://{BUCKET}/daily/", keep=2)
    assert result.success, result
    found = keys(client)
    assert "daily/deeper/fluxora-20250101T000000Z.dump" in found
    assert len([key for key in found if re.fullmatch(r"daily/[^/]+\.dump", key)]) == 2


@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_a_damaged_object_changes_nothing(postgres_run: Any, filled: str, other: str, client: Any, damage: str) -> None:
    assert backup(filled, f"s3://{BUCKET}/x.dump").success
    if damage == "truncated":
        whole = client.get_object(Bucket=BUCKET, Key="x.dump")["Body"].read()
        client.put_object(Bucket=BUCKET, Key="x.dump", Body=whole[:-1_000])
    else:
        client.delete_object(Bucket=BUCKET, Key="x.dump")
    before = text_of(postgres_run, other)
    result = restore(other, f"s3://{BUCKET}/x.dump")
    assert not result.success
    assert "s3cret-word" not in repr(result)
    assert text_of(postgres_run, other) == before


def test_a_bucket_that_is_not_there(filled: str, client: Any) -> None:
    result = backup(filled, "s3://no-such-bucket/x.dump")
    assert not result.success
    assert "no-such-bucket" in (result.error or "")
    assert "s3cret-word" not in repr(result)


def test_what_fails_leaves_no_part_behind(client: Any) -> None:
    def fail() -> None:
        raise archives.ArchiveError("the program failed")

    with pytest.raises(archives.ArchiveError):
        archives.archive(f"s3://{BUCKET}/x.dump").write(Zeros(40 << 20), fail, lambda *_: None)
    assert keys(client) == []
    assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_memory_stays_flat_whatever_is_streamed(client: Any) -> None:
    highest: dict[str, int] = {"early": 0, "late": 0}

    def note(size: int) -> None:
        highest["early" if size < STREAMED // 3 else "late"] = max(
            highest["early" if size < STREAMED // 3 else "late"], resident()
        )

    place = archives.archive(f"s3://{BUCKET}/large.dump")
    size = place.write(Zeros(STREAMED, note), lambda: None, lambda *_: None)
    assert size == STREAMED
    assert client.head_object(Bucket=BUCKET, Key="large.dump")["ContentLength"] == STREAMED
    print(f"{size >> 20} MiB streamed, resident {highest['early'] >> 20} MiB early, {highest['late'] >> 20} MiB late")
    assert highest["late"] - highest["early"] < 2 * archives.PART_BYTES


def test_the_file_name_says_what_is_wrong() -> None:
    for target in ("s3://", "s3://x", "s3://UPPER/x", "gs://bucket/x", "s3://bucket/folder//"):
        result = backup("postgresql://x@/x?host=/nowhere", target)
        assert not result.success


class Zeros(IO[bytes]):
    """So many bytes, made as they are read."""

    def __init__(self, size: int, note: Callable[[int], None] = lambda _size: None) -> None:
        self._left = size
        self._size = size
        self._note = note

    def read(self, size: int = -1) -> bytes:
        data = bytes(min(self._left, size if size >= 0 else self._left, 1 << 16))
        self._left -= len(data)
        self._note(self._size - self._left)
        return data


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
