"""Where the processes listen and write, worked out from environment variables and checked before any starts.

A process is named after its service: `conductor`; the further ones of it are `conductor-2`, `conductor-3` …
"""

import errno
import ipaddress
import os
import random
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops import envoy, interpreter
from ops.health import SETTINGS, dial
from services.common.config import (
    MAX_PORT,
    PREFIXES,
    ConductorSettings,
    ConfigError,
    ReportWriterSettings,
    ResearcherSettings,
    TerminalSettings,
    load,
)

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("researcher", "terminal", "report_writer")
SERVICES = (*WORKERS, "conductor")
KINDS = ("postgres", *SERVICES, "envoy")
START_ORDER = (("postgres", *WORKERS), ("conductor",), ("envoy",))  # callers after the called
LISTEN = {kind: f"{kind.upper()}_LISTEN" for kind in SERVICES} | {"envoy": "EDGE_LISTEN", "admin": "EDGE_ADMIN"}
EDGE_DEFAULTS = {"envoy": "127.0.0.1:8080", "admin": "127.0.0.1:9901"}
# Below the range from which Linux takes the ports of outgoing connections, which could grab one at any moment.
FREE_PORTS = range(20_000, 32_000)
PORT_STEP = 10  # conductor-2 listens this far above conductor: the defaults of the services stand side by side
# Seconds that a replica goes on serving after it has said that it stops: Envoy asks every second whether it serves, and
# sends it calls until it has heard.
DRAIN_S = "3"


@dataclass(frozen=True, slots=True)
class Size:
    """How many processes there are: Conductors, each of the workers, and whether a PostgreSQL runs beside them."""

    replicas: int = 1
    workers: int = 1
    postgres: bool = False

    def names(self, kind: str) -> list[str]:
        """The names of all processes of a kind."""
        counts = {"postgres": int(self.postgres), "conductor": self.replicas, "envoy": 1}
        return [numbered(kind, n) for n in range(1, counts.get(kind, self.workers) + 1)]


ONE_EACH = Size()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is.

    Attributes:
        addresses: host:port by name; `admin` is Envoy's second.
        folders: those that must be writable, each with the variable that names it.
        environ: the environment that makes the services agree with it, but for
        own: what differs from process to process, by name.
    """

    addresses: Mapping[str, str]
    folders: Sequence[tuple[str, Path]]
    environ: Mapping[str, str]
    own: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def environ_of(self, name: str) -> dict[str, str]:
        """The environment of one process."""
        return {**self.environ, **self.own.get(name, {})}


def numbered(kind: str, n: int) -> str:
    """The name of the n-th process of a kind, counted from 1."""
    return kind if n == 1 else f"{kind}-{n}"


def kind_of(name: str) -> str:
    """What a process is, whichever of its kind."""
    return name.partition("-")[0]


def from_environment(
    environ: Mapping[str, str], size: Size = ONE_EACH, spare: Mapping[str, str] | None = None
) -> Layout:
    """Works out the layout; what no variable names has its default. Raises ConfigError for a bad value.

    `spare` has the addresses of processes that no variable names; without it they follow the first of their kind.
    """
    spare = spare or {}
    addresses: dict[str, str] = {}
    for kind in SERVICES:
        first: str = load(SETTINGS[kind], environ).listen
        for n, name in enumerate(size.names(kind), 1):
            addresses[name] = spare.get(name, first if n == 1 else _beside(LISTEN[kind], first, n))
    for name, default in EDGE_DEFAULTS.items():
        addresses[name] = envoy.checked(LISTEN[name], environ.get(LISTEN[name], default))
    if size.postgres:  # Conductor is told the address, so nobody has to choose it
        free = (f"127.0.0.1:{port}" for port in free_ports(len(addresses) + 1))
        addresses["postgres"] = next(address for address in free if address not in addresses.values())
    targets = {
        f"CONDUCTOR_{kind.upper()}": target(LISTEN[kind], [dial(addresses[name]) for name in size.names(kind)])
        for kind in WORKERS
    }
    targets["RESEARCHER_REPORTS"] = str(load(ReportWriterSettings, environ).root)
    targets |= _for_stages(ROOT / "var" / "stages-python")
    own = _own(environ, size, addresses)
    return Layout(addresses, _folders(environ, size, own), {**targets, **environ}, own)


def isolated(run_dir: Path, environ: Mapping[str, str], overrides: Mapping[str, str], size: Size = ONE_EACH) -> Layout:
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
        "RESEARCHER_HOME": str(run_dir / "researcher"),
    }
    further = [name for kind in SERVICES for name in size.names(kind)[1:]]
    free = [f"127.0.0.1:{port}" for port in free_ports(len(LISTEN) + len(further))]
    listen = dict(zip(LISTEN.values(), free, strict=False))
    spare = dict(zip(further, free[len(LISTEN) :], strict=True))
    return from_environment({**clean, **files, **listen, **overrides}, size, spare)


def target(variable: str, addresses: Sequence[str]) -> str:
    """Returns the gRPC target of a service at these addresses (gRPC naming: `ipv4:1.2.3.4:5,1.2.3.4:6`).

    Raises ConfigError for several that are not IP addresses of one version: such a list has no target.
    """
    if len(addresses) == 1:
        return addresses[0]
    try:
        (version,) = {ipaddress.ip_address(envoy.split(address)[0]).version for address in addresses}
    except ValueError:
        raise ConfigError(f"Several of a service need an IP address in {variable}, for example 127.0.0.1.") from None
    return f"ipv{version}:{','.join(addresses)}"


def _beside(variable: str, first: str, n: int) -> str:
    """Returns where the n-th of a kind listens."""
    host, _, port = first.rpartition(":")
    number = int(port) + PORT_STEP * (n - 1)
    if number > MAX_PORT:
        raise ConfigError(f"There is no port for number {n} above {first}: choose a lower one by {variable}.")
    return f"{host}:{number}"


def _for_stages(own: Path) -> dict[str, str]:
    """Returns how the Terminal finds the programs of stages: a Python, what is installed for it, and `stages`.

    Args:
        own: folder for an environment, if one is needed.
    """
    prefix, base = interpreter.environment(own)
    folders = {prefix, base, Path(sys.prefix), ROOT / "stages"}
    return {
        "TERMINAL_FOLDERS": os.pathsep.join(sorted(str(folder) for folder in folders if folder != Path("/usr"))),
        "TERMINAL_PATH": f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "TERMINAL_DATA": str(ROOT / "data"),
    }


def _own(environ: Mapping[str, str], size: Size, addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Returns what the processes are told one by one."""
    own = {name: {LISTEN[kind]: addresses[name]} for kind in SERVICES for name in size.names(kind)}
    workspaces = load(TerminalSettings, environ).workspaces
    for n, name in enumerate(size.names("terminal")[1:], 2):  # a Terminal clears what it finds at its start
        own[name]["TERMINAL_WORKSPACES"] = f"{workspaces}-{n}"
    if size.replicas > 1:
        instance = environ.get("CONDUCTOR_INSTANCE", "conductor")
        for n, name in enumerate(size.names("conductor"), 1):
            own[name]["CONDUCTOR_INSTANCE"] = numbered(instance, n)
            own[name]["CONDUCTOR_DRAIN"] = environ.get("CONDUCTOR_DRAIN", DRAIN_S)
    return own


def _folders(environ: Mapping[str, str], size: Size, own: Mapping[str, Mapping[str, str]]) -> list[tuple[str, Path]]:
    """Returns the folders that are written to. Raises ConfigError for a file that several Conductors would share."""
    folders = [
        ("TERMINAL_WORKSPACES", load(TerminalSettings, {**environ, **own[name]}).workspaces)
        for name in size.names("terminal")
    ]
    folders.append(("REPORT_WRITER_ROOT", load(ReportWriterSettings, environ).root))
    folders.append(("RESEARCHER_HOME", load(ResearcherSettings, environ).home))
    store = load(ConductorSettings, environ).store
    if size.postgres or not isinstance(store, Path):
        return folders
    if size.replicas > 1:
        raise ConfigError(
            f"{size.replicas} Conductors cannot share the SQLite file {store}: set CONDUCTOR_STORE to a postgresql:// "
            "URL, or unset it to have a PostgreSQL started for them."
        )
    return [("CONDUCTOR_STORE", store.parent), *folders]


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
    taken: dict[str, str] = {}
    for name in names:
        address, variable = layout.addresses[name], LISTEN[kind_of(name)]
        if address in taken:
            raise ConfigError(f"{name} and {taken[address]} would both listen on {address}: move one by {variable}.")
        taken[address] = name
        error = _bind(address)
        if error == errno.EADDRINUSE:
            raise ConfigError(f"{address} is in use: stop what listens there, or choose another by {variable}.")
        if error is not None:
            raise ConfigError(f"Cannot listen on {address}: choose an address of this machine by {variable}.")


def check_folders(layout: Layout) -> None:
    """Makes the folders. Raises ConfigError for the first that cannot be made or written to."""
    for variable, folder in layout.folders:
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
