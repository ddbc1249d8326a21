# One virtual environment in .venv; PYTHON names the interpreter that makes it (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: dev test check bench proof openapi configuration vendor-docs lock image-check format clean

dev: $(STAMP)          ## set up, then serve a local network with live streams
	$(BIN)/fluxora dev

test: $(STAMP)         ## set up, then run the tests
	$(BIN)/python -m pytest -n $(WORKERS) -m "not proof"

check: $(STAMP)        ## lint, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

bench: $(STAMP)        ## the smoke form of every benchmark, and a short mixed load: fails on loss, doubles and errors
	$(BIN)/python -m bench smoke

proof: $(STAMP)        ## the long form of the proofs
	FLUXORA_PROOF=long $(BIN)/python -m pytest

openapi: $(STAMP)      ## write openapi.json, as the server serves it
	$(BIN)/fluxora openapi > openapi.json

configuration: $(STAMP)  ## write docs/configuration.md anew
	$(BIN)/python scripts/write_configuration.py

vendor-docs: $(STAMP)  ## fetch the pinned viewer of /docs again (needs npm)
	$(BIN)/python scripts/vendor_docs.py

lock: $(STAMP)         ## write the image's locked dependencies anew
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra s3 --extra otel --universal --generate-hashes --python-version 3.11 --upgrade --quiet --no-header --output-file requirements.lock
	echo 'hatchling>=1.27' | $(BIN)/uv pip compile - --universal --generate-hashes --python-version 3.11 --upgrade --quiet --no-header --output-file requirements-build.lock

image-check: $(STAMP)  ## build the container image without an engine, and run what is in it (root, buildah, debootstrap)
	$(BIN)/python scripts/check_image.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	touch $(STAMP)
