"""Reads the operator's policy: a TOML file of the programs that may run. See docs/terminal-policy.example.toml.

What the file does not allow is refused. What it says wrongly is a ConfigError, one sentence with file, table and key.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from services.common.config import ConfigError, TerminalSettings
from services.terminal.policy import PROGRAMS

SHELL = "/bin/sh"  # runs `script`
WORKSPACE = "$HOME/**"  # how programs in the workspace are shown among the patterns
MAX_BYTES = 256 * 1024  # of the file
TIMES = ("wall_time", "cpu_time")  # seconds
NUMBERS = (
    "memory_bytes",
    "processes",
    "file_size_bytes",
    "output_bytes",
    "open_files",
    "workspace_bytes",
    "workspace_entries",
)
_LIMITS = {f"max_{name}": name for name in (*TIMES, *NUMBERS)}
_GRANT = ("loopback", *_LIMITS)
_PATH_MAX = 4096


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows a program.

    Args:
        path: pattern of the executable's path after all links are followed; `*` and `?` stay within a name.
        ceilings: names as in the contract's Limits; only those that are lower than the operator's.
        loopback: whether it may ask for NETWORK_LOOPBACK.
    """

    path: str
    ceilings: Mapping[str, float]
    loopback: bool


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """What a policy file says. The first of `programs` that matches holds."""

    programs: tuple[Rule, ...]
    workspace: Rule | None  # programs in the workspace; None: not to be run
    script: Rule | None  # the shell; None: `script` is refused


def read(path: Path, settings: TerminalSettings) -> PolicyFile:
    """Reads and checks a policy file. Raises ConfigError."""
    tables = _parse(path)
    top = _Table(path, "the file", tables, ("program", "workspace", "script"), settings)
    listed = tables.get("program", [])
    if not isinstance(listed, list):
        top.refuse("program", "tables, each headed [[program]]")
    programs: list[Rule] = []
    for number, values in enumerate(listed, 1):
        rule = _program(_Table(path, f"[[program]] {number}", values, ("path", *_GRANT), settings))
        if rule.path in (other.path for other in programs):
            top.refuse("program", f"each path once: {rule.path!r} is there twice")
        programs.append(rule)
    workspace = _switch(top, "workspace", "execute", WORKSPACE)
    script = _switch(top, "script", "allowed", os.path.realpath(SHELL))
    if not programs and workspace is None and script is None:
        top.refuse("program", "at least one program, as every command would be refused")
    return PolicyFile(tuple(programs), workspace, script)


def _parse(path: Path) -> dict[str, Any]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not stop the start
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                _cannot(path, "it is no file")
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            _cannot(path, f"it is larger than {MAX_BYTES} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        _cannot(path, error.strerror or type(error).__name__)
    except UnicodeDecodeError as error:
        _cannot(path, f"byte {error.start} is no UTF-8")
    except ValueError as error:  # besides its own, what int says of thousands of digits
        _cannot(path, f"it is no TOML: {str(error).splitlines()[0]}")
    except RecursionError:
        _cannot(path, "it is nested too deeply")


def _cannot(path: Path, why: str) -> NoReturn:
    raise ConfigError(f"TERMINAL_POLICY={str(path)!r} cannot be used: {why}.") from None


class _Table:
    """One table of the file: knows its place, so that each complaint names it."""

    def __init__(self, path: Path, name: str, values: Any, keys: tuple[str, ...], settings: TerminalSettings) -> None:
        self._path = path
        self._name = name
        self.settings = settings
        if not isinstance(values, dict):
            _cannot(path, f"{name} must be a table")
        self.values: dict[str, Any] = values
        for key in values:
            if key not in keys:
                self.refuse(key, f"no such key, as it has {', '.join(keys)}")

    def refuse(self, key: str, expected: str) -> NoReturn:
        shown = f" = {self._shown(key)}" if key in self.values else ""
        _cannot(self._path, f"{self._name}, {key[:100]!r}{shown}: give {expected}")

    def _shown(self, key: str) -> str:
        value = self.values[key]
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
            return "a number of many digits"  # repr refuses it
        return repr(value)[:100]

    def inner(self, name: str, keys: tuple[str, ...]) -> "_Table | None":
        if name not in self.values:
            return None
        return _Table(self._path, f"[{name}]", self.values[name], keys, self.settings)

    def flag(self, key: str, default: bool | None) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def rule(self, path: str) -> Rule:
        ceilings = {_LIMITS[key]: self._ceiling(key) for key in self.values if key in _LIMITS}
        return Rule(path, ceilings, self.flag("loopback", False))

    def _ceiling(self, key: str) -> float:
        value = self.values[key]
        highest = getattr(self.settings, key)
        timed = _LIMITS[key] in TIMES
        fits = type(value) in ((int, float) if timed else (int,))  # a bool is neither
        if not fits or not 0 < value <= highest:
            what = "seconds above 0" if timed else "a whole number above 0"
            self.refuse(key, f"{what} and at most {highest:.15g} (TERMINAL_{key.upper()})")
        return float(value) if timed else int(value)


def _switch(top: _Table, name: str, key: str, path: str) -> Rule | None:
    table = top.inner(name, (key, *_GRANT))
    if table is None:
        return None
    rule = table.rule(path)
    return rule if table.flag(key, None) else None


def _program(table: _Table) -> Rule:
    path = table.values.get("path")
    if not isinstance(path, str):
        table.refuse("path", "the path of an executable, in quotes")
    names = path.split("/")[1:]
    if not path.startswith("/") or any(name in ("", ".", "..") for name in names):
        table.refuse("path", "an absolute path without `.`, `..`, empty names and a `/` at its end")
    if len(os.fsencode(path)) >= _PATH_MAX or not path.isprintable():
        table.refuse("path", f"fewer than {_PATH_MAX} bytes, all printable")
    if "**" in path:
        table.refuse("path", "`*` for any part of one name, as there is no `**`")
    folders = (*PROGRAMS, *map(str, table.settings.folders))
    if not any(path.startswith(f"{folder}/") for folder in folders):
        table.refuse("path", f"a program below one of {', '.join(folders)}, as no other folder holds programs")
    _refuse_links(table, names)
    return table.rule(path)


def _refuse_links(table: _Table, names: list[str]) -> None:
    """Refuses a pattern that can match nothing, because a link stands in it where no file's real path has one."""
    for end in range(1, len(names) + 1):
        if any(sign in names[end - 1] for sign in "*?"):
            return
        path = "/" + "/".join(names[:end])
        if os.path.islink(path):  # noqa: PTH114
            table.refuse("path", f"what the link {path} leads to, {'/'.join([os.path.realpath(path), *names[end:]])}")
