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
from services.terminal import channel, tree
from services.terminal.job import Setting
from services.terminal.supervisor import REAP_EVERY_S, end_with, serve, take_charge


def stand_by(service: socket.socket, tell: int, setting: Setting, uid: int, spawner: int) -> None:
    """Starts a supervisor that waits for a command, and ends what it should leave.

    Returns when nothing of the command is left; its status pipe is open until then, for the service to see.
    """
    os.setsid()
    end_with(spawner)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    confined = take_charge(setting["tier"] != "strong")
    ours, theirs = channel.pair()
    me = os.getpid()
    supervisor = os.fork()
    if supervisor == 0:
        ours.close()
        serve(service, theirs, tell, setting, uid, me)
        return
    service.close()
    theirs.close()
    os.close(tell)
    held = channel.receive(ours, 0)  # the status pipe, only to hold it, like the lease
    ours.close()
    if held is not None:  # else it ends with the spawner, as long as it waits
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 0)
    os.waitpid(supervisor, 0)
    while _left():
        tree.kill(uid, confined)
        time.sleep(REAP_EVERY_S)


def _left() -> bool:
    """Collects what has ended. Returns whether descendants are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
