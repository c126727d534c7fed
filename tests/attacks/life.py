"""Attacks on the end of a command: what tries to outlive it, to hold it up, or to leave remains."""

from tests.attacks.attack import Attack
from tests.attacks.scene import Scene

SOON_S = 20  # an end that is held up would come after what the attack sleeps for, 60 s or more

SLEEP = "os.execv('/bin/sleep', ['sleep', '300.' + MARK])"
LEAVES = {
    "daemon": f"""
if not os.fork():
    os.setsid()
    if not os.fork():
        for fd in range(3): os.close(fd)
        {SLEEP}
    os._exit(0)
time.sleep(0.2)""",
    "many_sessions": f"""
for _ in range(10):
    if not os.fork():
        os.setsid(); os.fork(); os.setsid() if os.getpid() != os.getpgrp() else 0; {SLEEP}
time.sleep(0.2)""",
    "ignores_signals": f"""
for number in range(1, 65): attempt(signal.signal, number, signal.SIG_IGN)
os.fork() or (os.setsid(), {SLEEP})
time.sleep(0.2)""",
    "sub_reaper": f"""
libc.prctl(36, 1, 0, 0, 0); libc.prctl(1, 0, 0, 0, 0)
if not os.fork():
    libc.prctl(36, 1, 0, 0, 0)
    if not os.fork(): os.setsid(); {SLEEP}
    os._exit(0)
time.sleep(0.2)""",
    "stopped_child": f"""
if not os.fork():
    os.setsid()
    pid = os.fork()
    if not pid: {SLEEP}
    os.kill(pid, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(0.2)""",
    "held_pipe": f"os.fork() or ({SLEEP})",
    "threads_stay": f"""
if not os.fork():
    threading.Thread(target=time.sleep, args=(300,)).start()
    os.fork() or {SLEEP}
    libc.syscall((60, 93)[AARCH64], 0)
time.sleep(0.2)""",
    "vfork": """
made = ctypes.CDLL(None).posix_spawn
for _ in range(5):
    made(None, b'/bin/sleep', None, None, (ctypes.c_char_p * 3)(b'sleep', b'300.' + MARK.encode(), None), None)
time.sleep(0.2)""",
}
# Each process starts the next and ends: there is never one to follow. Ends by itself after a while, far too late.
RACE = """
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
    elif os.getpid() == FIRST:
        time.sleep(60)
    else:
        os._exit(0)
"""
DELAYS = {
    "ignores_term": "for n in range(1, 65): attempt(signal.signal, n, signal.SIG_IGN)\nwhile True: time.sleep(60)",
    "closes_output": "os.closerange(0, 3)\ntime.sleep(60)",
    "stops_itself": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)",
    "stops_its_group": "os.fork(); os.killpg(0, signal.SIGSTOP); time.sleep(60)",
    "traced": "attempt(call, (101, 117), 0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)",
    "waits_for_itself": "a, b = os.pipe(); os.read(a, 1)",
    "unreadable_name": "libc.prctl(15, b') R 1 1 1 (', 0, 0, 0); time.sleep(60)",
    "fills_its_output": "children(3, lambda _: [os.write(2, bytes(1 << 16)) for _ in iter(int, 1)])\ntime.sleep(60)",
}
ZOMBIES = """
for _ in range(20):
    if not os.fork():
        os.fork() or os._exit(0)
        os.fork() or os._exit(0)
        os._exit(0)
time.sleep(0.2)
"""
ABANDONED = f"""
for _ in range(3):
    if not os.fork(): os.setsid(); {SLEEP}
while True:
    os.fork() or os._exit(0)
    attempt(lambda: [os.waitpid(-1, os.WNOHANG) for _ in range(3)])
    time.sleep(0.005)
"""
UNREMOVABLE = """
os.makedirs('a/b/c'); open('a/b/c/f', 'w')
for n in range(80): os.mkdir('d'); os.chdir('d')
os.chdir(os.environ['HOME'])
os.mkfifo('p'); os.symlink(OUT, 'l'); os.symlink('/', 'a/root')
open(b'\\xff\\n', 'w'); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)
attempt(fcntl.ioctl, os.open('f', os.O_CREAT | os.O_RDWR), 0x40086602, struct.pack('l', 0x30))
"""


def soon(scene: Scene) -> str:
    """Whether the end was not held up."""
    return "" if scene.end and scene.seconds < SOON_S else f"ended after {scene.seconds:.1f} s: {scene.end or 'never'}"


def killed(scene: Scene) -> str:
    """Whether the limit of time ended it, soon."""
    return soon(scene) or ("" if scene.end == "WALL_TIME" else f"ended as {scene.end}")


def outrun(scene: Scene) -> str:
    """Whether a limit ended it, soon: of time, or of processes where those that have ended wait long to be reaped."""
    return soon(scene) or ("" if scene.end in ("WALL_TIME", "PROCESSES") else f"ended as {scene.end}")


def no_zombies(scene: Scene) -> str:
    """Whether no dead process waits below the service."""
    return f"{count} zombies" if (count := scene.zombies()) else ""


ATTACKS = (
    *(Attack(f"leaves_{name}", code, check=soon) for name, code in LEAVES.items()),
    *(Attack(f"delays_{name}", code, limits={"wall_time": 1}, check=killed) for name, code in DELAYS.items()),
    Attack("delays_fork_race", "FIRST = os.getpid()" + RACE, limits={"wall_time": 1}, check=outrun),
    Attack("zombies", ZOMBIES, alone=True, check=no_zombies),
    Attack("abandoned", ABANDONED, cancel=True),
    Attack("unremovable_workspace", UNREMOVABLE, check=soon),
)
