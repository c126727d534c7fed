"""The process that becomes the command: sets every layer, then executes the program.

What happens goes to the supervisor over a pipe that closes with the exec: `refused LAYER ERRNO` when a layer could not
be set, `ready` when all are, and after that `exec ERRNO` when the program could not be executed. In the strong tier the
process forks on the way, see namespaces.py.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, NamedTuple

from services.common import kernel, landlock, seccomp
from services.terminal import namespaces, selftest
from services.terminal.job import Job

if TYPE_CHECKING:
    from typing import NoReturn

MIB = 1024 * 1024
# The address space is bounded above the memory limit, so that a program that reserves more than it uses can run, and
# so that the supervisor, which counts what is used, is the one to name the limit.
ADDRESS_SPACE_SLACK = 1024 * MIB
CPU_SLACK_S = 1  # likewise
PROCESSES_SLACK = 1024  # likewise: a bomb that the kernel stops early burns out unseen
SIGKILL = 9
FAILED = 70  # EX_SOFTWARE of sysexits.h; seen by the supervisor only


class Lines(NamedTuple):
    """Pipes to the supervisor: what happens before the exec, and what the init of the strong tier says at the end."""

    report: int
    verdict: int


def layers(job: Job) -> list[str]:
    """Returns the names of the layers in the order they are set."""
    uid = ["uid"] if job["uid"] else []
    if job["tier"] == "none":
        return ["supervisor", "session", *uid, "rlimits", "no_new_privs"]
    inner = ["rlimits", "no_new_privs", *(["landlock"] if landlock.abi() else []), "seccomp"]
    if job["tier"] == "standard":
        return ["supervisor", "session", *uid, *inner]
    own = ["namespaces", "mounts", *(["loopback"] if job["loopback"] else []), "capabilities"]
    return ["supervisor", "session", *uid, *own, *inner]


def become(job: Job, lines: Lines, supervisor: int) -> NoReturn:
    """Sets the layers and executes the command, or runs the self-test. Never returns."""
    try:
        _Layers(job, lines, supervisor).set()
    finally:
        # Whatever goes wrong, the supervisor's code must not go on in this process. Without `ready` it is a refusal.
        os._exit(FAILED)


class _Layers:
    """Sets one layer after the other, and knows which one it is at."""

    def __init__(self, job: Job, lines: Lines, supervisor: int) -> None:
        self._job = job
        self._lines = lines
        self._supervisor = supervisor
        self._layer = "session"

    def set(self) -> None:
        job = self._job
        try:
            self._outside()
            if job["tier"] == "strong":
                self._own_world()
            self._inside()
            if not job["argv"]:
                self._layer = "self_test"
                selftest.check(job)
        except OSError as error:
            os.write(self._lines.report, f"refused {self._layer} {error.errno or 0}\n".encode())
            return
        os.write(self._lines.report, b"ready\n")
        if job["argv"]:
            os.write(self._lines.report, f"exec {_execute(job)}\n".encode())

    def _outside(self) -> None:
        """Sets what holds this process wherever it goes."""
        _session(self._job)
        self._layer = "uid"
        if self._job["uid"]:
            _change_user(self._job["uid"])
        # A change of user clears it, so it comes after.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != self._supervisor:
            os._exit(FAILED)

    def _own_world(self) -> None:
        """Goes on as a grandchild in a world of its own."""
        self._layer = "namespaces"
        namespaces.unshare()
        if init := os.fork():
            namespaces.keep(init)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
        self._layer = "mounts"
        namespaces.build(self._job)
        if self._job["loopback"]:
            self._layer = "loopback"
            namespaces.loopback()
        self._layer = "capabilities"
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        namespaces.drop_capabilities()
        self._layer = "namespaces"
        if command := os.fork():
            namespaces.reap(command, self._lines.verdict)

    def _inside(self) -> None:
        """Sets what holds the command alone."""
        job = self._job
        os.chdir(job["home"])
        self._layer = "rlimits"
        _rlimits(job)
        self._layer = "no_new_privs"
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if job["tier"] == "none":
            return
        if version := landlock.abi():
            self._layer = "landlock"
            landlock.restrict(landlock.build(version, _paths(job), job["loopback"]))
        self._layer = "seccomp"
        seccomp.install(job["loopback"])


def _paths(job: Job) -> list[tuple[str, int]]:
    own_rights = landlock.WORKSPACE if job["workspace_execute"] else landlock.WORKSPACE & ~landlock.EXECUTE
    own = [(os.fsdecode(job["home"]), own_rights), (os.fsdecode(job["inputs"]), landlock.READ)]
    if job["tier"] == "strong":
        own += [*((path, own_rights) for path in namespaces.SCRATCH), (namespaces.PROC, landlock.READ)]
    return job["paths"] + own


def _session(job: Job) -> None:
    os.setsid()
    for target, source in enumerate((job["stdin_fd"], job["stdout_fd"], job["stderr_fd"])):
        os.dup2(source, target)
    # Also those that came over the socket: Python's recv_fds leaves them open across an exec.
    kernel.close_range_on_exec(3)
    os.umask(0o077)
    kernel.default_signals()
    # When memory runs out, the kernel takes the command before the service. The spawner's processes hide from others of
    # their user, and until the exec this one is such a process: its files in /proc would be root's.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(score, b"500")
    os.close(score)


def _rlimits(job: Job) -> None:
    cpu = job["cpu_s"] + CPU_SLACK_S
    limits = [
        # Not 0: a helper that the machine pipes core dumps to would be run all the same (core(5)).
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NOFILE, *2 * (job["open_files"],)),
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


def _execute(job: Job) -> int:
    """Executes the program that was decided on. Returns the errno when that failed."""
    try:
        found = os.stat(job["executable"])  # noqa: PTH116 - bytes
        if (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) != tuple(job["identity"]):
            return errno.ESTALE
        os.execve(job["executable"], job["argv"], job["env"])  # noqa: S606 - no shell is the point
    except OSError as error:
        return error.errno or errno.EIO
