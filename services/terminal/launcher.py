"""The program the service starts for each command: `python -I -S -c BOOT ROOT JOB_FD`.

Two processes stay outside of the sandbox. The supervisor does the work. The guard, its parent, does nothing but end
the tree when the supervisor is killed, so that no single death leaves a process behind:
    the command exits       → the supervisor ends what it left
    the service dies        → the control pipe ends → the supervisor ends the tree
    the supervisor dies     → the tree falls to the guard, a sub-reaper too, which ends it
    the guard dies          → the supervisor goes on
"""

import marshal
import os
import time

from services.terminal import kernel, tree
from services.terminal.job import Job
from services.terminal.supervisor import REAP_EVERY_S, Supervisor, refused, say, take_charge

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from services.terminal.launcher import main; main(int(sys.argv[2]))"
)


def main(job_fd: int) -> None:
    """Runs the job that was written to a file descriptor. Returns when nothing of it is left."""
    with os.fdopen(job_fd, "rb") as file:
        job: Job = marshal.load(file)  # noqa: S302 - written by the service that started this program
    inherited = {fd for name, fd in job.items() if name.endswith("_fd") and isinstance(fd, int) and fd >= 0}
    for fd in inherited:
        os.set_inheritable(fd, False)
    _start(job)
    os._exit(0)  # taking the interpreter down in order would only cost time


def _start(job: Job) -> None:
    try:
        take_charge(job)
    except OSError as error:
        say(job, refused("landlock", error.errno or 0))
        return
    supervisor = os.fork()
    if supervisor == 0:
        os.setsid()  # a signal to the guard's group must not reach both
        Supervisor(job).run()
        return
    for fd in {job["stdin_fd"], job["stdout_fd"], job["stderr_fd"], job["status_fd"]}:
        os.close(fd)  # the service waits for their end
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    _guard(supervisor, job["uid"])


def _guard(supervisor: int, uid: int) -> None:
    os.waitpid(supervisor, 0)
    while _left():
        tree.kill(uid)
        time.sleep(REAP_EVERY_S)


def _left() -> bool:
    """Collects what has ended. Returns whether descendants are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
