"""A workspace with programs, and policies over them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import error_pb2

from services.common.config import TerminalSettings, load
from services.common.errors import Refusal
from services.terminal import programs
from services.terminal.lookup import View
from services.terminal.programs import Allowed, Programs

ROOT = Path(__file__).resolve().parent.parent
PATH = "/usr/local/bin:/usr/bin:/bin"
ECHO = os.path.realpath("/bin/echo")
SHELL = os.path.realpath("/bin/sh")
ENV = os.path.realpath("/usr/bin/env")

Reason = error_pb2.ErrorReason


@dataclass
class Place:
    """A workspace, and outside of it a folder that is none of a command's business."""

    path: Path
    fd: int
    outside: Path

    def view(self, uid: int = 0) -> View:
        return View(os.fsencode(self.path), self.fd, uid)

    def put(self, name: str, content: str = "#!/bin/sh\necho $0\n", mode: int = 0o755) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    def link(self, name: str, target: str | Path) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).symlink_to(target)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "workspace", os.O_RDONLY)
    yield Place(tmp_path / "workspace", fd, tmp_path / "outside")
    os.close(fd)


def policy(place: Place, text: str, **settings: str) -> Programs:
    """Loads a policy file as the service does."""
    file = place.outside / "policy.toml"
    file.write_text(text)
    environ = {f"TERMINAL_{name.upper()}": value for name, value in settings.items()}
    return programs.load(load(TerminalSettings, {"TERMINAL_POLICY": str(file), **environ}))


def refused(rules: Programs, place: Place, program: str | bytes, *, uid: int = 0, **how: Any) -> dict[str, str]:
    """Expects a refusal; returns its reason, message and metadata."""
    path = how.pop("path", PATH)
    with pytest.raises(Refusal) as caught:
        rules.decide(program, path, place.view(uid), **how)
    error = caught.value.error
    reason = Reason.Name(error.reason).removeprefix("ERROR_REASON_")
    return {**error.metadata, "reason": reason, "message": error.message}


def outcome(rules: Programs, place: Place, program: str, path: str | None = PATH) -> Allowed | str:
    """Returns what may run, or the errno that says why it cannot."""
    try:
        return rules.decide(program, path, place.view())
    except Refusal as refusal:
        assert refusal.error.reason == Reason.ERROR_REASON_COMMAND_NOT_STARTED, refusal
        return refusal.error.metadata["errno"]


# ---- the policy ----


def only(*patterns: str, more: str = "") -> str:
    """Returns a policy of these programs."""
    return "".join(f"[[program]]\npath = '{pattern}'\n" for pattern in patterns) + more
