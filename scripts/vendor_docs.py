"""Fetch the viewer of GET /docs from its npm package into fluxora/http/static/docs/swagger-ui.

Run it (it needs `npm`) after a change of VERSION and INTEGRITY; `npm view swagger-ui-dist@VERSION dist.integrity` tells
the latter. What does not have that integrity is not unpacked.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "swagger-ui-dist"
VERSION = "5.35.0"
INTEGRITY = "sha512-U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ=="
COMPRESSED = ("swagger-ui-bundle.js", "swagger-ui.css")  # stored as they are sent to nearly every client
AS_THEY_ARE = ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt")
TARGET = Path(__file__).resolve().parent.parent / "fluxora" / "http" / "static" / "docs" / "swagger-ui"


def main() -> None:
    """Replace the vendored files by those of the pinned version."""
    with tempfile.TemporaryDirectory() as folder:
        package = _fetched(Path(folder))
        _check(package)
        files = _unpacked(package)
    TARGET.mkdir(parents=True, exist_ok=True)
    for old in TARGET.iterdir():
        old.unlink()
    for name, content in files.items():
        if name in COMPRESSED:
            (TARGET / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
        else:
            (TARGET / name).write_bytes(content)
    (TARGET / "VENDORED.md").write_text(_record(files), encoding="utf-8")


def _fetched(folder: Path) -> Path:
    """The package as the registry has it."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 (constants and a folder of our own)
    (package,) = folder.glob("*.tgz")
    return package


def _check(package: Path) -> None:
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode("ascii")
    if f"sha512-{digest}" != INTEGRITY:
        sys.exit(f"{PACKAGE}@{VERSION} has the integrity sha512-{digest}, not the pinned one: nothing was changed")


def _unpacked(package: Path) -> dict[str, bytes]:
    """The files that are wanted, by name. They are read out, so that no path of the archive is ever written to."""
    files = {}
    with tarfile.open(package) as archive:
        for name in (*COMPRESSED, *AS_THEY_ARE):
            member = archive.extractfile(f"package/{name}")
            assert member is not None  # a regular file; a missing one raises KeyError
            with member:
                files[name] = member.read()
    return files


def _record(files: dict[str, bytes]) -> str:
    """VENDORED.md: what came from where, so that anybody can hold it against the package."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in files.items()]
    return f"""# Vendored: {PACKAGE} {VERSION}

The viewer that `GET /docs` shows the OpenAPI document with. Unchanged files of an npm package, fetched by
`scripts/vendor_docs.py`; those that end in `.gz` are compressed, nothing else.

- Package: [`{PACKAGE}@{VERSION}`](https://www.npmjs.com/package/{PACKAGE}/v/{VERSION})
- Integrity: `{INTEGRITY}`
- Licence: Apache License 2.0 (`LICENSE`, `NOTICE`); what the bundle contains of others is named in
  `swagger-ui-bundle.js.LICENSE.txt`

SHA-256 of each file, uncompressed:

```
{chr(10).join(lines)}
```
"""


if __name__ == "__main__":
    main()
