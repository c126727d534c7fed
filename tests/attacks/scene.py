"""One attack while it is made and after: what it was told, what came back, what the outside saw."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conductor.v1 import terminal_pb2

from tests.attacks.attack import Attack
from tests.attacks.ground import Ground
from tests.attacks.settings import Terminal
from tests.terminals import End

REAPED_S = 1.0


@dataclass
class Scene:
    """What is known of one attack."""

    terminal: Terminal
    attack: Attack
    ground: Ground
    told: dict[str, Any]
    stdout: bytes = b""
    stderr: bytes = b""
    result: terminal_pb2.CommandResult | None = None
    refusal: str = ""  # of a call that ran nothing, or broke off
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)  # evidence found while it ran

    @property
    def output(self) -> bytes:
        """Returns both streams."""
        return self.stdout + self.stderr

    @property
    def end(self) -> str:
        """Returns the name of the end that was told, or ""."""
        return End.Name(self.result.end).removeprefix("COMMAND_END_") if self.result else ""

    @property
    def exit_code(self) -> int | None:
        """Returns the exit code that was told."""
        return self.result.exit_code if self.result and self.result.HasField("exit_code") else None

    @property
    def dropped(self) -> int:
        """Returns how many bytes were told to be dropped."""
        return self.result.stdout_dropped_bytes + self.result.stderr_dropped_bytes if self.result else 0

    def marked(self) -> list[int]:
        """Returns the processes of this attack, as the outside sees them."""
        return with_argument(self.ground.mark)

    def end_what_is_left(self) -> None:
        """Kills what got out, so that it is not left to the machine."""
        deadline = time.monotonic() + REAPED_S
        while (left := self.marked()) and time.monotonic() < deadline:
            for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: one may start others all the time
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def zombies(self) -> int:
        """Returns how many dead processes below the service nobody collects."""
        deadline = time.monotonic() + REAPED_S
        while count := sum(state == "Z" for _, state in below(self.terminal.process.pid)):
            if time.monotonic() > deadline:
                break
        return count

    def evidence(self, left: list[int]) -> Iterator[str]:
        """Tells whatever shows that the attack got out; `left` are processes of its command."""
        for name, text in (
            ("the secret of what it aimed at", self.ground.secret),
            ("the secret of the service", self.terminal.secret),
            ("its proof", self.ground.proof),
        ):
            if text.encode() in self.output:
                found = next(line for line in self.output.split(b"\n") if text.encode() in line)
                yield f"{name} in the output: {found[-150:]!r}"
        yield from self.seen
        yield from self.ground.evidence()
        if left:
            yield f"processes left: {left}"
        if self.terminal.process.poll() is not None:
            yield "the service has ended"
        if told := self.attack.check(self):
            yield told


def with_argument(text: str) -> list[int]:
    """Returns the processes whose command line holds a text. Looks at all there are, several times an attack."""
    wanted, found = text.encode(), []
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted
        if name.isdigit():
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{name}/cmdline", os.O_RDONLY)
                try:
                    told = b"".join(iter(lambda fd=fd: os.read(fd, 65536), b""))
                finally:
                    os.close(fd)
                if wanted in told:
                    found.append(int(name))
    return found


def below(pid: int) -> list[tuple[int, str]]:
    """Returns the processes below one, with their states."""
    found: list[tuple[int, str]] = []
    todo = [pid]
    while todo:
        with contextlib.suppress(OSError):  # it may end while its folder is read
            for path in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    made = [int(word) for word in path.read_text().split()]
                    found += [(child, _state(child)) for child in made]
                    todo += made
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
