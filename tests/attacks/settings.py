"""Where a Terminal is attacked: as root, as an ordinary user, and as in a container, in each tier."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import terminal_pb2, terminal_pb2_grpc

from tests.attacks import able
from tests.attacks.ground import number
from tests.attacks.start import CONTAINER
from tests.terminals import PYTHON, REPOSITORY, open_folder

FREE_UIDS = range(61_300, 61_400)  # nobody's, as those that the service lends
START_S = 20
TIERS = {"strong": "strong", "standard": "standard", "none": "none-i-understand"}  # name: value of TERMINAL_TIER


class Missing(Exception):
    """This machine cannot have the setting or the tier. The message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Who starts the Terminal, and in what."""

    name: str
    root: bool = False
    container: bool = False

    @property
    def place(self) -> str:
        """Returns what `start` calls the place."""
        return CONTAINER if self.container else "host"

    def uid(self) -> int:
        """Returns the user the service runs as. Raises Missing."""
        if not Path(PYTHON).exists():
            raise Missing(f"attacks are written in Python and {PYTHON} is missing")
        if os.geteuid() != 0:
            if self.root:
                raise Missing("only root can start a Terminal as root")
            return os.geteuid()
        return 0 if self.root else _ordinary_user()


SETTINGS = (Setting("root", root=True), Setting("user"), Setting("container", container=True))


def _ordinary_user() -> int:
    """Returns a user that nobody is, and that can read what a Terminal starts."""
    if not shutil.which("setpriv"):
        raise Missing("setpriv, of util-linux, is missing")
    taken = {path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if path.exists()}
    uid = next(uid for uid in FREE_UIDS if uid not in taken)
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import services.terminal.spawner"
    if not _runs(uid, PYTHON, "-I", "-S", "-c", probe, str(REPOSITORY)):
        raise Missing(f"{REPOSITORY} is closed to other users")
    return uid


def _interpreter(uid: int) -> str:
    """Returns one that the user may run: the folder of this one may be closed."""
    return sys.executable if _runs(uid, sys.executable, "-c", "") else PYTHON


def _runs(uid: int, *command: str) -> bool:
    try:
        user: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
        return subprocess.run(command, capture_output=True, **user).returncode == 0
    except PermissionError:
        return False


@dataclass
class Terminal:
    """A Terminal under attack, in a process of its own."""

    setting: Setting
    tier: str
    process: "subprocess.Popen[bytes]"
    port: int
    uid: int
    workspaces: Path
    secret: str  # in its environment and its session keyring


@contextlib.contextmanager
def started(setting: Setting, tier: str) -> Iterator[Terminal]:
    """Serves until the block ends. Raises Missing when the machine cannot have it, and says why."""
    uid, secret = setting.uid(), number()
    with open_folder() as folder:
        if os.geteuid() == 0:
            os.chown(folder, uid, uid)
        log = folder / "log"
        with log.open("wb") as stderr:
            arguments = [str(uid), setting.place, secret, _interpreter(uid)]
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.start", *arguments],
                env=_environment(folder, tier, secret),
                stderr=stderr,
                cwd=REPOSITORY,
            )
        try:
            terminal = Terminal(setting, tier, process, _port(process, log), uid, folder / "workspaces", secret)
            _must_hold(terminal)
            yield terminal
        finally:
            process.terminate()
            process.wait(START_S)


def _environment(folder: Path, tier: str, secret: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SECRET_OF_THE_SERVICE": secret,
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'gen'}",
        "TERMINAL_LISTEN": "127.0.0.1:0",
        "TERMINAL_WORKSPACES": str(folder / "workspaces"),
        "TERMINAL_TIER": TIERS[tier],
        "TERMINAL_MAX_COMMANDS": "32",
    }


def _port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if found := re.search(rb"listening on .*port (\d+)", log.read_bytes()):
            return int(found[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            break
    raise AssertionError(log.read_text())


def _must_hold(terminal: Terminal) -> None:
    """Raises Missing when the kernel cannot have the tier asked for. One that it can have must be in force."""
    with grpc.insecure_channel(f"127.0.0.1:{terminal.port}") as channel:
        told = terminal_pb2_grpc.TerminalStub(channel).GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
    wanted = terminal_pb2.IsolationTier.Value(f"ISOLATION_TIER_{terminal.tier.upper()}")
    if told.available and told.isolation.tier == wanted:
        return
    if lacking := able.lacking(terminal.uid, terminal.setting.place, terminal.tier):
        raise Missing(f"no tier {terminal.tier} here: {lacking}")
    reasons = "".join(state.unavailable_reason for state in told.tiers if state.tier == wanted)
    raise AssertionError(f"this machine can have the tier {terminal.tier}, and the Terminal has not: {reasons}")
