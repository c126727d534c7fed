"""The side of the launcher that becomes the command: sets every layer, then executes the program.

What happens goes to the supervisor over a pipe that closes with the exec: `refused LAYER ERRNO` when a layer could not
be set, `ready` when all are, and after that `exec ERRNO` when the program could not be executed.
"""
# Importing pathlib or contextlib would slow the start of every command.
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import os
import resource

from services.terminal import kernel, landlock, seccomp, selftest
from services.terminal.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

MIB = 1024 * 1024
OPEN_FILES = 256
# The address space is bounded above the memory limit, so that a program that reserves more than it uses can run, and
# so that the supervisor, which counts what is used, is the one to name the limit.
ADDRESS_SPACE_SLACK = 1024 * MIB
CPU_SLACK_S = 1  # likewise
PROCESSES_SLACK = 1024  # likewise: a bomb that the kernel stops early burns out unseen
SIGKILL = 9
FAILED = 70  # EX_SOFTWARE of sysexits.h; seen by the supervisor only


def layers(uid: int) -> list[str]:
    """Returns the names of the layers in the order they are set."""
    return ["supervisor", "session", "rlimits", *(["uid"] if uid else []), "no_new_privs", "landlock", "seccomp"]


def become(job: Job, report: int, supervisor: int) -> NoReturn:
    """Sets the layers and executes the command, or runs the self-test. Never returns."""
    try:
        _become(job, report, supervisor)
    finally:
        # Whatever goes wrong, the supervisor's code must not go on in this process. Without `ready` it is a refusal.
        os._exit(FAILED)


def _become(job: Job, report: int, supervisor: int) -> None:
    layer = "session"
    try:
        _session(job)
        layer = "rlimits"
        _rlimits(job)
        layer = "landlock"
        ruleset = landlock.build(landlock.abi(), job["workspace_fd"], job["paths"])
        layer = "uid"
        if job["uid"]:
            _change_user(job["uid"])
        layer = "no_new_privs"
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        # A change of user clears it, so it comes after.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != supervisor:
            return
        layer = "landlock"
        landlock.restrict(ruleset)
        layer = "seccomp"
        seccomp.install()
        if not job["argv"]:
            layer = "self_test"
            selftest.check(job["home"], job["uid"])
    except OSError as error:
        os.write(report, f"refused {layer} {error.errno or 0}\n".encode())
        return
    os.write(report, b"ready\n")
    if job["argv"]:
        os.write(report, f"exec {_execute(job['argv'], job['env'])}\n".encode())


def _session(job: Job) -> None:
    os.setsid()
    for target, source in enumerate((job["stdin_fd"], job["stdout_fd"], job["stderr_fd"])):
        os.dup2(source, target)
    os.fchdir(job["workspace_fd"])
    os.umask(0o077)
    kernel.default_signals()
    # When memory runs out, the kernel takes the command before the service.
    with open("/proc/self/oom_score_adj", "wb", buffering=0) as score:
        score.write(b"500")


def _rlimits(job: Job) -> None:
    cpu = job["cpu_s"] + CPU_SLACK_S
    limits = [
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_AS, *2 * (job["memory_bytes"] + ADDRESS_SPACE_SLACK,)),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        # One more than allowed: a file that is too large is then one that can be seen.
        (resource.RLIMIT_FSIZE, *2 * (job["file_size_bytes"] + 1,)),
    ]
    if job["uid"]:  # it counts all processes of a user
        limits.append((resource.RLIMIT_NPROC, *2 * (job["processes"] + PROCESSES_SLACK,)))
    for name, soft, hard in limits:
        _, ceiling = resource.getrlimit(name)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(name, (soft, hard))


def _change_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> int:
    """Executes the program as execvp(3) looks it up. Returns the errno when that failed."""
    found = errno.ENOENT
    for path in _candidates(argv[0], env):
        try:
            os.execve(path, argv, env)  # noqa: S606 - no shell is the point
        except OSError as error:
            # Something that is there and cannot be executed says more than the places where nothing is.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                found = error.errno or errno.EIO
    return found


def _candidates(program: bytes, env: dict[bytes, bytes]) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [folder + b"/" + program for folder in env[b"PATH"].split(b":") if folder]
