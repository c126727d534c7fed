"""The process that stays outside of the sandbox: starts the command, holds its limits, ends its tree.

It speaks to the service over a pipe of its own, one JSON object a line, so nothing a command writes or returns can be
taken for it:
    {"event": "started", "at_ns": …, "abi": …, "layers": […]}      the program runs
    {"event": "refused", "layer": "landlock", "errno": …}           a layer could not be set; nothing ran
    {"event": "not_started", "errno": …}                            the program could not be executed
    {"event": "passed", "abi": …, "layers": […]}                    the self-test found nothing
    {"event": "ended", "end": "EXITED", "status": …, "at_ns": …, "cpu_ns": …, "peak_bytes": …}
`end` is a CommandEnd without its prefix; `status` is as of wait(2).
"""

import contextlib
import errno
import marshal
import os
import resource
import select
import socket
import time

from services.common import kernel, landlock
from services.terminal import child, tree, usage
from services.terminal.job import FDS, MESSAGE, Job

FIRST_POLL_S, LAST_POLL_S = 0.01, 0.05
POLL_GROWTH = 1.2
SCAN_EVERY_S = 0.2
SCAN_SHARE = 10  # a scan that takes long is repeated after this many times its length
REAP_EVERY_S = 0.002
SIGKILL, SIGXCPU, SIGXFSZ = 9, 24, 25
# In the strong tier two processes of ours stand above the command.
OVERHEAD = {"strong": 2}


def serve(service: socket.socket, guard: socket.socket, tell: int, confine: bool, above: int) -> None:
    """Waits for a command and supervises it. Returns when nothing of it is left, or when there will be none."""
    os.setsid()  # a signal to the guard's group must not reach both
    end_with(above)
    confined = take_charge(confine)  # nested in the guard's hold, or the guard would be within reach
    job = receive(service)
    if job is None:
        return
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)
    service.close()
    socket.send_fds(guard, [b"%d" % job["uid"]], [job["status_fd"], job["uid_fd"]])
    guard.close()
    if landlock.abi() < job["minimum_abi"]:
        say(job["status_fd"], refused("landlock", errno.EOPNOTSUPP))
        return
    Supervisor(job, confined, tell).run()


def end_with(parent: int) -> None:
    """Has this process end with its parent, which may be gone already."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def receive(service: socket.socket) -> Job | None:
    """Returns the next command, None when the service has closed the socket."""
    message, fds, _, _ = socket.recv_fds(service, len(MESSAGE), 1 + len(FDS))
    if not message:
        return None
    with os.fdopen(fds[0], "rb") as file:
        job: Job = marshal.load(file)  # noqa: S302 - written by the service that started this program
    job.update({f"{name}_fd": fd for name, fd in zip(FDS, fds[1:], strict=True)})  # type: ignore[typeddict-item]
    return job


def take_charge(confine: bool) -> bool:
    """Makes this process the one that all it starts falls to.

    Args:
        confine: whether the kernel shall confine its signals to that, if it can.

    Returns whether it does.
    """
    version = landlock.abi() if confine else 0
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    confined = version >= landlock.SCOPES_SINCE
    if confined:
        landlock.confine_signals(version)
    return confined


def say(status_fd: int, line: str) -> None:
    """Tells the service one line."""
    with contextlib.suppress(BrokenPipeError):  # the service is gone; the tree is ended all the same
        os.write(status_fd, line.encode() + b"\n")


def refused(layer: str, number: int) -> str:
    """Returns the line that says that nothing ran."""
    return f'{{"event": "refused", "layer": "{layer}", "errno": {number}}}'


class Supervisor:
    """Supervises one job, from fork to the last reaped descendant."""

    def __init__(self, job: Job, confined: bool, tell: int) -> None:
        self._job = job
        self._confined = confined
        self._tell = tell  # where the spawner wants to know that this one's guard is no longer waiting
        self._pid = os.getpid()
        self._child = 0
        self._status: int | None = None  # the command's, as of wait(2)
        self._cpu_s = 0.0  # the command's own
        self._ended_ns = 0
        self._next_scan = 0.0
        self._processes = job["processes"] + OVERHEAD.get(job["tier"], 0)

    def run(self) -> None:
        """Runs the job to its end. Returns when no descendant is left."""
        try:
            report, verdict = self._fork()
        except OSError as error:
            say(self._job["status_fd"], refused("supervisor", error.errno or 0))
            return
        # The kernel may not let a process of the same user look into this one.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        words = self._set_up(report)
        # Not earlier: the forks that follow would take the processor from the command's own start.
        with contextlib.suppress(BrokenPipeError):  # the spawner is gone
            os.write(self._tell, b"%d " % os.getppid())
        os.close(self._tell)
        if words == [b"ready"] and self._job["argv"]:
            self._supervise(verdict)
            return
        self._end_tree()
        if words[-1:] == [b"cancelled"] and b"ready" in [*words, *os.read(report, 4096).split()]:
            return  # it may have begun, and nobody knows how far it came
        say(self._job["status_fd"], self._verdict(words))

    def _fork(self) -> tuple[int, int]:
        job = self._job
        (report, write), (verdict, conclude) = os.pipe(), os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._tell)
            child.become(job, child.Lines(write, conclude), self._pid)
        for fd in {write, conclude, job["stdin_fd"], job["stdout_fd"], job["stderr_fd"]}:
            os.close(fd)
        return report, verdict

    def _set_up(self, report: int) -> list[bytes]:
        """Reads the child's report until the exec closes it, or until the caller is gone."""
        poll = select.poll()
        poll.register(self._job["control_fd"], select.POLLIN)
        poll.register(report, select.POLLIN)
        text = b""
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._job["control_fd"] in ready:
                return [*text.split(), b"cancelled"]
            part = os.read(report, 4096)
            if not part:
                return text.split()
            text += part

    def _verdict(self, words: list[bytes]) -> str:
        """Turns the child's report into what the service is told."""
        match [word.decode() for word in words]:
            case ["ready"]:
                return f'{{"event": "passed", {self._sandbox()}}}'
            case ["ready", "exec", number]:
                return f'{{"event": "not_started", "errno": {number}}}'
            case ["refused", layer, number]:
                return refused(layer, int(number))
            case ["cancelled"]:
                return refused("cancelled", 0)
        return refused("supervisor", 0)

    def _sandbox(self) -> str:
        names = ", ".join(f'"{layer}"' for layer in child.layers(self._job))
        return f'"abi": {landlock.abi()}, "layers": [{names}]'

    def _supervise(self, verdict: int) -> None:
        say(self._job["status_fd"], f'{{"event": "started", "at_ns": {time.time_ns()}, {self._sandbox()}}}')
        limit = self._watch()
        self._end_tree()
        self._conclude(os.read(verdict, 256).split(), limit)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_ns = int((used.ru_utime + used.ru_stime) * 1e9)
        say(
            self._job["status_fd"],
            f'{{"event": "ended", "end": "{limit or self._own_end()}", "status": {self._status}, '
            f'"at_ns": {self._ended_ns}, "cpu_ns": {cpu_ns}, "peak_bytes": {used.ru_maxrss * 1024}}}',
        )

    def _conclude(self, said: list[bytes], limit: str) -> None:
        """Takes over what the init of the strong tier saw of the command; the child here was only its keeper."""
        if self._job["tier"] != "strong":
            return
        if said:
            self._status, self._ended_ns, self._cpu_s = int(said[0]), int(said[1]), float(said[2])
        elif not limit or self._status == 0:
            self._status = SIGKILL  # it went with everything

    def _watch(self) -> str:
        """Waits for the command's exit, returns "", or for the first limit it passes, returns its name."""
        poll = select.poll()
        poll.register(self._job["control_fd"], select.POLLIN)
        poll.register(os.pidfd_open(self._child), select.POLLIN)
        deadline = time.monotonic() + self._job["wall_s"]
        pause = FIRST_POLL_S
        while True:
            left = deadline - time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(0.0, min(pause, left)) * 1000)]
            self._reap()
            if self._status is not None:
                return ""
            if self._job["control_fd"] in ready:
                return "CANCELLED"
            if left <= 0:
                return "WALL_TIME"
            if limit := self._passed():
                return limit
            pause = min(pause * POLL_GROWTH, LAST_POLL_S)

    def _passed(self) -> str:
        """Measures the tree and returns the limit it passes, or ""."""
        pids = tree.descendants(self._pid, self._processes)
        if len(pids) > self._processes:
            return "PROCESSES"
        used = [tree.measure(pid) for pid in pids]
        if sum(threads for threads, _, _ in used) > self._processes:
            return "PROCESSES"
        if sum(memory for _, memory, _ in used) > self._job["memory_bytes"] and self._memory_passed(pids):
            return "MEMORY"
        if any(cpu_s >= self._job["cpu_s"] for _, _, cpu_s in used):
            return "CPU_TIME"
        return self._scan(pids) if time.monotonic() >= self._next_scan else ""

    def _memory_passed(self, pids: list[int]) -> bool:
        """Looks closer: the sum counts a page once for each process that shares it."""
        exact = [tree.proportional_bytes(pid) for pid in pids]
        return None in exact or sum(filter(None, exact)) > self._job["memory_bytes"]

    def _scan(self, pids: list[int]) -> str:
        begin = time.monotonic()
        folder = self._job["workspace_fd"]
        found = usage.measure(folder, self._job["workspace_entries"])
        hidden = tree.deleted_open_bytes(pids, os.fstat(folder).st_dev)
        now = time.monotonic()
        self._next_scan = now + max(SCAN_EVERY_S, SCAN_SHARE * (now - begin))
        if found.largest_bytes > self._job["file_size_bytes"]:
            return "FILE_SIZE"
        too_much = found.used_bytes + hidden > self._job["workspace_bytes"]
        return "WORKSPACE" if too_much or found.entries > self._job["workspace_entries"] or found.unknown else ""

    def _own_end(self) -> str:
        """Names the end of a command that was not killed from here; the kernel may have held a limit."""
        status = self._status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        # A process below the command may have met the limit; the command then exits like any other.
        if number == SIGXFSZ or self._scan([]) == "FILE_SIZE":
            return "FILE_SIZE"
        if number == SIGXCPU and self._cpu_s >= self._job["cpu_s"]:
            return "CPU_TIME"
        return "SIGNALED" if number else "EXITED"

    def _end_tree(self) -> None:
        """Kills and reaps until no descendant is left."""
        while self._reap():
            tree.kill(self._job["uid"], self._confined)
            time.sleep(REAP_EVERY_S)

    def _reap(self) -> bool:
        """Collects what has ended. Returns whether descendants are left."""
        try:
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._child:
                    self._status, self._ended_ns = status, time.time_ns()
                    self._cpu_s = used.ru_utime + used.ru_stime
        except ChildProcessError:
            return False
