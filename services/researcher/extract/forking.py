"""The process that parsers are forked from: it has imported what they need, and never sees a byte of a document.

A parser that starts from nothing imports for about 0.3 CPU seconds; one that is forked begins in a few milliseconds,
and so each can read a single document and end. It takes its sandbox after the fork, see worker.py.

Asked on standard input, a socket that keeps messages apart (SOCK_SEQPACKET of unix(7)), one message for each parser
with three descriptors (SCM_RIGHTS): where the document comes from, where the answer goes, and the parser's life, a
socket: when the service shuts it, or is gone, the parser is killed. How it ended is written there, see STATUS.
"""

import gc
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from services.common import kernel

IDLE_S = 600.0  # without a document; it ends then, and the next document starts another
DESCRIPTORS = 3
STATUS = struct.Struct("=i")  # exit code, or the signal's number below zero


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    ended: int  # a descriptor of it (pidfd_open(2)): readable when it has ended
    life: socket.socket


def serve(answer: Callable[[], None]) -> None:
    """Forks a process for each request; it answers on its standard input and output, and ends.

    Returns when nobody can ask any more, or nobody did for IDLE_S, and all children have ended.
    """
    gc.collect()
    gc.freeze()  # a child that collects garbage would copy what it shares with this process
    asking = socket.socket(fileno=0)
    events = select.poll()
    events.register(asking, select.POLLIN)
    children: dict[int, _Child] = {}  # by each of their descriptors
    asked = True
    while asked or children:
        ready = events.poll(None if children else IDLE_S * 1000)
        if not ready:
            return
        descriptor = ready[0][0]  # one at a time: what is done for one closes descriptors, whose numbers come again
        child = children.get(descriptor)
        if child is None:
            asked, child = _asked(asking, answer)
            if not asked:
                events.unregister(asking)
            if child is not None:
                for each in (child.ended, child.life.fileno()):
                    children[each] = child
                    events.register(each, select.POLLIN)
        elif descriptor == child.ended:
            del children[child.ended]
            events.unregister(child.ended)
            if children.pop(child.life.fileno(), None):
                events.unregister(child.life)
            _bury(child)
        else:
            os.kill(child.pid, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
            del children[descriptor]
            events.unregister(descriptor)


def _asked(asking: socket.socket, answer: Callable[[], None]) -> tuple[bool, _Child | None]:
    """Takes one request. Returns whether more can come, and the new process; None when there is none."""
    try:
        message, descriptors, _, _ = socket.recv_fds(asking, 1, DESCRIPTORS)
    except OSError:
        return False, None  # the service is gone
    if not message:
        return False, None
    document, answers, last = descriptors
    life = socket.socket(fileno=last)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:  # too many processes, or no memory: the service sees that nobody answers
        life.close()
        return True, None
    else:
        if not pid:
            _live(parent, document, answers, answer)
        return True, _Child(pid, os.pidfd_open(pid), life)
    finally:
        os.close(document)
        os.close(answers)


def _live(parent: int, document: int, answers: int, answer: Callable[[], None]) -> NoReturn:
    """Is the child."""
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it ended before that was set
            os.dup2(document, 0)
            os.dup2(answers, 1)
            answer()
    finally:
        os._exit(0)  # what is further up belongs to the parent


def _bury(child: _Child) -> None:
    _, status = os.waitpid(child.pid, 0)
    with suppress(OSError):  # the service may be gone, or not care
        child.life.send(STATUS.pack(os.waitstatus_to_exitcode(status)))
    child.life.close()
    os.close(child.ended)
