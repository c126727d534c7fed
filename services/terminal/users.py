"""Lends each command a user of its own, out of UIDS, so that no two commands on a machine share one."""

import errno
import itertools
import os
import socket

# Users nobody else hands out: https://systemd.io/UIDS-GIDS has 60706 to 61183 as unused, and they exist in a container
# whose user namespace maps 65536 users.
UIDS = range(60_706, 61_184)

# In turn, because the last one lent is held for a moment after its command, and a try that fails is not free.
_turns = itertools.cycle(UIDS)


def lend() -> tuple[int, socket.socket]:
    """Returns a user id and the lease on it. Raises OSError, EUSERS when all are lent.

    The lease is a name among the abstract unix sockets: it falls back when the last process that holds the socket ends,
    however that happens, and it holds among all services that share the machine's network namespace.
    """
    for _ in UIDS:
        uid = next(_turns)
        lease = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lease.bind(f"\0conductor-terminal-uid-{uid}")
        except OSError as error:
            lease.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return uid, lease
    raise OSError(errno.EUSERS, os.strerror(errno.EUSERS))
