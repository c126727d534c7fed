"""A seccomp filter written as classic BPF: which system calls a command does not get (seccomp(2), x86_64 and aarch64).

A list of what is denied, with an end: a call newer than NEWEST answers ENOSYS, as on an older kernel. Calls of another
architecture (int 0x80 on x86_64) kill the process, because their numbers mean other calls.
"""

import ctypes
import errno
import os
import struct
from functools import lru_cache

from services.common import kernel

NEWEST = 462  # mseal; from 424 on numbers are the same everywhere

Calls = dict[str, tuple[int, int | None]]

# name: (x86_64, aarch64), None where the architecture has no such call. From asm/unistd_64.h and asm-generic/unistd.h.
NAMESPACES: Calls = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "open_by_handle_at": (304, 265),
}  # fmt: skip
OTHER_PROCESSES: Calls = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30),
}  # fmt: skip
KERNEL: Calls = {
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "nfsservctl": (180, 42), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "uselib": (134, None), "_sysctl": (156, None), "fanotify_init": (300, 262),
    "lsm_set_self_attr": (460, 460),
}  # fmt: skip
# Objects that outlive the command or hold memory no limit sees.
SHARED_MEMORY: Calls = {
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip
# Messages can carry descriptors, and what a descriptor on its way holds is seen by nobody; bytes go by write and send.
NETWORK: Calls = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
ATTRIBUTES: Calls = {
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
# Programs try these first and have another way when they are missing: clone3 hides its flags from a filter, and
# inotify tells the names of files in folders that Landlock keeps closed.
MISSING: Calls = {"clone3": (435, 435), "inotify_init": (253, None), "inotify_init1": (294, 26)}

# All that a process needs that only computes and talks over descriptors it has: memory, time, and its own end.
COMPUTING: Calls = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "close": (3, 57), "fstat": (5, 80),
    "lseek": (8, 62), "poll": (7, None), "ppoll": (271, 73), "munmap": (11, 215), "mremap": (25, 216),
    "brk": (12, 214), "madvise": (28, 233), "futex": (202, 98), "membarrier": (324, 283), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "setitimer": (38, 103), "getitimer": (36, 102), "getrusage": (98, 165),
    "times": (100, 153), "time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "getpid": (39, 172),
    "gettid": (186, 178), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getrandom": (318, 278),
    "sysinfo": (99, 179), "uname": (63, 160), "getrlimit": (97, 163), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

DENIED = (
    (NAMESPACES, errno.EPERM),
    (OTHER_PROCESSES, errno.EPERM),
    (KERNEL, errno.EPERM),
    (SHARED_MEMORY, errno.EPERM),
    (ATTRIBUTES, errno.ENOTSUP),
    (MISSING, errno.ENOSYS),
)
# Judged by their arguments.
CLONE, SOCKET, SOCKETPAIR, IOCTL = (56, 220), (41, 198), (53, 199), (16, 29)
PRLIMIT64, SCHED_SETAFFINITY, SETPRIORITY = (302, 261), (203, 122), (141, 140)
PRCTL, CLOSE_RANGE = (157, 167), (436, 436)

MMAP, MPROTECT = (9, 222), (10, 226)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH_*
_SECCOMP = (317, 277)
_SET_MODE_FILTER = 1
# CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS
_NEW_NAMESPACES = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
_CLONE_FILES, _CLONE_THREAD = 0x00000400, 0x00010000
_CLOSE_RANGE_UNSHARE = 2
_PR_SET_DUMPABLE = 4
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PROT_EXEC = 4
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPES = 1, 5, 0xF

_LOAD, _AND = 0x20, 0x54  # linux/bpf_common.h: ld [k]; and #k
_EQUAL, _ANY_BIT, _ABOVE = 0x15, 0x45, 0x25  # jeq, jset, jgt
_RETURN = 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000  # SECCOMP_RET_*
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _argument(index: int) -> bytes:
    return _op(_LOAD, 16 + 8 * index)  # the low word; all arguments judged here are 32 bits wide


def _refuse(number: int) -> bytes:
    return _op(_RETURN, 0x00050000 | number)


def _unless_zero(index: int, number: int) -> bytes:
    return _argument(index) + _op(_EQUAL, 0, yes=1) + _refuse(number)


def _judged(column: int, network: bool) -> bytes:
    """Returns the blocks of calls that are judged by their arguments. Each block ends in a verdict."""
    allow = _op(_RETURN, _ALLOW)
    own_process_only = _unless_zero(0, errno.EPERM) + allow
    blocks = (
        (CLONE, _no_namespaces() + _no_descriptors_of_a_thread() + allow),
        # Likewise: a thread that has left the descriptors of its process.
        (CLOSE_RANGE, _argument(2) + _op(_ANY_BIT, _CLOSE_RANGE_UNSHARE, no=1) + _refuse(errno.EINVAL) + allow),
        # It is answered as done: a process of the same user that hides itself cannot be measured.
        (PRCTL, _argument(0) + _op(_EQUAL, _PR_SET_DUMPABLE, no=1) + _refuse(0) + allow),
        (SOCKET, _families()) if network else (SOCKETPAIR, _pair_of_streams()),
        (PRLIMIT64, own_process_only),
        (SCHED_SETAFFINITY, own_process_only),
        (SETPRIORITY, _unless_zero(0, errno.EPERM) + _unless_zero(1, errno.EPERM) + allow),
        (
            IOCTL,
            _argument(1) + _op(_EQUAL, _TIOCSTI, yes=1) + _op(_EQUAL, _TIOCLINUX, no=1) + _refuse(errno.EPERM) + allow,
        ),
    )
    return b"".join(_op(_EQUAL, call[column], no=len(body) // 8) + body for call, body in blocks)


def _no_namespaces() -> bytes:
    return _argument(0) + _op(_ANY_BIT, _NEW_NAMESPACES, no=1) + _refuse(errno.EPERM)


def _no_descriptors_of_a_thread() -> bytes:
    # /proc/PID/fd shows those of the first thread: others must have the same.
    return _op(_AND, _CLONE_THREAD | _CLONE_FILES) + _op(_EQUAL, _CLONE_THREAD, no=1) + _refuse(errno.EPERM)


def _pair_of_streams() -> bytes:
    # A datagram socket of a pair can still send to any path or abstract name, so pairs are streams only.
    return (
        _argument(0) + _op(_EQUAL, _AF_UNIX, no=4)
        + _argument(1) + _op(_AND, _SOCK_TYPES)
        + _op(_EQUAL, _SOCK_STREAM, yes=2) + _op(_EQUAL, _SOCK_SEQPACKET, yes=1)
        + _refuse(errno.EACCES) + _op(_RETURN, _ALLOW)
    )  # fmt: skip


def _families() -> bytes:
    return (
        _argument(0)
        + _op(_EQUAL, _AF_UNIX, yes=3) + _op(_EQUAL, _AF_INET, yes=2) + _op(_EQUAL, _AF_INET6, yes=1)
        + _refuse(errno.EAFNOSUPPORT) + _op(_RETURN, _ALLOW)
    )  # fmt: skip


def _column(machine: str) -> int:
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}")
    return _ARCHITECTURES[machine][0]


def _own_architecture(machine: str) -> bytes:
    return _op(_LOAD, _ARCH) + _op(_EQUAL, _ARCHITECTURES[machine][1], yes=1) + _op(_RETURN, _KILL)


@lru_cache
def program(machine: str, network: bool) -> bytes:
    """Returns the filter for a machine (`os.uname().machine`). Raises OSError ENOSYS for one without tables.

    Args:
        network: whether sockets of the internet and unix families are let through, for a command that has a network
            namespace of its own.
    """
    column = _column(machine)
    parts = [
        _own_architecture(machine),
        # x32 calls carry a bit above every number, so the end of the list closes them too.
        _op(_LOAD, _NUMBER) + _op(_ABOVE, NEWEST, no=1) + _refuse(errno.ENOSYS),
    ]
    for calls, number in (*DENIED, *(() if network else ((NETWORK, errno.EACCES),))):
        for call in calls.values():
            wanted = call[column]
            if wanted is not None:
                parts.append(_op(_EQUAL, wanted, no=1) + _refuse(number))
    return b"".join((*parts, _judged(column, network), _op(_RETURN, _ALLOW)))


@lru_cache
def computing(machine: str) -> bytes:
    """Returns the filter for a process that only computes. Raises OSError ENOSYS for a machine without tables.

    A list of what is allowed; all else answers EPERM. No memory becomes executable, so what runs is what was loaded.
    """
    column = _column(machine)
    allow = _op(_RETURN, _ALLOW)
    parts = [_own_architecture(machine) + _op(_LOAD, _NUMBER)]
    for call in COMPUTING.values():
        wanted = call[column]
        if wanted is not None:
            parts.append(_op(_EQUAL, wanted, no=1) + allow)
    body = _argument(2) + _op(_ANY_BIT, _PROT_EXEC, no=1) + _refuse(errno.EPERM) + allow
    parts += (_op(_EQUAL, call[column], no=len(body) // 8) + body for call in (MMAP, MPROTECT))
    return b"".join((*parts, _refuse(errno.EPERM)))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def install(network: bool) -> None:
    """Puts the filter on this thread for good. no_new_privs must be set. Raises OSError."""
    _install(program(os.uname().machine, network))


def install_computing() -> None:
    """Leaves this thread what `computing` allows, for good. no_new_privs must be set. Raises OSError."""
    _install(computing(os.uname().machine))


def _install(code: bytes) -> None:
    filtered = _Program(len(code) // 8, code)
    kernel.call(_SECCOMP[_column(os.uname().machine)], _SET_MODE_FILTER, 0, ctypes.byref(filtered))
