"""`python -m tests.attacks.start UID PLACE SECRET INTERPRETER`: becomes what a setting asks for, then serves.

Everything is loaded first: the folders of the project and of its interpreter may be closed to the user it becomes.
"""

import ctypes
import errno
import os
import struct
import sys

CONTAINER = "container"
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_AARCH64 = os.uname().machine == "aarch64"
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_ADD_KEY, _KEYCTL = (217, 219) if _AARCH64 else (248, 250)
_JOIN_SESSION_KEYRING, _SESSION_KEYRING = 1, -3

# What a container's default profile denies to a process without capabilities (x86_64, aarch64).
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_NEW_NAMESPACES = 0x7E020000
_DENIED = (
    (272, 97),  # unshare
    (308, 268),  # setns
    (165, 40),  # mount
    (166, 39),  # umount2
    (155, 41),  # pivot_root
    *((number, number) for number in (428, 429, 430, 431, 432, 433, 442)),  # open_tree, move_mount, fsopen, …
    (321, 280),  # bpf
    (323, 282),  # userfaultfd
    (250, 219),  # keyctl
    (425, 425),  # io_uring_setup
)
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def main() -> None:
    """Does what the arguments say, then serves until it is told to stop."""
    uid, place, secret, sys.executable = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode(), sys.argv[4]
    import concurrent.futures.thread  # noqa: F401 - asyncio loads it late

    from services.terminal.__main__ import main as serve  # keeps the interpreter's name that is set by now

    _plant_key(secret)
    become(uid, place)
    del sys.argv[1:]
    serve()


def become(uid: int, place: str) -> None:
    """Becomes a user, and is held as in a container if that is the place. Raises OSError."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        # The change of user closed /proc to others of the same user; a service that was started as it stays open.
        _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    if place == CONTAINER:
        _contain()


def _plant_key(secret: bytes) -> None:
    """Puts a secret into a session keyring that all this process starts inherits. A kernel may have no keyrings."""
    if _LIBC.syscall(_KEYCTL, _JOIN_SESSION_KEYRING, None) >= 0:
        _LIBC.syscall(_ADD_KEY, b"user", b"attacked", secret, len(secret), _SESSION_KEYRING)


def _contain() -> None:
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    code = _filter()
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _filter() -> bytes:
    """Returns a filter: namespaces and mounts EPERM, clone3 ENOSYS, as a container has it (seccomp(2))."""
    lines = [(_LOAD, 0, 0, 0)]
    for numbers in _DENIED:
        lines += [(_EQUAL, 0, 1, numbers[_AARCH64]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    lines += [(_EQUAL, 0, 1, _CLONE3[_AARCH64]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    lines += [(_EQUAL, 0, 3, _CLONE[_AARCH64]), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)]
    lines += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


if __name__ == "__main__":
    main()
