"""Starts a launcher: its pipes, the job it reads, and nothing else of the service's."""

import fcntl
import marshal
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from services.terminal.job import Job
from services.terminal.launcher import BOOT
from services.terminal.running import Pipes

ROOT = str(Path(__file__).parents[2])  # where the launcher finds its modules
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def launch(interpreter: str, job: Job, stdin: bytes) -> tuple["subprocess.Popen[bytes]", Pipes]:
    """Starts the launcher with a job, whose standard streams and status pipe are filled in here. Raises OSError."""
    # The launcher's ends are closed here in any case, the service's only when something fails.
    with ExitStack() as theirs, ExitStack() as ours:
        control, hang_up = _pipe(theirs, ours)
        status, job["status_fd"] = _pipe(ours, theirs)
        stdout, job["stdout_fd"] = _pipe(ours, theirs)
        stderr, job["stderr_fd"] = _pipe(ours, theirs)
        job["stdin_fd"] = _file(theirs, stdin) if stdin else _null(theirs)
        if job["uid"]:
            for fd in (stdout, stderr):  # else /dev/stdout could not be opened
                os.fchown(fd, job["uid"], job["uid"])
        job_fd = _file(theirs, marshal.dumps(dict(job)))
        passed = {fd for name, fd in job.items() if name.endswith("_fd") and isinstance(fd, int) and fd >= 0}
        launcher = subprocess.Popen(
            [interpreter, "-I", "-S", "-c", BOOT, ROOT, str(job_fd)],
            stdin=control,
            stdout=subprocess.DEVNULL,
            pass_fds=(*passed, job_fd),
            env={},
            cwd="/",
            start_new_session=True,
        )
        ours.pop_all()
    return launcher, Pipes(hang_up, status, stdout, stderr)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _file(owner: ExitStack, content: bytes) -> int:
    """Returns a file in memory that nobody can change, so that it needs no feeding and cannot grow."""
    fd = os.memfd_create("conductor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    owner.callback(os.close, fd)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _null(owner: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    owner.callback(os.close, fd)
    return fd
