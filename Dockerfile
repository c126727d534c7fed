# One image for all four services; SERVICE says which one it runs: docker run -e SERVICE=terminal …
FROM python:3.11-slim AS build
COPY requirements.lock .
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

FROM python:3.11-slim
# Volumes mounted over these folders take their owner from here.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin conductor \
 && install -d -o conductor -g conductor -m 0700 /data /workspaces /research \
 && install -d -o conductor -g conductor -m 0755 /reports
COPY --from=build /opt/venv /opt/venv
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
