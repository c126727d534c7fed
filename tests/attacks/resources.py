"""Attacks on what all share: processes, memory, disk, time, output. Each bomb is finite, whatever holds it."""

from tests.attacks.attack import MIB, Attack
from tests.attacks.scene import Scene

GOAL_MIB = 200  # against a limit of 64
SHARE_MIB = GOAL_MIB // 10 + 1  # of each of ten processes
GOAL_PROCESSES = 200  # against a limit of 32
HOLD_S = 0.5  # what was reached counts when it was held for this long
OUTPUT = 8 * MIB
OUTPUT_KEPT = 1 * MIB

HELD = f"\ntime.sleep({HOLD_S})\nproof('held')\n"
NOT_FOR_EVER = "signal.alarm(10)\n"

FORK_BOMB = f"""
signal.alarm(10)
alive = 1
while alive < {GOAL_PROCESSES}:
    if os.fork() == 0:
        time.sleep(4); os._exit(0)
    alive += 1
"""
# Each doubles, and every child goes on doubling: the classic, with a depth.
DOUBLING = """
signal.alarm(4)
for _ in range(8):
    os.fork()
with open('alive', 'ab') as file:
    file.write(b'1')
time.sleep(0.7)
if os.path.getsize('alive') > 200:
    proof('all alive')
"""
SHELL_BOMB = """
bomb() { [ $1 -gt 0 ] || { sleep 1; echo $KEY_2$KEY_1; return; }; bomb $(($1 - 1)) | bomb $(($1 - 1)) & }
bomb 8; sleep 1.5
"""
THREADS = f"""
threading.stack_size(65536)
for _ in range({GOAL_PROCESSES}):
    threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
{HELD}
os._exit(0)
"""
MEMORY = {
    "one": f"held = bytearray({GOAL_MIB} << 20)",
    "tree": f"""
def hold(_):
    held = bytearray({GOAL_MIB // 5} << 20)
    time.sleep(3)
children(5, hold)
time.sleep(1)""",
    "shared": f"held = mmap.mmap(-1, {GOAL_MIB} << 20)\nfor _ in range({GOAL_MIB}): held.write(bytes(1 << 20))",
    "memfd": f"fd = os.memfd_create('x')\nfor _ in range({GOAL_MIB}): os.write(fd, bytes(1 << 20))",
    "memfd_many": f"for _ in range({GOAL_MIB // 4}): os.write(os.memfd_create('x'), bytes(4 << 20))",
    "secret_memory": f"""
fd = call(447, 0)
os.ftruncate(fd, {GOAL_MIB} << 20)
held = mmap.mmap(fd, {GOAL_MIB} << 20)
for _ in range({GOAL_MIB}): held.write(bytes(1 << 20))""",
    "tmpfs": f"""
written = 0
for folder in ('/dev/shm', '/tmp', '/var/tmp', '/run', '/dev', '/run/user', '/dev/mqueue', '/'):
    try:
        for number in range({GOAL_MIB // 8}):
            name = f'{{folder}}/attack-{{MARK}}' if number == 0 else f'{{folder}}/attack-{{MARK}}-{{number}}'
            fd = os.open(name, os.O_CREAT | os.O_WRONLY)
            os.unlink(name)
            globals().setdefault('kept', []).append(fd)
            written += os.write(fd, bytes(8 << 20))
    except OSError:
        pass
if written < {GOAL_MIB} << 20:
    raise OSError(f'only {{written}} written')""",
    "of_dead_leader": f"""
def go():
    time.sleep(0.2)
    globals()['held'] = bytearray({GOAL_MIB} << 20)
    time.sleep({HOLD_S}); proof('held'); os._exit(0)
threading.Thread(target=go).start()
libc.syscall((60, 93)[AARCH64], 0)""",
    "posix_queue": "held = [call((240, 180), f'q{n}'.encode(), 0o102, 0o600, 0) for n in range(50)]",
    "pages_of_tables": """
held = mmap.mmap(-1, 1 << 46, flags=mmap.MAP_PRIVATE | 0x4000)
for at in range(0, 1 << 46, 1 << 30): held[at]""",
    # What is in pipes and sockets belongs to the kernel and to no process.
    "pipes": f"""
def fill(_):
    kept = []
    held = 0
    while held < {SHARE_MIB} << 20 and len(kept) < 110:
        ends = os.pipe2(os.O_NONBLOCK)
        attempt(fcntl.fcntl, ends[1], 1031, 1 << 20)
        kept.append(ends)
        attempt(os.write, ends[1], bytes(1 << 20))
        held += struct.unpack('i', fcntl.ioctl(ends[0], 0x541B, bytes(4)))[0]
    os.write(told[1], struct.pack('q', held))
    time.sleep(1.5)
told = os.pipe()
children(10, fill)
os.close(told[1])
total = 0
while total < {GOAL_MIB} << 20:
    part = os.read(told[0], 8)
    if not part: raise OSError(f'only {{total}}')
    total += struct.unpack('q', part)[0]""",
    "socket_buffers": f"""
def fill(_):
    kept = []
    held = 0
    while held < {SHARE_MIB} << 20 and len(kept) < 110:
        pair = socket.socketpair()
        kept.append(pair)
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
            try:
                while True: held += end.send(bytes(32768))
            except BlockingIOError:
                pass
    os.write(told[1], struct.pack('q', held))
    time.sleep(1.5)
told = os.pipe()
children(10, fill)
os.close(told[1])
total = 0
while total < {GOAL_MIB} << 20:
    part = os.read(told[0], 8)
    if not part: raise OSError(f'only {{total}}')
    total += struct.unpack('q', part)[0]""",
}
# mmap.mmap would keep a descriptor.
MAP = """
def mapped(n, size, length, access, kind, longer=0):
    with open(str(n), 'w+b', 0) as file:
        file.write(bytes(size)); os.unlink(str(n))
        at = libc.mmap(None, ctypes.c_size_t(length), access, kind, file.fileno(), ctypes.c_long(0))
        assert at != -1
        file.write(bytes(longer))
"""
THREAD = """
held = []
def go():"""
DISK = {
    "one_file": "fd = os.open('f', os.O_CREAT | os.O_WRONLY)\nfor _ in range(20): os.write(fd, bytes(1 << 20))",
    "one_sparse": "os.truncate(os.open('f', os.O_CREAT | os.O_WRONLY), 1 << 30)",
    "allocated": "for n in range(16): os.posix_fallocate(os.open(str(n), os.O_CREAT | os.O_WRONLY), 0, 3 << 20)",
    "many_files": "for n in range(16): open(str(n), 'wb').write(bytes(3 << 20))",
    "deleted_open": """
held = []
for n in range(16):
    held.append(open(str(n), 'wb', 0)); held[-1].write(bytes(3 << 20)); os.unlink(str(n))""",
    "deleted_nameless": """
held = [os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16)]
for fd in held: os.write(fd, bytes(3 << 20))""",
    "deleted_hidden": """
libc.prctl(4, 0, 0, 0, 0)
held = [os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16)]
for fd in held: os.write(fd, bytes(3 << 20))""",
    "deleted_mapped": """
held = []
for n in range(16):
    with open(str(n), 'w+b', 0) as file:
        file.write(bytes(3 << 20)); os.unlink(str(n))  # mmap.mmap would keep a descriptor
        ctypes.CDLL(None).mmap(None, ctypes.c_size_t(3 << 20), 3, 1, file.fileno(), ctypes.c_long(0))""",
    "deleted_in_transit": """
one, other = socket.socketpair()
for n in range(16):
    with open(str(n), 'w+b', 0) as file:
        file.write(bytes(3 << 20)); socket.send_fds(one, [b'x'], [file.fileno()]); os.unlink(str(n))""",
    "deleted_mapped_in_part": f"""{MAP}
for n in range(16): mapped(n, 3 << 20, 4096, 3, 1)""",
    "deleted_mapped_privately": f"""{MAP}
for n in range(16): mapped(n, 3 << 20, 3 << 20, 1, 2)""",
    "deleted_mapped_then_longer": f"""{MAP}
for n in range(16): mapped(n, 4096, 4096, 3, 1, longer=3 << 20)""",
    "deleted_mapped_small": f"""{MAP}
for n in range(700): mapped(n, 64 << 10, 64 << 10, 3, 1)""",
    "deleted_mapped_below": f"""{MAP}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in range(16): mapped(n, 3 << 20, 3 << 20, 3, 1)
        time.sleep(3)
    os._exit(0)
time.sleep(0.5)""",
    "deleted_executed": """
program = open('/bin/sleep', 'rb').read()
for n in range(16):
    with open(str(n), 'wb', 0) as file: file.write(program + bytes(3 << 20)); os.fchmod(file.fileno(), 0o700)
    if os.fork() == 0: os.execv(str(n), ['sleep', '3'])
    time.sleep(0.02); os.unlink(str(n))""",
    "deleted_of_thread": f"""{THREAD}
    call(436, 2000, 2001, 2)  # its descriptors are no longer those of the process
    held.extend(os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16))
    for fd in held: os.write(fd, bytes(3 << 20))
    time.sleep(0.7); proof('held'); os._exit(0)
threading.Thread(target=go).start()
time.sleep(3); os._exit(0)""",
    "deleted_of_thread_made_so": """
stack = ctypes.create_string_buffer(1 << 16)  # CLONE_VM, SIGHAND and THREAD, without FILES; it must not come to run
if AARCH64 or libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.byref(stack, 1 << 15), 0x10900, 0) < 0:
    raise OSError(ctypes.get_errno(), 'clone')""",
    "deleted_of_dead_leader": f"""{THREAD}
    held.extend(os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16))
    for fd in held: os.write(fd, bytes(3 << 20))
    time.sleep(0.7); proof('held'); os._exit(0)
threading.Thread(target=go).start()
libc.syscall((60, 93)[AARCH64], 0)""",
    "deleted_sent_many": """
import array
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
class Header(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in 'name namelen iov iovlen control controllen flags sent'.split()]
byte = ctypes.create_string_buffer(1)
iov = struct.pack('QQ', ctypes.addressof(byte), 1)
for n in range(16):
    with open(str(n), 'w+b', 0) as file:
        file.write(bytes(3 << 20)); os.unlink(str(n))
        rights = struct.pack('QiiQ', 20, 1, 1, file.fileno())
        call((307, 269), one.fileno(), ctypes.byref(Header(0, 0, ctypes.cast(iov, ctypes.c_void_p).value, 1,
            ctypes.cast(rights, ctypes.c_void_p).value, 24, 0, 0)), 1, 0)""",
    "deleted_hidden_below": """
libc.prctl(4, 0, 0, 0, 0)
if os.fork() == 0:
    libc.prctl(4, 0, 0, 0, 0)
    held = [os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16)]
    for fd in held: os.write(fd, bytes(3 << 20))
    time.sleep(3); os._exit(0)
time.sleep(0.5)""",
    "entries": "for n in range(4000): os.close(os.open(str(n), os.O_CREAT))",
    "folders": "for n in range(4000): os.mkdir(str(n))",
    "links": "open('f', 'w')\nfor n in range(4000): os.link('f', str(n))",
    "deep_folders": "for n in range(3000): os.mkdir('d'); os.chdir('d')",
    "closed_folder": "os.mkdir('d'); [open(f'd/{n}', 'wb').write(bytes(3 << 20)) for n in range(16)]; os.chmod('d', 0)",
}
# Each process gives what it holds to the next and ends: a look may find none of them.
RELAYED = """
if os.fork():
    time.sleep(3); os._exit(0)
held = [os.open('.', os.O_TMPFILE | os.O_RDWR) for n in range(16)]
for fd in held: os.write(fd, bytes(3 << 20))
end = time.monotonic() + 1.5
while time.monotonic() < end: os.fork() and os._exit(0)
proof('held')
"""
# A program that may be executed and not read hides what it holds from its own user.
UNREADABLE = """
cp /bin/sh s; chmod 111 s; mkfifo p; (sleep 2; echo > p) &
exec ./s -c 'for n in 3 4 5 6 7; do eval "exec $n>f$n"; printf %3900000d 0 >&$n; rm f$n; done
read x < p; echo $KEY_2$KEY_1'
"""
ENTRIES_BURST = """
names = [str(n) for n in range(10000)]
for name in names: os.close(os.open(name, os.O_CREAT))
proof('all made')
"""
CPU = {
    "one": "while True: pass",
    "threads": "for _ in range(4): threading.Thread(target=exec, args=('while True: pass',)).start()",
    "relay": """
while True:
    if os.fork(): os.waitpid(-1, 0); os._exit(0)
    end = time.process_time() + 0.3
    while time.process_time() < end: pass""",
}
FLOOD = f"for _ in range({OUTPUT >> 20}): os.write(1, bytes(1 << 20))"
RAISE = """
for name in dir(resource):
    if name.startswith('RLIMIT_'):
        soft, hard = resource.getrlimit(getattr(resource, name))
        for wanted in ((hard + 1, hard + 1), (-1, -1)):
            if hard != -1 and attempt(lambda: resource.setrlimit(getattr(resource, name), wanted) or True):
                proof('raised ' + name)
"""


def bounded(scene: Scene) -> str:
    """Whether the output was cut, and what was cut counted."""
    dropped, kept = scene.dropped, len(scene.output)
    if kept > OUTPUT_KEPT + 100_000:
        return f"{kept} bytes kept"
    return "" if dropped + kept >= OUTPUT else f"{kept} bytes kept and {dropped} dropped of {OUTPUT}"


def ended_in_time(scene: Scene) -> str:
    """Whether it was ended about when its limit said."""
    return (
        "" if scene.seconds < 8 and scene.end in ("CPU_TIME", "WALL_TIME") else f"{scene.end} in {scene.seconds:.1f} s"
    )


BOMBS = {"fork_bomb": FORK_BOMB + HELD, "doubling_bomb": DOUBLING, "thread_bomb": THREADS}
ATTACKS = (
    *(Attack(name, code, heavy=True) for name, code in BOMBS.items()),
    Attack("shell_bomb", SHELL_BOMB, script=True, heavy=True),
    *(Attack(f"memory_{name}", NOT_FOR_EVER + code + HELD, heavy=True) for name, code in MEMORY.items()),
    *(Attack(f"disk_{name}", NOT_FOR_EVER + code + HELD, heavy=True) for name, code in DISK.items()),
    Attack("disk_deleted_relayed", RELAYED, heavy=True),
    Attack("disk_deleted_unreadable", UNREADABLE, script=True, heavy=True),
    Attack("disk_entries_burst", ENTRIES_BURST, heavy=True),
    *(
        Attack(
            f"cpu_{name}",
            NOT_FOR_EVER + code,
            limits={"cpu_time": 1, "wall_time": 1.6},
            heavy=True,
            check=ended_in_time,
        )
        for name, code in CPU.items()
    ),
    Attack("output_flood", FLOOD, limits={"output_bytes": OUTPUT_KEPT}, heavy=True, check=bounded),
    Attack("raise_limits", RAISE),
)
