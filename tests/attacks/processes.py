"""Attacks on other processes: the service, a sibling command, and a victim of the service's own user."""

from tests.attacks.attack import Attack
from tests.attacks.scene import Scene

# TARGET is a process; all that these get from it holds a secret, all that they do to it can be seen.
ON_A_PROCESS = {
    "environ": "show(f'/proc/{TARGET}/environ')",
    "command_line": "show(f'/proc/{TARGET}/cmdline')",
    "descriptors": """
for fd in range(64):
    show(f'/proc/{TARGET}/fd/{fd}'); attempt(lambda: say(os.readlink(f'/proc/{TARGET}/fd/{fd}')))""",
    "take_descriptor": """
pidfd = os.pidfd_open(TARGET)
for fd in range(64):
    attempt(lambda: os.write(1, os.pread(call(438, pidfd, fd, 0), 1000, 0)))""",
    "memory_by_proc": """
for line in open(f'/proc/{TARGET}/maps'):
    if '[stack]' in line or '[heap]' in line:
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        os.write(1, os.pread(os.open(f'/proc/{TARGET}/mem', os.O_RDONLY), last - first, first))""",
    "memory_by_call": """
for line in open(f'/proc/{TARGET}/maps'):
    if '[stack]' in line or '[heap]' in line:
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        found = ctypes.create_string_buffer(last - first)
        here, there = (struct.pack('QQ', at, last - first) for at in (ctypes.addressof(found), first))
        call((310, 270), TARGET, here, 1, there, 1, 0)
        os.write(1, found.raw)""",
    "trace": "call((101, 117), 16, TARGET, 0, 0); proof('attached')",
    "seize": "call((101, 117), 0x4206, TARGET, 0, 0); proof('attached')",
    "root": "show(f'/proc/{TARGET}/root{OUT}/readable')",
    "folder": "show(f'/proc/{TARGET}/cwd/note'); say(os.readlink(f'/proc/{TARGET}/cwd'))",
    "join_namespaces": """
for name in ('user', 'mnt', 'pid', 'net', 'ipc'):
    attempt(lambda: call((308, 268), os.open(f'/proc/{TARGET}/ns/{name}', os.O_RDONLY), 0) or proof(name))
attempt(lambda: call((308, 268), os.pidfd_open(TARGET), 0x20000) or proof('pidfd'))""",
    "compare": "call((312, 272), os.getpid(), TARGET, 1, 0, 0); proof('compared')",
    "see": "os.kill(TARGET, 0); proof('is there')",
    "kill": "os.kill(TARGET, signal.SIGKILL)",
    "stop": "os.kill(TARGET, signal.SIGSTOP)",
    "kill_group": "os.killpg(TARGET, signal.SIGKILL)",
    "kill_thread": "call((234, 131), TARGET, TARGET, 9)",
    "queue_signal": "call((129, 138), TARGET, 15, struct.pack('iii', 15, 0, -1) + bytes(116))",
    "kill_by_pidfd": "signal.pidfd_send_signal(os.pidfd_open(TARGET), signal.SIGKILL)",
    "renice": "os.setpriority(os.PRIO_PROCESS, TARGET, 19)",
    "renice_group": "os.setpriority(os.PRIO_PGRP, TARGET, 19)",
    "limit": "resource.prlimit(TARGET, resource.RLIMIT_NOFILE, (3, 3))",
    "affinity": "os.sched_setaffinity(TARGET, {0})",
    "scheduler": "os.sched_setscheduler(TARGET, os.SCHED_IDLE, os.sched_param(0))",
    "io_priority": "call((251, 30), 1, TARGET, 3 << 13)",
    "oom_score": "open(f'/proc/{TARGET}/oom_score_adj', 'w').write('1000')",
    "page_out": "call(440, os.pidfd_open(TARGET), struct.pack('QQ', 0, 0), 1, 21, 0); proof('paged out')",
    "move_pages": "call((279, 239), TARGET, 0, 0, 0, 0, 0); proof('may move')",
    "robust_list": """
head, size = ctypes.c_void_p(), ctypes.c_size_t()
call((274, 100), TARGET, ctypes.byref(head), ctypes.byref(size)); proof('list read')""",
}
ON_THE_SERVICE = (
    "environ", "descriptors", "take_descriptor", "memory_by_proc", "memory_by_call", "trace", "root", "kill_by_pidfd"
)  # fmt: skip
ON_A_SIBLING = ("environ", "command_line", "descriptors", "memory_by_proc", "trace", "folder", "kill", "stop", "renice")

ON_ALL = {
    "command_lines_of_all": "for p in processes(): show(f'/proc/{p}/cmdline')",
    "environ_of_all": "for p in processes(): show(f'/proc/{p}/environ')",
    "descriptors_of_all": """
for p in processes():
    for fd in (range(64) if p != os.getpid() else ()):
        attempt(lambda: os.write(1, os.read(os.open(f'/proc/{p}/fd/{fd}', os.O_RDONLY | os.O_NONBLOCK), 1000)))""",
    "kill_all": "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(-1, signal.SIGTERM)",
    "renice_user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "shared_memory": """
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(call((29, 194), SHM_KEY, 0, 0), None, 0o10000)
at in (None, 2**64 - 1) or os.write(1, ctypes.string_at(at, 100))""",
    "session_key": """
found = call((250, 219), 10, -3, b'user', b'attacked', 0)
into = ctypes.create_string_buffer(100)
os.write(1, into.raw[:call((250, 219), 11, found, into, 100)])""",
    "user_key": "call((248, 217), b'user', b'attack', b'x', 1, -4); proof('left a key')",
    "message_queue": """
call((69, 189), call((68, 186), SHM_KEY, 0o1666), struct.pack('q', 1) + b'x', 1, 0)
proof('queued')""",
    "posix_queue": "call((240, 180), b'attack', 0o102, 0o600, 0); proof('queue made')",
    "proc_net": "f':{TCP_PORT:04X}' in open('/proc/net/tcp').read() and proof('tables')",
    "inherited_descriptors": """
for fd in range(3, 4096):
    if attempt(os.fstat, fd):
        proof(f'descriptor {fd} is open')""",
    "standard_input": "os.ftruncate(0, 1 << 20); proof('standard input grew')",
}
# Where nothing contains them they harm every process of the user, the tests' own too: by a signal, by a priority, by
# taking what is in its pipes.
ON_EVERYBODY = ("kill_all", "renice_user", "descriptors_of_all")
# Those above it: the supervisor and the guard, which stay outside of the sandbox.
PARENTS = """
for TARGET in {os.getppid(), 1, *range(max(2, os.getpid() - 4), os.getpid())} - {os.getpid()}:
    show(f'/proc/{TARGET}/environ')
    show(f'/proc/{TARGET}/root{OUT}/readable'); show(f'/proc/{TARGET}/cwd/{OUT}/readable')
    attempt(lambda: open(f'/proc/{TARGET}/root{OUT}/new', 'w'))
    attempt(lambda: os.open(f'/proc/{TARGET}/mem', os.O_RDWR) and proof(f'may write the memory of {TARGET}'))
    for fd in range(32):
        line = b'\\n{"event": "ended", "end": "EXITED", "status": 0}\\n'
        attempt(lambda: os.write(os.open(f'/proc/{TARGET}/fd/{fd}', os.O_WRONLY | os.O_NONBLOCK), line))
os._exit(3)
"""
SIGNAL_PARENT = """
for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
    attempt(os.kill, os.getppid(), number); attempt(os.killpg, os.getpgid(0), 0)
time.sleep(0.2)
"""
FAKE = """
import itertools
lines = [b'{"event": "ended", "end": "EXITED", "status": 0, "at_ns": 1, "cpu_ns": 1, "peak_bytes": 1}',
         b'{"event": "refused", "layer": "landlock", "errno": 1}', b'ready', b'exec 2', b'{"exit-code": 0}']
for fd, line in itertools.product(range(64), lines):
    attempt(os.write, fd, b'\\n' + line + b'\\n')
os._exit(3)
"""
DISGUISE = """
os.mkdir('services'); open('services/__init__.py', 'w')
libc.prctl(15, b'python', 0, 0, 0)
os.execv('/bin/sleep', ['python -m services.terminal ' + MARK + ' 30'] + ['30'])
"""


def end_is_told(scene: Scene) -> str:
    """Whether the result is the command's own."""
    return "" if (scene.end, scene.exit_code) == ("EXITED", 3) else f"told {scene.end} {scene.exit_code}"


def result_came(scene: Scene) -> str:
    """Whether the story had its end: it is the supervisor that tells it."""
    return "" if scene.end else f"no result: {scene.refusal}"


def ended_by_time(scene: Scene) -> str:
    """Whether the wall time ended the command."""
    return "" if scene.end == "WALL_TIME" else f"ended as {scene.end}"


ATTACKS = (
    *(Attack(f"victim_{name}", f"TARGET = VICTIM\n{code}", victim=True) for name, code in ON_A_PROCESS.items()),
    *(
        Attack(f"sibling_{name}", f"TARGET = SIBLING\n{ON_A_PROCESS[name]}", sibling=True)
        for name in ON_A_SIBLING
    ),
    *(Attack(name, code, victim=True, alone=name in ON_EVERYBODY) for name, code in ON_ALL.items()),
    Attack("supervisor_look", PARENTS, alone=True, check=end_is_told),
    Attack("supervisor_signal", SIGNAL_PARENT, check=result_came),
    Attack("fake_status", FAKE, check=end_is_told),
    Attack("disguise", DISGUISE, limits={"wall_time": 0.6}, check=ended_by_time),
    *(
        Attack(f"service_{name}", f"TARGET = SERVICE\n{ON_A_PROCESS[name]}", alone=True)
        for name in ON_THE_SERVICE
    ),
    Attack("service_kill", "os.kill(SERVICE, signal.SIGKILL)", alone=True),
)  # fmt: skip
