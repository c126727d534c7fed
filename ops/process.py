"""One supervised process: its own group, tied to its parent's life, its output relayed line by line."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ops.envoy import ROOT

TETHER = Path(__file__).with_name("tether.py")
MAX_LINE_BYTES = 64 * 1024  # a longer line is relayed in pieces
DRAIN_OUTPUT_S = 1.0

Tell = Callable[[str, str], None]  # (name of the process, a line without its end)


class Process:
    """A running child process. Its output is appended to `log` and told line by line."""

    def __init__(self, name: str, log: Path, child: asyncio.subprocess.Process, tell: Tell) -> None:
        self.name = name
        self._log = log
        self._child = child
        self._tell = tell
        self._relay = asyncio.create_task(self._relay_output())

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], environ: Mapping[str, str], log: Path, tell: Tell
    ) -> "Process":
        """Starts the command in the repository's folder, in a process group of its own."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command),
            cwd=ROOT,
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,  # a Ctrl-C in the terminal reaches the supervisor only, which stops all in order
        )
        return cls(name, log, child, tell)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._child.returncode

    async def wait(self) -> int:
        """Waits for its end; returns the exit code, negative for a signal."""
        return await self._child.wait()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group; does nothing when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def stop(self, number: signal.Signals, grace: float) -> int:
        """Sends the signal, and SIGKILL after `grace` seconds; returns the exit code. Nothing of the group is left."""
        if self.exit_code is None:
            self.send(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), grace)
        self.send(signal.SIGKILL)
        code = await self.wait()
        # Who left the group may still hold the pipe; its end is not awaited for ever.
        await asyncio.wait({self._relay}, timeout=DRAIN_OUTPUT_S)
        self._relay.cancel()
        return code

    async def _relay_output(self) -> None:
        assert self._child.stdout is not None  # noqa: S101 - it was asked for above
        rest = b""
        with self._log.open("ab", buffering=0) as log:
            while chunk := await self._child.stdout.read(MAX_LINE_BYTES):
                log.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._tell(self.name, line.decode(errors="replace"))
        if rest:
            self._tell(self.name, rest.decode(errors="replace"))

    def last_line(self) -> str:
        """Returns the last line of its log that is not blank, or what is known without one."""
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")
