# syntax=docker/dockerfile:1
# BASE_IMAGE: any Debian or Ubuntu with python3 (3.11 or newer) and its venv module; both stages stand on it.
ARG BASE_IMAGE=python:3.13-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
# What it stands on changes less often than its own code: a layer of its own, every file known by its hash, no compiler.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/fluxora \
 && /opt/fluxora/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements.lock \
 && python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY fluxora ./fluxora
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
 && /opt/fluxora/bin/python -m pip install --no-cache-dir --no-deps /dist/*.whl \
 && /opt/fluxora/bin/python -m pip uninstall --yes pip \
 && mkdir -m 0700 /data

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="fluxora" \
      org.opencontainers.image.description="Backend for token streaming on Stellar" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0"
RUN useradd --uid 10001 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin fluxora
COPY --from=build /opt/fluxora /opt/fluxora
# Of the embedded PostgreSQL, where DATABASE_URL is unset; mount a volume here to keep it.
COPY --from=build --chown=10001:10001 /data /data
ENV PATH=/opt/fluxora/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=3000 \
    FLUXORA_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["fluxora", "status", "--quiet"]
ENTRYPOINT ["fluxora"]
CMD ["serve"]
