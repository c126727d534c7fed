"""What a parser process gives up before it sees a byte: files, network, processes, memory without end."""

import errno
import os
import resource
from contextlib import suppress

from services.common import kernel, landlock, seccomp

MEMORY_BYTES = 2 * 1024**3  # address space; 16 MiB of ordinary markup take a tenth
LIFE_CPU_S = 900  # whatever a document's own limit (parts.Bounds.clock) is; an archive has one for each member


def prepare() -> None:
    """Makes ahead what all processes forked from this one will need."""
    with suppress(OSError):  # `enter` says so
        seccomp.computing(os.uname().machine)


def enter() -> list[str]:
    """Binds this process for good and returns sentences on what does not hold here.

    Limits (setrlimit(2)) hold everywhere; Landlock and seccomp where the kernel has them. Of the open descriptors only
    the standard ones stay.
    """
    kernel.close_range(3)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    missing = []
    try:
        _landlock()
    except OSError as error:
        missing.append(f"Landlock cannot be had ({errno.errorcode.get(error.errno or 0)}): it may open files.")
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CPU, LIFE_CPU_S),
    ):
        resource.setrlimit(limit, (most, most))
    try:
        seccomp.install_computing()
    except OSError as error:
        missing.append(f"seccomp cannot be had ({errno.errorcode.get(error.errno or 0)}): system calls are not held.")
    return missing


def _landlock() -> None:
    version = landlock.abi()
    if not version:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    landlock.restrict(landlock.build(version, [], network=False))
