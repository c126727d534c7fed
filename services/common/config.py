"""Environment → one frozen Settings per service, read once at start. Nothing else reads the environment.

Names are the service's name in capitals, an underscore, and the field's name in capitals: `CONDUCTOR_LISTEN`. Sizes are
bytes, times are seconds. A value that cannot be used raises ConfigError with the variable, the value and what is
expected.
"""

import os
import re
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

MIB = 1024 * 1024
GIB = 1024 * MIB
MAX_PORT = 65535
TIERS = ("best", "strong", "standard", "none-i-understand")  # of isolation; best: the strongest that can be had
EXTRAS = frozenset({"rerank", "semantic"})  # of the Researcher
URLS = ("postgresql:", "postgres:")  # how the URL of a PostgreSQL database begins
_URL = re.compile("(?<=://).*|(?<=^postgres:).*|(?<=^postgresql:).*", re.DOTALL)
_WHOLE = re.compile("[0-9]{1,18}")  # str.isdigit knows digits that int refuses


class ConfigError(Exception):
    """A setting cannot be used. The message names the variable and what is expected."""


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not _WHOLE.fullmatch(port) or int(port) > MAX_PORT:
        raise ValueError("host:port, for example 127.0.0.1:50051")
    return text


def _target(text: str) -> str:
    if not text or any(c.isspace() for c in text):
        raise ValueError("a gRPC target, for example 127.0.0.1:50052 or dns:///researcher:50052")
    return text


def _positive(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("seconds above 0")
    return value


def _pause(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _unless_empty(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads a limit that need not be set: empty means None."""
    return lambda text: parse(text) if text else None


def _path(text: str) -> Path:
    if not text:
        raise ValueError("a path")
    return Path(text).absolute()


def _store(text: str) -> str | Path:
    """A PostgreSQL URL stays text, for its driver to read; all else is the path of a SQLite file."""
    if "://" not in text and not text.startswith(URLS):
        return _path(text)
    if not text.startswith(tuple(f"{scheme}//" for scheme in URLS)) or any(c.isspace() for c in text):
        raise ValueError("a path, or postgresql://user:password@host:port/database")
    return text


def _scratch(text: str) -> Path:
    """A folder of this user's in the temporary directory when none is named: other users must be able to reach what
    they run in, and a home folder usually bars them."""
    return _path(text or str(Path(tempfile.gettempdir(), f"conductor-workspaces-{os.getuid()}")))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(_path(part) for part in text.split(os.pathsep) if part)


def _search_path(text: str) -> str:
    if not text or not all(part.startswith("/") for part in text.split(":")):
        raise ValueError("absolute folders, separated by ':'")
    return text


def _tier(text: str) -> str:
    if text not in TIERS:
        raise ValueError(f"one of {', '.join(TIERS)}")
    return text


def _extras(text: str) -> frozenset[str]:
    names = frozenset(part for part in text.split(",") if part)
    if names - EXTRAS:
        raise ValueError(f"names of {', '.join(sorted(EXTRAS))}, separated by commas")
    return names


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("a name")
    return text


def _setting(parse: Callable[[str], Any], default: str) -> Any:
    """Declares a field with its parser; the default is written as it would stand in the environment."""
    return field(metadata={"parse": parse, "default": default})


@dataclass(frozen=True, slots=True)
class ConductorSettings:
    """Settings of the Conductor service."""

    listen: str = _setting(_address, "127.0.0.1:50051")
    store: str | Path = _setting(_store, "var/conductor.db")  # the SQLite file, or the URL of a PostgreSQL database
    researcher: str = _setting(_target, "127.0.0.1:50052")
    terminal: str = _setting(_target, "127.0.0.1:50053")
    report_writer: str = _setting(_target, "127.0.0.1:50054")
    instance: str = _setting(_name, f"{socket.gethostname()}-{os.getpid()}")  # name of this replica in events
    lease: float = _setting(_seconds, "5")  # seconds after which a silent replica's tasks are taken over
    max_in_flight: int = _setting(_positive, "64")  # tasks with a worker called, at once
    max_queued: int = _setting(_positive, "10000")  # tasks accepted and waiting for a slot
    max_calls: int = _setting(_positive, "8000")  # calls answered at once, those that wait for a task's end included
    max_streams: int = _setting(_positive, "4000")  # open event streams
    heartbeat: float = _setting(_seconds, "15")  # seconds of quiet before a checkpoint goes out
    keep_for: float | None = _setting(_unless_empty(_seconds), "")  # seconds an ended task is kept; None: for ever
    keep_tasks: int | None = _setting(_unless_empty(_positive), "")  # ended tasks kept at most; None: all
    stages: Path | None = _setting(_unless_empty(_path), "")  # YAML of which program does which stage; None: our own
    max_upload: int = _setting(_positive, str(1 * GIB))  # bytes of data that are taken to a project at once
    drain: float = _setting(_pause, "0")  # seconds a stop goes on serving while the edge looks for other replicas
    grace: float = _setting(_seconds, "10")  # seconds a stop waits for calls under way


@dataclass(frozen=True, slots=True)
class ResearcherSettings:
    """Settings of the Researcher service."""

    listen: str = _setting(_address, "127.0.0.1:50052")
    roots: tuple[Path, ...] = _setting(_paths, "docs")  # folders it may read, separated by ':'
    reports: Path = _setting(_path, "reports")  # of earlier tasks, searched when asked for
    home: Path = _setting(_path, "var/researcher")  # indexes, researches and pages it keeps
    sources: Path | None = _setting(_unless_empty(_path), "")  # TOML file of further sources, the web and a model
    extras: frozenset[str] = _setting(_extras, "")  # installed ones that are used: semantic, rerank
    rescan: float = _setting(_seconds, "60")  # seconds after which folders are looked through without a sign of change
    keep: float = _setting(_seconds, "86400")  # seconds an ended research is kept
    max_researches: int = _setting(_positive, "64")  # under way at once, each in a thread
    max_findings: int = _setting(_positive, "8")  # when the request names none
    max_documents: int = _setting(_positive, "200000")
    max_file_bytes: int = _setting(_positive, str(64 * MIB))
    max_bytes: int = _setting(_positive, str(4 * GIB))
    max_fetches: int = _setting(_positive, "40")  # requests to the web of one research
    max_model_calls: int = _setting(_positive, "8")  # of one research, as the two below
    max_model_tokens: int = _setting(_positive, "100000")
    max_model_cost_micros: int = _setting(_positive, "1000000")  # where the model's prices are configured
    wall_time: float = _setting(_seconds, "60")  # when the request names none
    max_calls: int = _setting(_positive, "256")  # answered at once
    grace: float = _setting(_seconds, "10")


@dataclass(frozen=True, slots=True)
class TerminalSettings:
    """Settings of the Terminal service. `max_*` are ceilings a request cannot exceed."""

    listen: str = _setting(_address, "127.0.0.1:50053")
    tier: str = _setting(_tier, "best")  # commands are refused where it cannot be had
    policy: Path | None = _setting(_unless_empty(_path), "")  # TOML file of what may run; None: every program
    folders: tuple[Path, ...] = _setting(_paths, "")  # of programs beyond /usr, that commands may read and run
    data: tuple[Path, ...] = _setting(_paths, "")  # of data, that commands may read
    path: str = _setting(_search_path, "/usr/local/bin:/usr/bin:/bin")  # PATH of commands
    workspaces: Path = _setting(_scratch, "")
    keep_workspaces: float = _setting(_seconds, "86400")  # seconds a named workspace is kept unused
    keep_calls: float = _setting(_seconds, "3600")  # seconds a call is remembered after its end
    calls_bytes: int = _setting(_positive, str(1 * GIB))  # disk space of all remembered calls
    max_commands: int = _setting(_positive, "16")  # running at once
    wall_time: float = _setting(_seconds, "60")
    max_wall_time: float = _setting(_seconds, "3600")
    cpu_time: float = _setting(_seconds, "60")
    max_cpu_time: float = _setting(_seconds, "3600")
    memory_bytes: int = _setting(_positive, str(1 * GIB))
    max_memory_bytes: int = _setting(_positive, str(8 * GIB))
    processes: int = _setting(_positive, "64")
    max_processes: int = _setting(_positive, "512")
    file_size_bytes: int = _setting(_positive, str(64 * MIB))
    max_file_size_bytes: int = _setting(_positive, str(1 * GIB))
    output_bytes: int = _setting(_positive, str(1 * MIB))
    max_output_bytes: int = _setting(_positive, str(64 * MIB))
    open_files: int = _setting(_positive, "256")
    max_open_files: int = _setting(_positive, "4096")
    workspace_bytes: int = _setting(_positive, str(512 * MIB))
    max_workspace_bytes: int = _setting(_positive, str(4 * GIB))
    workspace_entries: int = _setting(_positive, "20000")
    max_workspace_entries: int = _setting(_positive, "200000")
    grace: float = _setting(_seconds, "10")


@dataclass(frozen=True, slots=True)
class ReportWriterSettings:
    """Settings of the ReportWriter service."""

    listen: str = _setting(_address, "127.0.0.1:50054")
    root: Path = _setting(_path, "reports")
    max_bytes: int = _setting(_positive, str(8 * MIB))
    keep_files: float | None = _setting(_unless_empty(_seconds), "")  # seconds a task's files are kept; None: for ever
    max_calls: int = _setting(_positive, "256")  # answered at once
    grace: float = _setting(_seconds, "10")


PREFIXES: Mapping[type, str] = {
    ConductorSettings: "CONDUCTOR",
    ResearcherSettings: "RESEARCHER",
    TerminalSettings: "TERMINAL",
    ReportWriterSettings: "REPORT_WRITER",
}

Settings = TypeVar("Settings")


def secret(name: str) -> str:
    """Returns the value of the environment variable that a file of settings names for a key. Raises ConfigError."""
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(
            f"{name} is not set: put the key into this environment variable, or leave it out of the file."
        )
    return value


def load(settings: type[Settings], environ: Mapping[str, str] | None = None) -> Settings:
    """Reads one service's settings. Raises ConfigError for the first value that cannot be used."""
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        name = f"{PREFIXES[settings]}_{item.name.upper()}"
        text = source.get(name, item.metadata["default"])
        try:
            values[item.name] = item.metadata["parse"](text)
        except ValueError as expected:
            shown = _URL.sub("…", text)  # it may hold a password
            raise ConfigError(f"{name}={shown!r} cannot be used: give {expected}.") from None
    return settings(**values)
