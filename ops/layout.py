"""Where the five processes listen and write, worked out from environment variables and checked before any starts."""

import errno
import random
import secrets
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ops import envoy
from ops.health import SETTINGS, dial
from services.common.config import (
    PREFIXES,
    ConductorSettings,
    ConfigError,
    ReportWriterSettings,
    TerminalSettings,
    load,
)

SERVICES = ("researcher", "terminal", "report_writer", "conductor")
NAMES = (*SERVICES, "envoy")
START_ORDER = (("researcher", "terminal", "report_writer"), ("conductor",), ("envoy",))  # callers after the called
LISTEN = {name: f"{name.upper()}_LISTEN" for name in SERVICES} | {"envoy": "EDGE_LISTEN", "admin": "EDGE_ADMIN"}
EDGE_DEFAULTS = {"envoy": "127.0.0.1:8080", "admin": "127.0.0.1:9901"}
# Below the range from which Linux takes the ports of outgoing connections, which could grab one at any moment.
FREE_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Layout:
    """Addresses by name (`admin` is Envoy's second), folders that must be writable, by variable, and the environment
    that makes the services agree with it."""

    addresses: Mapping[str, str]
    folders: Mapping[str, Path]
    environ: Mapping[str, str]


def from_environment(environ: Mapping[str, str]) -> Layout:
    """Works out the layout; what no variable names has its default. Raises ConfigError for a bad value."""
    addresses: dict[str, str] = {name: load(SETTINGS[name], environ).listen for name in SERVICES}
    for name, default in EDGE_DEFAULTS.items():
        addresses[name] = envoy.checked(LISTEN[name], environ.get(LISTEN[name], default))
    targets = {f"CONDUCTOR_{name.upper()}": dial(addresses[name]) for name in SERVICES if name != "conductor"}
    folders = {
        "CONDUCTOR_STORE": Path(load(ConductorSettings, environ).store).absolute().parent,
        "TERMINAL_WORKSPACES": load(TerminalSettings, environ).workspaces,
        "REPORT_WRITER_ROOT": load(ReportWriterSettings, environ).root,
    }
    return Layout(addresses, folders, {**targets, **environ})


def isolated(run_dir: Path, environ: Mapping[str, str], overrides: Mapping[str, str]) -> Layout:
    """Works out a layout that shares nothing: free loopback ports, all files below run_dir.

    Variables of ours in `environ` are left out; those in `overrides` win.
    """
    ours = tuple(f"{prefix}_" for prefix in (*PREFIXES.values(), "EDGE"))
    clean = {key: value for key, value in environ.items() if not key.startswith(ours)}
    files = {
        "CONDUCTOR_STORE": str(run_dir / "conductor.db"),
        # Not below run_dir: other users must be able to reach what they run in.
        "TERMINAL_WORKSPACES": str(Path(tempfile.gettempdir(), f"conductor-workspaces-{secrets.token_hex(8)}")),
        "REPORT_WRITER_ROOT": str(run_dir / "reports"),
    }
    ports = free_ports(len(LISTEN))
    listen = {variable: f"127.0.0.1:{port}" for variable, port in zip(LISTEN.values(), ports, strict=True)}
    return from_environment({**clean, **files, **listen, **overrides})


def free_ports(count: int) -> list[int]:
    """Returns different loopback ports on which nothing listens."""
    found: list[int] = []
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if len(found) == count:
            break
        if _bind(f"127.0.0.1:{port}") is None:
            found.append(port)
    return found


def check_ports(layout: Layout, names: Iterable[str]) -> None:
    """Raises ConfigError for the first of the names whose address cannot be listened on."""
    for name in names:
        address = layout.addresses[name]
        error = _bind(address)
        if error == errno.EADDRINUSE:
            raise ConfigError(f"{address} is in use: stop what listens there, or choose another by {LISTEN[name]}.")
        if error is not None:
            raise ConfigError(f"Cannot listen on {address}: choose an address of this machine by {LISTEN[name]}.")


def check_folders(layout: Layout) -> None:
    """Makes the folders. Raises ConfigError for the first that cannot be made or written to."""
    for variable, folder in layout.folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"Cannot write to {folder} ({error.strerror}): make it writable, or choose another by {variable}."
            ) from None


def _bind(address: str) -> int | None:
    """Returns why nobody can listen on the address (errno), None when somebody can."""
    host, port = envoy.split(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do it: connections that linger after a restart do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return None
