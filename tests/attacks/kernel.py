"""Attacks on the kernel: calls that ordinary work does not need, namespaces, mounts, devices, ways to become root."""

import asyncio
from pathlib import Path

from tests.attacks.attack import Attack
from tests.attacks.scene import Scene

# A call is within reach unless the sandbox answers for the kernel. (x86_64, aarch64), then arguments that do no harm.
RISKY = {
    "bpf": "(321, 280), 0, 0, 0",
    "perf_event_open": "(298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0",
    "userfaultfd": "(323, 282), 1",
    "io_uring_setup": "425, 1, ctypes.create_string_buffer(120)",
    "keyctl": "(250, 219), 0, -3, 0",
    "add_key": "(248, 217), b'user', b'attack', b'x', 1, -2",
    "request_key": "(249, 218), b'user', b'attack', None, 0",
    "fanotify_init": "(300, 262), 0x200, 0",
    "name_to_handle_at": "(303, 264), -100, b'.', bytes(8), bytes(8), 0",
    "open_by_handle_at": "(304, 265), -100, bytes(8), 0",
    "kexec_load": "(246, 104), 0, 0, 0, 0",
    "init_module": "(175, 105), 0, 0, 0",
    "finit_module": "(313, 273), -1, 0, 0",
    "delete_module": "(176, 106), b'none', 0",
    "syslog": "(103, 116), 10, 0, 0",
    "quotactl": "(179, 60), 0, 0, 0, 0",
    "acct": "(163, 89), 0",
    "swapon": "(167, 224), b'none', 0",
    "reboot": "(169, 142), 0, 0, 0, 0",
    "settimeofday": "(164, 170), 0, 0",
    "sethostname": "(170, 161), 0, -1",
    "personality_no_random": "(135, 92), 0x0040000",
    "ptrace": "(101, 117), 0, 0, 0, 0",
    "process_vm_readv": "(310, 270), 0, 0, 0, 0, 0, 0",
    "pidfd_getfd": "438, -1, -1, 0",
    "kcmp": "(312, 272), 0, 0, 0, 0, 0",
    "migrate_pages": "(256, 238), 0, 0, 0, 0",
    "move_pages": "(279, 239), 0, 0, 0, 0, 0, 0",
    "mq_open": "(240, 180), b'attack', 0, 0, 0",
    "msgget": "(68, 186), 0, 0o1600",
    "semget": "(64, 190), 0, 1, 0o1600",
    "shmget": "(29, 194), 0, 4096, 0o1600",
    "memfd_secret": "447, 0",
    "open_tree": "428, -100, b'.', 1",
    "fsopen": "430, b'tmpfs', 0",
    "pivot_root": "(155, 41), b'.', b'.'",
    "chroot": "(161, 51), b'.'",
    "setns": "(308, 268), -1, 0",
    "modify_ldt": "(154, 9999), 0, 0, 0",
    "iopl": "(172, 9999), 3",
    "vmsplice_gift": "(278, 75), -1, 0, 0, 8",
    "lookup_dcookie": "(212, 18), 0, 0, 0",
    "statmount": "457, 0, 0, 0, 0",
    "listmount": "458, 0, 0, 0, 0",
    "lsm_set_self_attr": "460, 0, 0, 0, 0",
    "newest": "470, 0, 0, 0, 0",
}
# These are within reach and do nothing that a limit or another layer would not hold.
HARMLESS = ("name_to_handle_at", "personality_no_random", "vmsplice_gift")
REACH = """
if not os.fork():
    try:
        call({call})
    except OSError as error:
        error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP) or proof(f'within reach: {{error}}')
    else:
        proof('done')
    os._exit(0)
os.waitpid(-1, 0)
"""

NAMESPACES = {
    "user": "call((272, 97), 0x10000000); proof('new user namespace')",
    "user_by_clone": """
pid = call((56, 220), 0x10000011, 0, 0, 0, 0)
pid or os._exit(0)
os.waitpid(pid, 0); proof('new user namespace')""",
    "user_by_clone3": """
pid = call(435, ctypes.create_string_buffer(struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)), 64)
pid or os._exit(0)
os.waitpid(pid, 0); proof('new user namespace')""",
    "mount": """
attempt(call, (272, 97), 0x10020000)
os.mkdir('m'); call((165, 40), b'none', b'm', b'tmpfs', 0, 0); proof('mounted')""",
    "mount_proc": """
attempt(call, (272, 97), 0x30020000)
if not os.fork():
    os.mkdir('m'); call((165, 40), b'proc', b'm', b'proc', 0, 0); proof('mounted')
os.wait()""",
    "mount_new_way": """
attempt(call, (272, 97), 0x10020000)
call(430, b'tmpfs', 0); proof('a file system in the making')""",
    "network": "attempt(call, (272, 97), 0x10000000); call((272, 97), 0x40000000); proof('new network namespace')",
    "time": "attempt(call, (272, 97), 0x10000000); call((272, 97), 0x80); proof('new time namespace')",
    "control_group": "attempt(call, (272, 97), 0x10000000); call((272, 97), 0x02000000); proof('new cgroup namespace')",
    "own_mounts": """
attempt(call, (272, 97), 0x10020000)
for folder in (b'/', b'/tmp', b'/proc', b'/dev/shm'):
    attempt(lambda: call((166, 39), folder, 2) or proof('taken away'))
attempt(lambda: call((165, 40), 0, b'/', 0, 0x1020, 0) or proof('remounted'))""",
}
ROOT = {
    "set_user": """
for f in (os.setuid, os.setgid): attempt(f, 0)
attempt(os.setresuid, 0, 0, 0); attempt(os.setgroups, [0])""",
    "set_user_id_programs": """
for line in ('su -c sleep\\t0.3', 'sudo -n sleep 0.3', 'pkexec sleep 0.3', 'mount', 'newgrp'):
    argv = line.split(' ')
    pid = os.fork()
    if not pid:
        os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
        attempt(os.execvp, argv[0], argv); os._exit(0)
    os.waitpid(pid, 0)""",
    "capabilities": """
attempt(call, (126, 91), struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6))
found = [line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm'))]
any(int(line.split()[1], 16) for line in found) and proof('has capabilities')""",
    "ambient": "libc.prctl(47, 2, 21, 0, 0) == 0 and proof('raised a capability')",
    "user_namespace_root": """
call((272, 97), 0x10000000)
open('/proc/self/uid_map', 'w').write(f'0 {os.getuid()} 1'); os.setuid(0); proof('root inside')""",
}
DEVICES = (
    "mem kmem port kmsg kvm fuse net/tun loop-control vsock userfaultfd tty tty0 console ttyS0 vhost-net snapshot "
    "btrfs-control autofs uinput dri/card0"
)
DISKS = """
names = DISKS_OUTSIDE.split()
for name in names + [f'/dev/loop{n}' for n in range(8)]:
    attempt(os.open, name, os.O_RDONLY) and proof('opened ' + name)
"""
SYSTEM = {
    "proc_sys": """
for name in ('kernel/core_pattern', 'vm/swappiness', 'kernel/hostname', 'net/ipv4/ip_forward', 'kernel/panic'):
    attempt(os.open, '/proc/sys/' + name, os.O_WRONLY) and proof('may write ' + name)""",
    "sys": """
for name in ('/sys/power/state', '/sys/kernel/mm/ksm/run', '/sys/fs/cgroup/cgroup.procs', '/sys/kernel/uevent_helper'):
    attempt(os.open, name, os.O_WRONLY) and proof('may write ' + name)""",
    "sysrq": "attempt(os.open, '/proc/sysrq-trigger', os.O_WRONLY) and proof('may press keys')",
    "kernel_memory": "attempt(os.open, '/proc/kcore', os.O_RDONLY) and proof('kernel memory')",
    "kernel_log": """
attempt(os.open, '/dev/kmsg', os.O_RDONLY) and proof('log')
call((103, 116), 3, ctypes.create_string_buffer(999), 999) and proof('log')""",
    "clock": "time.clock_settime(time.CLOCK_REALTIME, time.time()); proof('clock set')",
    "hostname": "socket.sethostname(socket.gethostname()); proof('host named')",
    "terminal_input": """
for fd in (0, 1, 2, attempt(os.open, '/dev/tty', os.O_RDWR) or 0):
    for number in (0x5412, 0x541C, 0x1_0000_5412):
        attempt(lambda: call((16, 29), fd, number, b'x') or proof('typed'))""",
    "controlling_terminal": "attempt(os.setsid); fcntl.ioctl(0, 0x540E, 1); proof('taken')",
}
INT_80 = """
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000 cd80 c3'))  # mov eax, getpid; int 0x80; ret
number = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
number > 0 and proof('a 32-bit call')
"""
X32 = "call(0x40000000 | 39); proof('an x32 call')"


def _users(pid: int) -> list[str]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    return next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))


async def find_root(scene: Scene) -> None:
    """Looks, while the attack runs, for a process of it that is root outside."""
    while True:
        for pid in scene.marked():
            if "0" in (users := _users(pid)):
                scene.seen.append(f"process {pid} has users {users}")
                return
        await asyncio.sleep(0.05)


ATTACKS = (
    *(Attack(f"call_{name}", REACH.format(call=call)) for name, call in RISKY.items() if name not in HARMLESS),
    *(Attack(f"namespace_{name}", code) for name, code in NAMESPACES.items()),
    *(Attack(f"root_{name}", code + "\ntime.sleep(0.2)", meanwhile=find_root) for name, code in ROOT.items()),
    *(Attack(f"system_{name}", code) for name, code in SYSTEM.items()),
    Attack(
        "devices",
        f"for name in {DEVICES.split()}: attempt(os.open, '/dev/' + name, os.O_RDWR) and proof('opened ' + name)",
    ),
    Attack("disks", DISKS),
    Attack("int_80", "AARCH64 and os._exit(0)" + INT_80),
    Attack("x32_call", "AARCH64 or " + X32.replace("; proof", " and proof")),
)
