# Two images. `service` is for all four services; SERVICE says which one it runs. `terminal` is the same with the programs
# of stages and their libraries, for the Terminal: docker build --target terminal …
FROM python:3.11-slim AS build
COPY requirements.lock .
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

FROM build AS build-terminal
COPY requirements-stages.lock .
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements-stages.lock
# Where commands, whose environment holds nothing of the service's, find them.
COPY stages /opt/venv/lib/python3.11/site-packages/stages
RUN chmod -R a+rX /opt/venv && /opt/venv/bin/python -m compileall -q /opt/venv/lib/python3.11/site-packages/stages

FROM python:3.11-slim AS base
# Volumes mounted over these folders take their owner from here.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin conductor \
 && install -d -o conductor -g conductor -m 0700 /data /workspaces /research \
 && install -d -o conductor -g conductor -m 0755 /reports
WORKDIR /app
COPY gen gen
COPY services services
COPY ops/health.py ops/health.py
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app:/app/gen SERVICE=conductor
# The code belongs to root and cannot be written by the service, so it is compiled now.
RUN chmod -R a+rX . && python -m compileall -q gen services ops
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=20s --retries=3 \
    CMD ["sh", "-c", "exec python -m ops.health \"$SERVICE\""]
CMD ["sh", "-c", "exec python -m \"services.$SERVICE\""]

FROM base AS terminal
COPY --from=build-terminal /opt/venv /opt/venv
ENV SERVICE=terminal

FROM base AS service
COPY --from=build /opt/venv /opt/venv
