"""Asks services whether they serve (grpc.health.v1). Usage: python -m ops.health SERVICE …

The exit code is 1 when one of them does not. SERVICE is researcher, terminal, report_writer or conductor; its address
comes from its own settings.
"""

import asyncio
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.config import PREFIXES, load

TIMEOUT_S = 3
SETTINGS = {prefix.lower(): settings for settings, prefix in PREFIXES.items()}
LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - nothing is bound here
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def dial(listen: str) -> str:
    """Returns the address by which this machine reaches a listener: every-address listeners by loopback."""
    host, _, port = listen.rpartition(":")
    return f"{LOOPBACK.get(host, host)}:{port}"


async def is_serving(address: str) -> bool:
    """Returns whether the service says SERVING; waits TIMEOUT_S for it to be reachable."""
    request = health_pb2.HealthCheckRequest()
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(request, timeout=TIMEOUT_S, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def main(names: list[str]) -> int:
    addresses = [dial(load(SETTINGS[name]).listen) for name in names]
    return 0 if all([await is_serving(address) for address in addresses]) else 1


if __name__ == "__main__":
    if not sys.argv[1:] or set(sys.argv[1:]) - SETTINGS.keys():
        raise SystemExit(__doc__)
    raise SystemExit(asyncio.run(main(sys.argv[1:])))
