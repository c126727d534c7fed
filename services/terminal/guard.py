"""The process that stands between the spawner and a supervisor, so that no single death leaves a process behind.

the command exits       → the supervisor ends what it left
the service dies        → the control pipe ends → the supervisor ends the tree
the supervisor dies     → the tree falls to the guard, a sub-reaper too, which ends it
the guard dies          → the supervisor goes on
the spawner dies        → commands go on, those who wait for one end; the service starts another spawner
"""

import os
import socket
import time

from services.common import kernel
from services.terminal import tree
from services.terminal.supervisor import REAP_EVERY_S, end_with, serve, take_charge


def stand_by(service: socket.socket, tell: int, confine: bool, spawner: int) -> None:
    """Starts a supervisor that waits for a command, and ends what it should leave.

    Returns when nothing of the command is left; its status pipe is open until then, for the service to see.
    """
    os.setsid()
    end_with(spawner)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    confined = take_charge(confine)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    me = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        ours.close()
        serve(service, theirs, tell, confine, me)
        return
    service.close()
    theirs.close()
    os.close(tell)
    uid, _, _, _ = socket.recv_fds(ours, 16, 2)  # and the status pipe and the lease, only to hold them
    ours.close()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)
    os.waitpid(supervisor, 0)
    while uid and _left():
        tree.kill(int(uid), confined)
        time.sleep(REAP_EVERY_S)


def _left() -> bool:
    """Collects what has ended. Returns whether descendants are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
