"""The process that becomes the command: sets every layer, then executes the program.

It is made before there is a command. It sets what it can, waits for its job, sets the rest. What happens goes to the
supervisor over a pipe that closes with the exec: `refused LAYER ERRNO` when a layer could not be set, `ready` when all
are, and after that `exec ERRNO` when the program could not be executed. In the strong tier the process forks on the
way, see namespaces.py.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, NamedTuple

from services.common import kernel, landlock, seccomp
from services.terminal import channel, namespaces, selftest
from services.terminal.job import STREAMS, Job, Setting

if TYPE_CHECKING:
    import socket
    from typing import NoReturn

MIB = 1024 * 1024
# The address space is bounded above the memory limit, so that a program that reserves more than it uses can run, and
# so that the supervisor, which counts what is used, is the one to name the limit.
ADDRESS_SPACE_SLACK = 1024 * MIB
CPU_SLACK_S = 1  # likewise
PROCESSES_SLACK = 128  # likewise: a bomb that the kernel stops early burns out unseen
SIGKILL = 9
FAILED = 70  # EX_SOFTWARE of sysexits.h; seen by the supervisor only


class Lines(NamedTuple):
    """To the supervisor: what happens before the exec, and what the init of the strong tier says at the end. And back:
    the job."""

    report: int
    verdict: int
    job: socket.socket


def layers(job: Job) -> list[str]:
    """Returns the names of the layers in the order they are set."""
    own_user = ["uid"] if job["uid"] else []
    if job["tier"] == "none":
        return ["supervisor", "session", *own_user, "rlimits", "no_new_privs"]
    inner = ["rlimits", *(["landlock"] if landlock.abi() else [])]
    if job["tier"] == "standard":
        return ["supervisor", "session", *own_user, "no_new_privs", "seccomp", *inner]
    own = ["namespaces", "mounts", *(["loopback"] if job["loopback"] else []), "capabilities"]
    return ["supervisor", "session", *own_user, *own, "no_new_privs", *inner, "seccomp"]


def become(setting: Setting, uid: int, lines: Lines, supervisor: int) -> NoReturn:
    """Sets the layers and executes the command, or runs the self-test. Never returns."""
    try:
        _Layers(setting, uid, lines, supervisor).set()
    finally:
        # Whatever goes wrong, the supervisor's code must not go on in this process. Without `ready` it is a refusal.
        os._exit(FAILED)


class _Layers:
    """Sets one layer after the other, and knows which one it is at."""

    def __init__(self, setting: Setting, uid: int, lines: Lines, supervisor: int) -> None:
        self._setting = setting
        self._uid = uid
        self._lines = lines
        self._supervisor = supervisor
        self._layer = "session"
        self._landlock = 0  # its version
        self._ruleset = -1  # of Landlock, with all paths that are the same for every command

    @property
    def _layer(self) -> str:
        return self._at

    @_layer.setter
    def _layer(self, name: str) -> None:
        self._at = name
        kernel.set_name(name.encode())  # until the exec: where the supervisor finds it when this process hangs

    def set(self) -> None:
        try:
            self._outside()
            if self._setting["tier"] == "strong":
                self._own_world()
            channel.rehearse(len(STREAMS))
            self._prepare_landlock()
            if (
                self._setting["tier"] == "standard"
            ):  # it forbids nothing of what is left to do, and there is no loopback
                self._filter_calls(network=False)
            self._layer = "session"
            job = self._receive()
            if job["tier"] == "strong":
                self._furnish(job)
            self._inside(job)
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
        _session(self._lines)
        self._layer = "uid"
        if self._uid:
            _change_user(self._uid)
        # A change of user clears it, so it comes after.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != self._supervisor:
            os._exit(FAILED)

    def _own_world(self) -> None:
        """Goes on as a grandchild in a world of its own, which has no workspace yet."""
        self._layer = "namespaces"
        namespaces.unshare()
        if init := os.fork():
            namespaces.keep(init)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
        powerless, tell = os.pipe()
        if command := os.fork():
            self._layer = "capabilities"
            _drop_powers()
            os.write(tell, b".")
            namespaces.reap(command, self._lines.verdict)
        os.close(tell)
        if not os.read(powerless, 1):  # the init has said why
            os._exit(FAILED)
        self._layer = "mounts"
        namespaces.build(self._setting)

    def _prepare_landlock(self) -> None:
        self._layer = "landlock"
        if self._setting["tier"] != "none":
            self._landlock = landlock.abi()
        if self._landlock:
            self._ruleset = landlock.build(self._landlock, self._common_paths(), network=False)

    def _common_paths(self) -> list[tuple[str, int]]:
        if self._setting["tier"] != "strong":
            return self._setting["paths"]
        own = [(path, _own_rights(self._setting)) for path in namespaces.SCRATCH]
        return [*self._setting["paths"], *own, (namespaces.PROC, landlock.READ)]

    def _receive(self) -> Job:
        """Waits for the job, and takes its streams."""
        received = channel.receive(self._lines.job, len(STREAMS))
        if received is None:
            os._exit(FAILED)  # there will be none
        for target, source in enumerate(received.fds):
            os.dup2(source, target)
        # Also those that came over the socket: Python's recv_fds leaves them open across an exec.
        kernel.close_range_on_exec(3)
        job: Job = {**self._setting, **received.task(), "uid": self._uid}  # type: ignore[typeddict-item]
        return job

    def _furnish(self, job: Job) -> None:
        """Brings what is the command's own into its world, and gives up the power to do so."""
        self._layer = "mounts"
        namespaces.furnish(job)
        if job["loopback"]:
            self._layer = "loopback"
            namespaces.loopback()
        self._layer = "capabilities"
        _drop_powers()

    def _inside(self, job: Job) -> None:
        """Sets what holds the command alone."""
        os.chdir(job["home"])
        self._layer = "rlimits"
        _rlimits(job)
        self._layer = "no_new_privs"
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        if job["tier"] == "none":
            return
        if self._landlock:
            self._layer = "landlock"
            if job["loopback"]:
                os.close(self._ruleset)
                self._ruleset = landlock.build(self._landlock, self._common_paths(), network=True)
            own = [(os.fsdecode(job["home"]), _own_rights(job)), (os.fsdecode(job["inputs"]), landlock.READ)]
            landlock.allow(self._ruleset, self._landlock, own)
            landlock.restrict(self._ruleset)
        if job["tier"] == "strong":
            self._filter_calls(job["loopback"])

    def _filter_calls(self, network: bool) -> None:
        self._layer = "seccomp"
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(network)


def _own_rights(setting: Setting) -> int:
    return landlock.WORKSPACE if setting["workspace_execute"] else landlock.WORKSPACE & ~landlock.EXECUTE


def _drop_powers() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    namespaces.drop_capabilities()


def _session(lines: Lines) -> None:
    os.setsid()
    # The service's socket and the lease are not this one's to hold.
    namespaces.close_all_but((0, 1, 2, lines.report, lines.verdict, lines.job.fileno()))
    os.umask(0o077)
    kernel.default_signals()
    # When memory runs out, the kernel takes the command before the service. The spawner's processes hide from others of
    # their user, and until the exec this one is such a process: its files in /proc would be root's.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(score, b"500")
    os.close(score)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


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
    if job["uid"] or job["tier"] == "strong":  # it counts all processes of a user in a user namespace
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
