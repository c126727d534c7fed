"""Runs the whole system on this machine. Usage: python -m ops.up [--replicas N] [--detach] | python -m ops.up down

Starts researcher, terminal and report_writer, then conductor, then Envoy, waits until each serves, relays their log
lines, starts again what ends by itself, and stops all on Ctrl-C, on SIGTERM, or when one ends again and again (exit
code 1). Addresses and folders come from the variables in docs/operations.md. var/up.pid is locked while it runs;
var/logs/ has what each process wrote. `--var` names another folder for both, so that a second system can run beside the
first.

With several Conductors (`--replicas`) a PostgreSQL runs too, its data in var/postgres, unless CONDUCTOR_STORE is set.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO

from ops import layout
from ops.envoy import ROOT
from ops.keeper import keep
from ops.stack import Stack, StartError, silence
from services.common.config import ConfigError

PID_FILE = "up.pid"
STOP_TIMEOUT_S = 120  # above the sum of all graces
POLL_S = 0.1
COLOURS = {kind: f"\x1b[{code}m" for kind, code in zip(layout.KINDS, (31, 36, 33, 35, 32, 34), strict=True)}
GREETING = "Conductor is up"
RESET = "\x1b[0m"
WIDTH = max(map(len, layout.KINDS)) + len("-2")
MOST = 9  # of a kind: names and ports stay readable, and this is one machine


class AlreadyRunning(Exception):
    """Another supervisor holds the lock."""


def lock(var: Path) -> IO[str]:
    """Takes the lock for the life of the returned file and writes this process's id into it."""
    try:
        var.mkdir(parents=True, exist_ok=True)
        file = (var / PID_FILE).open("a+")
    except OSError as error:
        raise ConfigError(f"Cannot write to {var} ({error.strerror}): make it writable.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise AlreadyRunning(f"Conductor is running already (process {pid}); stop it with `make down`.") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def relay(name: str, line: str) -> None:
    """Prints a line of output with its source, in colour on a terminal."""
    label = f"{name:<{WIDTH}} |"
    with contextlib.suppress(OSError):  # nobody reads any more; the log files have it
        colour = COLOURS[layout.kind_of(name)]
        print(f"{colour}{label}{RESET} {line}" if sys.stdout.isatty() else f"{label} {line}", flush=True)


def greeting(stack: Stack) -> str:
    """Says where everything is."""
    direct = ", ".join(stack.addresses[name] for name in stack.names if layout.kind_of(name) == "conductor")
    return (
        f"{GREETING}: {stack.url} (JSON, SSE, gRPC, gRPC-web); gRPC without the edge on {direct}; "
        f"logs in {stack.log('conductor').parent}"
    )


async def supervise(stack: Stack, ready: IO[str]) -> int:
    """Runs the stack until a signal, or until no restart helps; returns the exit code.

    `ready` gets the greeting, or what is wrong.
    """
    halt = asyncio.Event()

    def on_signal() -> None:
        if halt.is_set():  # asked twice: do not wait for anybody
            stack.kill_all()
        halt.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    halted = asyncio.create_task(halt.wait())
    life = asyncio.create_task(_live(stack, ready))
    try:
        await asyncio.wait({halted, life}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
            return 1
        print("stopping", flush=True)
        life.cancel()
        await asyncio.wait({life})
        return 0
    finally:
        await stack.stop()


async def _live(stack: Stack, ready: IO[str]) -> None:
    """Starts, tells, keeps all alive, and returns when the start failed or one ends too often, having said so."""
    try:
        await stack.start()
    except (StartError, ConfigError) as error:
        print(error, file=ready, flush=True)
        return
    print(greeting(stack), file=ready, flush=True)
    say("; ".join(f"{name} is process {stack.pid(name)}" for name in stack.names) + ".")
    print(f"{await keep(stack, say)} Stopping the others.", flush=True)


def say(sentence: str) -> None:
    """Prints with the time, so that it can be found beside the log lines of the services."""
    with contextlib.suppress(OSError):  # nobody reads any more
        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {sentence}", flush=True)


def up(var: Path, size: layout.Size, ready_fd: int | None) -> int:
    """Runs in this process. With `ready_fd`, tells whoever started it through that descriptor, and relays nothing."""
    ready = sys.stdout if ready_fd is None else os.fdopen(ready_fd, "w")
    try:
        with lock(var):
            tell = relay if ready_fd is None else silence
            stack = Stack(var, free_ports=False, tell=tell, **asdict(size))
            return asyncio.run(supervise(stack, ready))
    except (ConfigError, AlreadyRunning) as error:
        print(error, file=ready, flush=True)
        return 1


def detach(var: Path, size: layout.Size) -> int:
    """Starts `up` in a session of its own, waits until it serves or has failed, and prints what it says."""
    logs = var / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        log = (logs / "up.log").open("ab")
    except OSError as error:
        print(f"Cannot write to {logs} ({error.strerror}): make it writable.")
        return 1
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "ops.up", "--var", str(var), "--ready-fd", str(writer)]
    command += ["--replicas", str(size.replicas), "--workers", str(size.workers)]
    with log:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader) as told:
        answer = told.readline()
    print(answer.strip() or f"It did not start; see {logs / 'up.log'}")
    if answer.startswith(GREETING):
        return 0
    child.wait()
    return 1


def down(var: Path) -> int:
    """Stops the supervisor that holds the lock, and waits until all has ended, itself included."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    supervisor = -1  # its pidfd, once it has been told
    while time.monotonic() < deadline:
        try:
            with lock(var):
                if supervisor >= 0:
                    select.select([supervisor], [], [], max(0.0, deadline - time.monotonic()))
                print("Conductor is stopped." if supervisor >= 0 else "Conductor is not running.")
                return 0
        except AlreadyRunning:
            pid = int((var / PID_FILE).read_text() or 0)
            if pid and supervisor < 0:
                with contextlib.suppress(ProcessLookupError):  # it was just ending
                    supervisor = os.pidfd_open(pid)
                    signal.pidfd_send_signal(supervisor, signal.SIGTERM)
        time.sleep(POLL_S)
    print(f"It has not stopped within {STOP_TIMEOUT_S} s; see {var / 'logs'}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=["up", "down"], default="up")
    parser.add_argument("--detach", action="store_true", help="return once all serve; stop with `down`")
    count = range(1, MOST + 1)
    parser.add_argument("--replicas", type=int, default=1, choices=count, metavar="N", help="number of Conductors")
    parser.add_argument("--workers", type=int, default=1, choices=count, metavar="N", help="number of each worker")
    parser.add_argument("--var", type=Path, default=ROOT / "var", help="folder of the lock and the logs")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)  # how --detach hears of the end of the start
    arguments = parser.parse_args()
    var = arguments.var.absolute()
    os.chdir(ROOT)  # where the services run: relative paths in variables mean the same here
    if arguments.action == "down":
        return down(var)
    own_postgres = arguments.replicas > 1 and "CONDUCTOR_STORE" not in os.environ
    size = layout.Size(arguments.replicas, arguments.workers, own_postgres)
    return detach(var, size) if arguments.detach else up(var, size, arguments.ready_fd)


if __name__ == "__main__":
    sys.exit(main())
