# syntax=docker/dockerfile:1
# The relay as a container: `make image`, or `docker build -t otlp-relay .`
#
# BASE is any image of Debian or Ubuntu with python3 from 3.11 on, with venv and ca-certificates. What is
# needed of it is copied into an otherwise empty image (deploy/image/runtime.py), so a digest here pins
# all that is not pinned by requirements/.
ARG BASE=docker.io/library/python:3.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Tools in one environment, the relay in another that gets no pip and no build tools.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/otlp-relay
COPY requirements/build.txt requirements/run.txt requirements/fast.txt requirements/
# fast: with the engine of RELAY_GRPC_ENGINE=h2corn.
ARG REQUIREMENTS=run
# Behind a mirror: --secret id=pip.conf,src=... and --secret id=ca.crt,src=... set pip up for these
# two steps and leave no trace in the image.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca.crt \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf; \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    tools/bin/python -m pip install --require-hashes -r requirements/build.txt && \
    tools/bin/python -m pip --python /opt/otlp-relay/bin/python install --no-compile \
        --only-binary :all: --require-hashes -r requirements/${REQUIREMENTS}.txt
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
COPY proto_stubs proto_stubs
# The symbols that the wheels' libraries bring along are a third of all bytes.
RUN command -v strip >/dev/null || \
    { apt-get -q update && apt-get -q install -y --no-install-recommends binutils; } >/dev/null || \
    echo "no strip here and no package of it: the image gets larger by some 5 MB"
# What only compilers and type checkers read goes. Bytecode is made here, that of the standard
# library too (deploy/image/precompile.py says why). Times are those of SOURCE_DATE_EPOCH, so that
# equal sources give equal files.
COPY deploy/image/precompile.py deploy/image/runtime.py ./
ARG SOURCE_DATE_EPOCH=0
RUN tools/bin/python -m hatchling build --target wheel --directory dist && \
    tools/bin/python -m pip --python /opt/otlp-relay/bin/python install --no-compile --no-deps \
        --no-index dist/*.whl && \
    cd /opt/otlp-relay && \
    find lib -type d \( -name tests -o -name test -o -name _test -o -name __pycache__ \) -prune -exec rm -rf {} + && \
    find lib -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' \
        -o -name '*.c' -o -name '*.cc' -o -name '*.h' -o -name 'direct_url.json' \) -delete && \
    if command -v strip >/dev/null; then \
        find lib -type f -name '*.so*' -exec strip --strip-unneeded {} +; fi && \
    rm -rf include bin/idna bin/activate* bin/Activate.ps1 && \
    PYTHONPYCACHEPREFIX=/opt/otlp-relay/bytecode PYTHONDONTWRITEBYTECODE=1 \
        bin/python /build/precompile.py && \
    bin/python /build/runtime.py /runtime && \
    find . /runtime -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="otlp-relay" \
      org.opencontainers.image.description="OTLP sidecar: takes telemetry at once, forwards it in batches, counts every loss" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /runtime /
COPY --from=build /opt/otlp-relay /opt/otlp-relay
# The admin listener is for the pod: probes and Prometheus come over its network. The OTLP ports stay
# on localhost, which the containers of a pod share (docs/decisions/0004): a relay takes telemetry
# from anyone who reaches it. To publish them: -e RELAY_GRPC_LISTEN=0.0.0.0:4317 -p 4317:4317
ENV PATH=/opt/otlp-relay/bin:$PATH \
    PYTHONPYCACHEPREFIX=/opt/otlp-relay/bytecode \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RELAY_ADMIN_LISTEN=0.0.0.0:8888
EXPOSE 4317 4318 8888
# A number, so that Kubernetes can see that it is not root. Nothing is written: the root file system
# may be read-only.
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/opt/otlp-relay/bin/otlp-relay", "healthcheck"]
ENTRYPOINT ["/opt/otlp-relay/bin/otlp-relay"]
CMD ["run"]
