"""Where archives of backups lie: a file, or an object of an S3 bucket that is written and read without touching disk.

An archive appears whole or not at all: a file is written under a temporary name beside its place and renamed, an object
exists only when its last part has arrived. Its SHA-256 lies beside it, in the form that `sha256sum -c` reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fluxora.errors import ConfigError

CHUNK = 1 << 20
PART_BYTES = 16 << 20  # of an upload; 10,000 parts at most make 160 GB
JOINING_S = 900  # for the answer of a server that first makes one object of the parts; S3 itself sends blanks meanwhile
SUFFIX = ".dump"
CHECKSUM = ".sha256"
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)\n?")
_OBJECT = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")


class ArchiveError(Exception):
    """The place of an archive cannot be written or read; the message says why and names it."""


class Archive(ABC):
    """One place of an archive. `name` is how it is called towards people."""

    name: str

    @abstractmethod
    def write(self, source: IO[bytes], ended: Callable[[], None], verify: Callable[[IO[bytes], str], None]) -> int:
        """Take everything that `source` has; its size in bytes.

        It is kept if `ended`, called behind the last byte, and then `verify`, given what can be read back and the
        SHA-256 that it must have, raise nothing.
        """

    @abstractmethod
    @contextmanager
    def read(self) -> Iterator[IO[bytes]]:
        """Its bytes from the first on."""

    @abstractmethod
    def checksum(self) -> str | None:
        """The SHA-256 beside it, None where there is none."""

    @abstractmethod
    def siblings(self) -> list[Archive]:
        """Archives in the same place whose names end alike, oldest first by name; itself among them."""

    @abstractmethod
    def remove(self) -> None:
        """Delete it and its checksum."""


def archive(target: str) -> Archive:
    """The archive at a path, or at s3://bucket/key.

    Raises:
        ConfigError: it can be none.
    """
    if "://" in target:
        match = _OBJECT.fullmatch(target)
        if match is None or match[2].endswith("/"):
            raise ConfigError(f"{target.partition('?')[0][:100]!r} is no archive: a path or s3://bucket/key is needed")
        return _S3Object(_s3(), match[1], match[2])
    return _File(Path(target))


class Hashed:
    """A stream that is read once, hashed and counted as it goes; `progress` is told of the bytes so far."""

    def __init__(self, source: IO[bytes], progress: Callable[[int], None] | None = None) -> None:
        self._source = source
        self._progress = progress
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        """As of any file."""
        data = self._source.read(size)
        self._hash.update(data)
        self.size += len(data)
        if self._progress is not None:
            self._progress(self.size)
        return data

    @property
    def sha256(self) -> str:
        """Of what has been read."""
        return self._hash.hexdigest()


class _File(Archive):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def write(self, source: IO[bytes], ended: Callable[[], None], verify: Callable[[IO[bytes], str], None]) -> int:
        hashed = Hashed(source)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._replacing(self._path) as file:
                while data := hashed.read(CHUNK):
                    file.write(data)
                ended()
                file.flush()
                with Path(file.name).open("rb") as written:
                    verify(written, hashed.sha256)
            line = f"{hashed.sha256}  {self._path.name}\n"
            with self._replacing(self._checksum_path) as file:
                file.write(line.encode())
        except OSError as error:
            raise ArchiveError(f"{self.name}: {error.strerror or error}") from error
        return hashed.size

    @contextmanager
    def read(self) -> Iterator[IO[bytes]]:
        try:
            with self._path.open("rb") as file:
                yield file
        except OSError as error:
            raise ArchiveError(f"{self.name}: {error.strerror or error}") from error

    def checksum(self) -> str | None:
        try:
            return _told(self._checksum_path.read_text(encoding="utf-8", errors="replace"), self._checksum_path.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArchiveError(f"{self._checksum_path}: {error.strerror or error}") from error

    def siblings(self) -> list[Archive]:
        try:
            return [_File(path) for path in sorted(self._path.parent.glob(f"*{SUFFIX}"))]
        except OSError as error:
            raise ArchiveError(f"{self._path.parent}: {error.strerror or error}") from error

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._checksum_path.unlink(missing_ok=True)

    @property
    def _checksum_path(self) -> Path:
        return self._path.with_name(self._path.name + CHECKSUM)

    @staticmethod
    @contextmanager
    def _replacing(path: Path) -> Iterator[IO[bytes]]:
        """A new file, readable by its owner alone, that takes the place of `path` once it is on the disk."""
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with open(new, "xb", opener=_for_its_owner) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


class _S3Object(Archive):
    """Written in parts as the bytes come, so that memory holds a few of them and the disk none."""

    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self.name = f"s3://{bucket}/{key}"

    def write(self, source: IO[bytes], ended: Callable[[], None], verify: Callable[[IO[bytes], str], None]) -> int:
        hashed = Hashed(source)
        with self._failing():
            upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key)["UploadId"]
            place = {"Bucket": self._bucket, "Key": self._key, "UploadId": upload}
            try:
                parts: list[dict[str, Any]] = []
                while data := _filled(hashed, PART_BYTES):
                    number = len(parts) + 1
                    sent = self._client.upload_part(**place, PartNumber=number, Body=data)
                    parts.append({"PartNumber": number, "ETag": sent["ETag"]})
                ended()
                _s3(answer_s=JOINING_S).complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
            except BaseException:
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    self._client.abort_multipart_upload(**place)
                raise
            try:
                with self.read() as written:
                    verify(written, hashed.sha256)
            except BaseException:
                self.remove()
                raise
            line = f"{hashed.sha256}  {self._key.rpartition('/')[2]}\n"
            self._client.put_object(Bucket=self._bucket, Key=self._key + CHECKSUM, Body=line.encode())
        return hashed.size

    @contextmanager
    def read(self) -> Iterator[IO[bytes]]:
        with self._failing():
            body = self._client.get_object(Bucket=self._bucket, Key=self._key)["Body"]
            with contextlib.closing(body):
                yield body

    def checksum(self) -> str | None:
        with self._failing():
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._key + CHECKSUM)["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            with contextlib.closing(body):
                return _told(body.read(1_000).decode(errors="replace"), self.name + CHECKSUM)

    def siblings(self) -> list[Archive]:
        folder = self._key.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        with self._failing():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, Delimiter="/"
            )
            keys = sorted(one["Key"] for page in pages for one in page.get("Contents", ()))
        return [_S3Object(self._client, self._bucket, key) for key in keys if key.endswith(SUFFIX)]

    def remove(self) -> None:
        with self._failing():
            for key in (self._key, self._key + CHECKSUM):
                self._client.delete_object(Bucket=self._bucket, Key=key)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """The library's errors in our terms; they name the request and the answer, never the credentials."""
        errors: Any = importlib.import_module("botocore.exceptions")
        try:
            yield
        except (errors.ClientError, errors.BotoCoreError, errors.HTTPClientError) as error:
            raise ArchiveError(f"{self.name}: {error}") from error


def _s3(answer_s: int = 60) -> Any:
    """A client that waits for so long for an answer; a request without one is sent again."""
    try:
        boto3: Any = importlib.import_module("boto3")
        settings: Any = importlib.import_module("botocore.config")
    except ImportError as error:
        raise ConfigError("s3:// needs the S3 client: pip install 'fluxora[s3]'") from error
    # Endpoint, region and credentials: by boto3's own variables and files.
    return boto3.client("s3", config=settings.Config(read_timeout=answer_s))


def _filled(source: Hashed, size: int) -> bytes:
    """`size` bytes, fewer only at the end: a pipe gives what it has."""
    parts, missing = [], size
    while missing and (data := source.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _told(text: str, where: str) -> str:
    match = _CHECKSUM_LINE.fullmatch(text)
    if match is None:
        raise ArchiveError(f"{where}: not the checksum of an archive")
    return match[1]
