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
import os
import resource
import select
import socket
import time
from collections.abc import Mapping

from services.common import kernel, landlock
from services.terminal import channel, child, scan, tree, waiting
from services.terminal.job import FDS, STREAMS, Job, Setting

FIRST_POLL_S, LAST_POLL_S = 0.01, 0.05
POLL_GROWTH = 1.2
SET_UP_S = 20.0  # for the layers of a command, which take milliseconds on a machine that is not very busy
REAP_EVERY_S = 0.002
LOOK_EVERY_S, LET_GO_S = 0.0002, 0.02  # the end of the strong tier's world takes some tenths of a millisecond
SIGKILL, SIGXCPU, SIGXFSZ = 9, 24, 25
# In the strong tier two processes of ours stand above the command.
OVERHEAD = {"strong": 2}
WAITING, BUSY = b"terminal-ready", b"terminal-runs"  # a supervisor's name in a list of processes


def serve(service: socket.socket, guard: socket.socket, tell: int, setting: Setting, uid: int, above: int) -> None:
    """Waits for a command and supervises it. Returns when nothing of it is left, or when there will be none."""
    os.setsid()  # a signal to the guard's group must not reach both
    end_with(above)
    # Nested in the guard's hold, or the guard would be within reach.
    confined = take_charge(setting["tier"] != "strong")
    kernel.set_name(WAITING)
    supervisor = Supervisor(setting, uid, confined, tell)
    ours, theirs = channel.pair()
    with theirs, service:
        socket.send_fds(service, [b"%d" % uid], [theirs.fileno()])
    supervisor.rehearse()
    with ours:
        received = channel.receive(ours, len(FDS))
    if received is None:
        return
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)
    fds = {f"{name}_fd": fd for name, fd in zip(FDS, received.fds, strict=True)}
    if (begun := supervisor.begin(received.packed, fds)) is None:
        return
    with guard:
        channel.send(guard, fds["status_fd"], ())
    kernel.set_name(BUSY)
    job: Job = {**setting, **received.task(), **fds, "uid": uid}  # type: ignore[typeddict-item]
    os.close(received.packed)
    supervisor.run(job, begun)


def end_with(parent: int) -> None:
    """Has this process end with its parent, which may be gone already."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


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
    """Supervises one job, from the fork, which comes before it, to the last reaped descendant."""

    def __init__(self, setting: Setting, uid: int, confined: bool, tell: int) -> None:
        self._setting = setting
        self._uid = uid
        self._confined = confined
        self._tell = tell  # where the spawner wants to know that this one's guard is no longer waiting
        self._pid = os.getpid()
        self._status: int | None = None  # the command's, as of wait(2)
        self._cpu_s = 0.0  # the command's own
        self._ended_ns = 0
        self._cut_short = False  # ended before the child had said all
        self._waiting: waiting.Waiting | None = None
        self._abi = landlock.abi()
        with contextlib.suppress(OSError):  # tried again when there is a job
            self._waiting = waiting.make(setting, uid)
        # The kernel may not let a process of the same user look into this one.
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

    def rehearse(self) -> None:
        """Does what it can of what comes with a job, see channel.rehearse."""
        with contextlib.suppress(OSError):  # then it is merely slower
            channel.rehearse(len(FDS))
            if self._waiting is not None:
                self._waiting.fresh(self._setting)

    def begin(self, packed: int, fds: Mapping[str, int]) -> waiting.Waiting | None:
        """Hands a job on to the process that waits for it, before anything else. Returns that, None for a refusal."""
        if self._abi < self._setting["minimum_abi"]:
            say(fds["status_fd"], refused("landlock", errno.EOPNOTSUPP))
            return None
        streams = [fds[f"{name}_fd"] for name in STREAMS]
        try:
            made = self._fresh()
        except OSError as error:
            say(fds["status_fd"], refused("supervisor", error.errno or 0))
            return None
        made.take(packed, streams)
        for fd in streams:
            os.close(fd)
        return made

    def run(self, job: Job, begun: waiting.Waiting) -> None:
        """Sees the job to its end. Returns when no descendant is left."""
        self._job = job
        self._child, report, verdict = begun.pid, begun.report, begun.verdict
        self._ours = OVERHEAD.get(job["tier"], 0)
        self._processes = job["processes"] + self._ours
        self._scan = scan.Scan(job, self._commands)
        words = self._set_up(report)
        # Not earlier: the forks that follow would take the processor from the command's own start.
        with contextlib.suppress(BrokenPipeError):  # the spawner is gone
            os.write(self._tell, b"%d " % os.getppid())
        os.close(self._tell)
        if words == [b"ready"] and self._job["argv"]:
            self._supervise(verdict)
            return
        self._end_tree()
        if self._cut_short and b"ready" in [*words, *os.read(report, 4096).split()]:
            return  # it may have begun, and nobody knows how far it came
        say(self._job["status_fd"], self._verdict(words))

    def _fresh(self) -> waiting.Waiting:
        """Returns the process that waits for the job; another one when that is out of date. Raises OSError."""
        made = self._waiting
        if made is not None and made.fresh(self._setting):
            return made
        if made is not None:
            made.discard()
        return waiting.make(self._setting, self._uid)

    def _set_up(self, report: int) -> list[bytes]:
        """Reads the child's report until the exec closes it, or the caller is gone, or it takes too long."""
        poll = select.poll()
        poll.register(self._job["control_fd"], select.POLLIN)
        poll.register(report, select.POLLIN)
        deadline = time.monotonic() + SET_UP_S
        text = b""
        while True:
            ready = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if report in ready and self._job["control_fd"] not in ready:
                part = os.read(report, 4096)
                if not part:
                    return text.split()
                text += part
                continue
            self._cut_short = True
            why = b"cancelled" if ready else b"refused %s %d" % (self._stuck_at(), errno.ETIMEDOUT)
            return (text + why).split()

    def _stuck_at(self) -> bytes:
        """Returns the layer that is being set: the child goes by its name."""
        try:
            name = tree.read(f"/proc/{tree.descendants(self._pid, self._processes)[-1]}/comm").strip()
        except (OSError, IndexError):
            return b"supervisor"
        return name if name.decode(errors="replace") in (*child.layers(self._job), "self_test") else b"session"

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
        return f'"abi": {self._abi}, "layers": [{names}]'

    def _supervise(self, verdict: int) -> None:
        say(self._job["status_fd"], f'{{"event": "started", "at_ns": {time.time_ns()}, {self._sandbox()}}}')
        limit = self._watch(verdict)
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

    def _watch(self, verdict: int) -> str:
        """Waits for the command's exit, returns "", or for the first limit it passes, returns its name."""
        poll = select.poll()
        poll.register(self._job["control_fd"], select.POLLIN)
        poll.register(os.pidfd_open(self._child), select.POLLIN)
        strong = self._job["tier"] == "strong"
        if strong:
            poll.register(verdict, select.POLLIN)  # the init is about to end
        deadline = time.monotonic() + self._job["wall_s"]
        pause = FIRST_POLL_S
        while True:
            left = deadline - time.monotonic()
            ready = [fd for fd, _ in poll.poll(max(0.0, min(pause, left)) * 1000)]
            self._reap()
            if strong and verdict in ready:
                self._let_go()
            if self._status is not None:
                return ""
            if self._job["control_fd"] in ready:
                return "CANCELLED"
            if left <= 0:
                return "WALL_TIME"
            if limit := self._passed():
                return limit
            pause = min(pause * POLL_GROWTH, LAST_POLL_S)

    def _let_go(self) -> None:
        """Waits for the end of the strong tier's init, and ends the keeper meanwhile, which only waits for it too."""
        if self._status is None:
            os.kill(self._child, SIGKILL)
        patience = time.monotonic() + LET_GO_S
        while self._reap() and time.monotonic() < patience:
            time.sleep(LOOK_EVERY_S)
        if self._status is None:
            self._status = SIGKILL

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
        return self._scan.passed() if self._scan.due() else ""

    def _memory_passed(self, pids: list[int]) -> bool:
        """Looks closer: the sum counts a page once for each process that shares it."""
        exact = [tree.proportional_bytes(pid) for pid in pids]
        return None in exact or sum(filter(None, exact)) > self._job["memory_bytes"]

    def _commands(self) -> list[int]:
        """Returns the ids of the command's own processes; none when they are too many, which is told without them."""
        pids = tree.descendants(self._pid, self._processes)
        return pids[self._ours :] if len(pids) <= self._processes else []

    def _own_end(self) -> str:
        """Names the end of a command that was not killed from here; the kernel may have held a limit."""
        status = self._status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        # A process below the command may have met the limit; the command then exits like any other.
        if number == SIGXFSZ or self._scan.passed() == "FILE_SIZE":
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
