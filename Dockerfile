# docker build -t wave-gateway .
# docker run --read-only --stop-timeout 30 -p 8080:8080 -v wave-data:/data -v ./policies:/policies:ro \
#     -e WAVE_GATEWAY_PUBLIC_URL=http://gateway.example:8080 wave-gateway

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The venv has no pip of its own: the builder's pip fills it, from hashes only.
RUN python -m venv --without-pip /opt/venv
COPY requirements.lock requirements-dev.lock requirements-otel.lock ./
# `--build-arg LOCK=requirements-otel.lock`: with what `--traces` needs.
ARG LOCK=requirements.lock
RUN pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: -r "$LOCK"

# The build backend is the lock's own entry, and stays in this stage.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock > build.lock \
    && pip install --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip --python /opt/venv/bin/python install --no-deps --no-index /wheels/*.whl \
    && python -m compileall -q /opt/venv/lib


FROM python:3.13-slim
LABEL org.opencontainers.image.title="wave-gateway" org.opencontainers.image.licenses="MIT"

# The base image's own pip goes; nothing is ever installed here. /data and /policies exist for runs without a mount.
RUN python -m pip uninstall --yes --quiet --root-user-action=ignore pip \
    && install -d -o 10001 -g 10001 -m 0700 /data \
    && install -d -m 0755 /policies
COPY --from=build /opt/venv /opt/venv

# WAVE_GATEWAY_PUBLIC_URL is not set, on purpose: only the operator knows the address that clients reach, and it is
# burnt into the media URLs they store. With the wildcard listen below, the gateway refuses to start without it.
# TMPDIR: with a read-only root there is no other place to write, and SQLite may spill to a temporary file.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/data \
    WAVE_GATEWAY_DATA=/data \
    WAVE_GATEWAY_POLICIES=/policies \
    WAVE_GATEWAY_LISTEN=0.0.0.0:8080

# Numeric, so that an orchestrator can verify that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/policies"]
EXPOSE 8080
STOPSIGNAL SIGTERM

# Asks where WAVE_GATEWAY_LISTEN says; a wildcard is asked on loopback. http.client, because urllib would follow a proxy
# from the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-I", "-c", "\
import http.client, os, sys;\
host, _, port = os.environ['WAVE_GATEWAY_LISTEN'].rpartition(':');\
host = {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host).strip('[]');\
asked = http.client.HTTPConnection(host, int(port), timeout=3);\
asked.request('GET', '/healthz');\
sys.exit(asked.getresponse().status != 200)"]

ENTRYPOINT ["wave-gateway"]
CMD ["serve"]
