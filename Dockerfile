# syntax=docker/dockerfile:1
#
#   docker build --target daemon .   monitoring only, without torch (the default)
#   docker build --target worker .   the same daemon, and torch for the jobs that draw portraits
#
# Base images are named by tag; pin them by digest in your registry's mirror.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/sidecar
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
RUN /opt/sidecar/bin/pip install --no-cache-dir --constraint constraints.txt ".[daemon]"

FROM build AS build-worker
RUN /opt/sidecar/bin/pip install --no-cache-dir --constraint constraints.txt ".[worker,cpu]"

FROM python:3.11-slim-bookworm AS runtime
RUN groupadd --gid 10001 sidecar \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin sidecar \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/sidecar /run/sidecar
# Nothing is written outside /var/lib/sidecar, /run/sidecar and /tmp: the root file system may be
# mounted read-only.
ENV PATH=/opt/sidecar/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME ["/var/lib/sidecar"]
# For plain Docker. In a Kubernetes pod a probe of the sidecar would decide over the model server too.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/livez', timeout=2)"]
ENTRYPOINT ["sidecar"]
CMD ["serve", "--config", "/etc/sidecar/sidecar.yaml"]

FROM runtime AS worker
COPY --from=build-worker /opt/sidecar /opt/sidecar

FROM runtime AS daemon
COPY --from=build /opt/sidecar /opt/sidecar
