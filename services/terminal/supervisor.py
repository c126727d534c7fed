"""The half of the launcher that stays outside of the sandbox: starts the command, holds its limits, ends its tree.

It speaks to the service over a pipe of its own, one JSON object a line, so nothing a command writes or returns can be
taken for it:
    {"event": "started", "at_ns": …, "abi": …, "layers": […]}      the program runs
    {"event": "refused", "layer": "landlock", "errno": …}           a layer could not be set; nothing ran
    {"event": "not_started", "errno": …}                            the program could not be executed
    {"event": "passed", "abi": …, "layers": […]}                    the self-test found nothing
    {"event": "ended", "end": "EXITED", "status": …, "at_ns": …, "cpu_ns": …, "peak_bytes": …}
`end` is a CommandEnd without its prefix; `status` is as of wait(2). Standard input is the control pipe: its end of
file, by cancel or by the death of the service, ends the command.
"""
# Importing pathlib or contextlib would slow the start of every command.
# ruff: noqa: SIM105

import errno
import os
import resource
import select
import time

from services.terminal import child, kernel, landlock, tree, workspace
from services.terminal.job import Job

CONTROL = 0
FIRST_POLL_S, LAST_POLL_S = 0.01, 0.05
POLL_GROWTH = 1.2
SCAN_EVERY_S = 0.2
SCAN_SHARE = 10  # a scan that takes long is repeated after this many times its length
REAP_EVERY_S = 0.002
SIGXCPU, SIGXFSZ = 24, 25


def take_charge(job: Job) -> None:
    """Makes this process the one that all it starts falls to, and that can kill all of that and nothing else.

    Raises OSError when the kernel's Landlock is missing or older than the job demands.
    """
    version = landlock.abi()
    confined = version >= landlock.SCOPES_SINCE
    if version < job["minimum_abi"] or not (confined or job["uid"]):
        raise OSError(errno.EOPNOTSUPP, "the kernel's Landlock is too old")
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if confined:
        landlock.confine_signals(version)


def say(job: Job, line: str) -> None:
    """Tells the service one line."""
    try:
        os.write(job["status_fd"], line.encode() + b"\n")
    except BrokenPipeError:
        pass  # the service is gone; the tree is ended all the same


def refused(layer: str, number: int) -> str:
    """Returns the line that says that nothing ran."""
    return f'{{"event": "refused", "layer": "{layer}", "errno": {number}}}'


class Supervisor:
    """Supervises one job, from fork to the last reaped descendant."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pid = os.getpid()
        self._child = 0
        self._status: int | None = None  # the command's, as of wait(2)
        self._cpu_s = 0.0  # the command's own
        self._ended_ns = 0
        self._next_scan = 0.0

    def run(self) -> None:
        """Runs the job to its end. Returns when no descendant is left."""
        # Nested in the guard's hold, or the guard would be within reach.
        take_charge(self._job)
        report = self._fork()
        # The kernel may not let a process of the same user look into this one.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        words = self._set_up(report)
        if words == [b"ready"] and self._job["argv"]:
            self._supervise()
            return
        self._end_tree()
        if words != [b"cancelled"]:
            say(self._job, self._verdict(words))

    def _fork(self) -> int:
        job = self._job
        report, write = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            child.become(job, write, self._pid)
        for fd in {write, job["stdin_fd"], job["stdout_fd"], job["stderr_fd"]}:
            os.close(fd)
        return report

    def _set_up(self, report: int) -> list[bytes]:
        """Reads the child's report until the exec closes it, or until the caller is gone."""
        poll = select.poll()
        poll.register(CONTROL, select.POLLIN)
        poll.register(report, select.POLLIN)
        text = b""
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if CONTROL in ready:
                return [b"cancelled"]
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
        return refused("launcher", 0)

    def _sandbox(self) -> str:
        names = ", ".join(f'"{layer}"' for layer in child.layers(self._job["uid"]))
        return f'"abi": {landlock.abi()}, "layers": [{names}]'

    def _supervise(self) -> None:
        say(self._job, f'{{"event": "started", "at_ns": {time.time_ns()}, {self._sandbox()}}}')
        limit = self._watch()
        self._end_tree()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_ns = int((used.ru_utime + used.ru_stime) * 1e9)
        say(
            self._job,
            f'{{"event": "ended", "end": "{limit or self._own_end()}", "status": {self._status}, '
            f'"at_ns": {self._ended_ns}, "cpu_ns": {cpu_ns}, "peak_bytes": {used.ru_maxrss * 1024}}}',
        )

    def _watch(self) -> str:
        """Waits for the command's exit, returns "", or for the first limit it passes, returns its name."""
        poll = select.poll()
        poll.register(CONTROL, select.POLLIN)
        poll.register(os.pidfd_open(self._child), select.POLLIN)
        deadline = time.monotonic() + self._job["wall_s"]
        pause = FIRST_POLL_S
        while True:
            left = deadline - time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(0.0, min(pause, left)) * 1000)]
            self._reap()
            if self._status is not None:
                return ""
            if CONTROL in ready:
                return "CANCELLED"
            if left <= 0:
                return "WALL_TIME"
            if limit := self._passed():
                return limit
            pause = min(pause * POLL_GROWTH, LAST_POLL_S)

    def _passed(self) -> str:
        """Measures the tree and returns the limit it passes, or ""."""
        pids = tree.descendants(self._pid, self._job["processes"])
        if len(pids) > self._job["processes"]:
            return "PROCESSES"
        used = [tree.measure(pid) for pid in pids]
        if sum(threads for threads, _, _ in used) > self._job["processes"]:
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
        usage = workspace.measure(folder, self._job["workspace_entries"])
        hidden = tree.deleted_open_bytes(pids, os.fstat(folder).st_dev)
        now = time.monotonic()
        self._next_scan = now + max(SCAN_EVERY_S, SCAN_SHARE * (now - begin))
        if usage.largest_bytes > self._job["file_size_bytes"]:
            return "FILE_SIZE"
        too_much = usage.used_bytes + hidden > self._job["workspace_bytes"]
        return "WORKSPACE" if too_much or usage.entries > self._job["workspace_entries"] or usage.unknown else ""

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
            tree.kill(self._job["uid"])
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
