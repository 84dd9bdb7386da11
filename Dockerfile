# Two stages: pip and the build backend stay behind, the image that runs holds only what serves.
FROM python:3.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build

# The dependencies change less often than the code, so they are a layer of their own.
COPY requirements/runtime.lock requirements/build.lock requirements/
RUN python -m venv /opt/tailrace \
    && /opt/tailrace/bin/pip install --require-hashes -r requirements/runtime.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.lock

COPY pyproject.toml README.md LICENSE ./
COPY cache cache
COPY degrade degrade
COPY tiers tiers
COPY gateway gateway
COPY examples examples
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tailrace/bin/pip install --no-deps --no-index --find-links dist tailrace \
    && /opt/tailrace/bin/pip uninstall --yes pip setuptools


FROM python:3.11-slim-bookworm

# A number, so that Kubernetes can check runAsNonRoot.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tailrace
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TAILRACE_SERVER__HTTP=0.0.0.0:8080 \
    TAILRACE_SERVER__GRPC=0.0.0.0:8081 \
    TAILRACE_SERVER__ADMIN=0.0.0.0:9090
USER 10001
EXPOSE 8080 8081 9090
STOPSIGNAL SIGTERM

# Live, not ready: a gateway without a backend still answers from its cache and must not be killed. Asked of the
# admin port, which the same event loop serves: with server.tls the other may want a certificate.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9090/', timeout=2)"]

ENTRYPOINT ["tailrace"]
CMD ["serve", "--config", "/etc/tailrace/tailrace.toml"]
