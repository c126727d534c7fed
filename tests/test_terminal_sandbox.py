"""Attacks on the sandbox: each is tried inside, and those that work outside are shown to work there."""

import contextlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.terminals import KINDS, NOBODY, PYTHON, Process, alive, open_folder, request, run, serving

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason="the attacks are written in Python")

# Runs attacks, each in a process and a folder of its own. An attack escapes unless it raises one of the errors named.
FRAME = """
import ctypes, fcntl, mmap, os, resource, signal, socket, struct, sys, threading, time
OUT, PORT, UDP, VICTIM = os.environ["OUT"], int(os.environ["PORT"]), int(os.environ["UDP"]), int(os.environ["VICTIM"])
UNIX, DGRAM, ABSTRACT = OUT + "/stream", OUT + "/dgram", "\\0" + os.environ["ABSTRACT"]
PARENT = os.getppid()
NUMBERS = 1 if os.uname().machine == "aarch64" else 0
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    number = number if isinstance(number, int) else number[NUMBERS]
    result = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *args)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attack(name, code):
    os.mkdir(name)
    os.chdir(name)
    try:
        exec(code)
    except (OSError, ValueError) as error:
        return f"held {error}"
    except BaseException as error:
        return f"broken {error!r}"
    return "escaped"
def run(attacks):
    for name, code in attacks.items():
        child = os.fork()
        if not child:
            os.write(1, f"{name}\\t{attack(name, code)}\\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
"""

# What works for an ordinary process, as these tests prove, and must not work in the sandbox.
ORDINARY = {
    "read_passwd": "open('/etc/passwd').read()",
    "read_outside": "open(OUT + '/readable').read()",
    "read_own_environ_through_proc": "open('/proc/self/environ').read()",
    "list_proc": "os.listdir('/proc')",
    "list_outside": "os.listdir(OUT)",
    "list_root": "os.listdir('/')",
    "read_by_symlink": "os.symlink(OUT + '/readable', 'l'); open('l').read()",
    "read_by_dots": "open('../' * 40 + OUT + '/readable').read()",
    "read_by_proc_root": "open('/proc/self/root' + OUT + '/readable').read()",
    "read_by_cwd": "os.chdir(OUT); open('readable').read()",
    "write_outside": "open(OUT + '/new', 'w')",
    "write_existing": "open(OUT + '/writable', 'a')",
    "truncate_existing": "os.truncate(OUT + '/writable', 0)",
    "write_tmp": "name = f'/tmp/terminal-attack-{os.getpid()}'; open(name, 'w'); os.unlink(name)",
    "write_shm": "open('/dev/shm/terminal-attack', 'w'); os.unlink('/dev/shm/terminal-attack')",
    "write_by_symlink": "os.symlink(OUT + '/by-link', 'w'); open('w', 'w')",
    "write_by_folder_link": "os.symlink(OUT, 'd'); open('d/by-folder-link', 'w')",
    "hard_link_in": "os.link(OUT + '/writable', 'hard')",
    "hard_link_out": "open('mine', 'w'); os.link('mine', OUT + '/hard')",
    "rename_out": "open('mine', 'w'); os.rename('mine', OUT + '/renamed')",
    "rename_in": "os.rename(OUT + '/movable', 'moved')",
    "delete_outside": "os.unlink(OUT + '/deletable')",
    "make_folder": "os.mkdir(OUT + '/folder')",
    "make_fifo": "os.mkfifo(OUT + '/fifo')",
    "tcp_connect": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "tcp_listen": "socket.create_server(('127.0.0.1', 0))",
    "tcp6_socket": "socket.socket(socket.AF_INET6)",
    "udp_send": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP))",
    "tcp_fast_open": "socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', PORT))",
    "unix_socket": "socket.socket(socket.AF_UNIX).connect(UNIX)",
    "abstract_socket": "socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
    "pair_sends_to_path": "socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', DGRAM)",
    "raw_pair_sends_to_path": "socket.socketpair(type=socket.SOCK_RAW)[0].sendto(b'x', DGRAM)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "signal_0": "os.kill(VICTIM, 0)",
    "signal_term": "os.kill(VICTIM, signal.SIGCONT)",
    "signal_by_pidfd": "signal.pidfd_send_signal(os.pidfd_open(VICTIM), signal.SIGCONT)",
    "signal_parent": "os.kill(PARENT, 0)",
    "memfd": "os.memfd_create('x')",
    "inotify": "call((294, 26), 0)",
    "sysv_shared_memory": "call((29, 194), 0, 4096, 0o1600)",
    "message_queue": "call((71, 187), call((68, 186), 0, 0o1600), 0, 0)",
}  # fmt: skip

# What needs rights or a kernel that the machine may not give: only tried inside.
PRIVILEGED = {
    "prlimit_others": "resource.prlimit(VICTIM, resource.RLIMIT_NOFILE)",
    "raise_file_limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))",
    "use_inherited_descriptor": "for fd in range(3, 256):\n    try: os.fstat(fd)\n    except OSError: continue\n"
    "    sys.exit(f'{fd} is open')\nraise OSError('none is open')",
    "read_shadow": "open('/etc/shadow').read()",
    "read_service_environ": "open(f'/proc/{VICTIM}/environ').read()",
    "read_init_environ": "open('/proc/1/environ').read()",
    "read_parent_environ": "open(f'/proc/{PARENT}/environ').read()",
    "read_service_descriptors": "os.listdir(f'/proc/{VICTIM}/fd')",
    "read_service_memory": "open(f'/proc/{VICTIM}/mem', 'rb')",
    "read_root": "os.listdir('/root')",
    "write_proc_sys": "open('/proc/sys/kernel/core_pattern', 'w')",
    "write_usr": "open('/usr/bin/terminal-attack', 'w')",
    "open_kvm": "open('/dev/kvm')",
    "open_fuse": "open('/dev/fuse')",
    "open_disk": "open('/dev/vda', 'rb')",
    "ptrace_service": "call((101, 117), 16, VICTIM, 0, 0)",
    "ptrace_parent": "call((101, 117), 16, PARENT, 0, 0)",
    "read_service_by_vm": "call((310, 270), VICTIM, 0, 0, 0, 0, 0)",
    "take_descriptor": "call(438, os.pidfd_open(VICTIM), 0, 0)",
    "renice_service": "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)",
    "renice_user": "os.setpriority(os.PRIO_USER, 0, 19)",
    "move_service": "os.sched_setaffinity(VICTIM, {0})",
    "user_namespace": "call((272, 97), 0x10000000)",
    "user_namespace_by_clone": "call((56, 220), 0x10000011, 0, 0, 0, 0)",
    "mount": "call((165, 40), 0, 0, 0, 0, 0)",
    "chroot": "os.chroot('.')",
    "io_uring": "call(425, 1, ctypes.create_string_buffer(120))",
    "bpf": "call((321, 280), 0, 0, 0)",
    "perf": "call((298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0)",
    "userfaultfd": "call((323, 282), 0)",
    "keyring": "call((250, 219), 0, -3, 0)",
    "device_node": "os.mknod('node', 0o600 | 0o020000, os.makedev(1, 3))",
    "block_node": "os.mknod('node', 0o600 | 0o060000, os.makedev(8, 0))",
    "become_root": "os.setuid(0)",
    "future_call": "call(500)",
    "vsock": "socket.socket(40, socket.SOCK_STREAM)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "mptcp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
    "open_by_handle": "call((304, 265), -100, 0, 0)",
    "push_terminal_input": "fcntl.ioctl(0, 0x5412, b'x')",
    "posix_queue": "call((240, 180), b'/q', 0o102, 0o600, 0)",
    "xattr": "open('f', 'w'); os.setxattr('f', 'user.a', b'b')",
}  # fmt: skip


@dataclass
class Ground:
    """A Terminal under attack, and what lies around it."""

    process: Process
    environment: dict[str, str]
    out: Path


@contextlib.contextmanager
def surroundings(owner: int, victim: int) -> Iterator[tuple[dict[str, str], Path]]:
    """Lays out files and listening sockets that anybody may use, and tells attacks where they are."""
    with open_folder() as out, contextlib.ExitStack() as stack:
        out.chmod(0o777)
        for name in ("readable", "writable", "movable", "deletable"):
            (out / name).write_text("secret")
            (out / name).chmod(0o666)
            os.chown(out / name, owner, -1)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        for kind, address in (
            (socket.SOCK_STREAM, f"{out}/stream"),
            (socket.SOCK_DGRAM, f"{out}/dgram"),
            (socket.SOCK_STREAM, f"\0{out}"),
        ):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen(100)
        for name in ("stream", "dgram"):
            (out / name).chmod(0o777)
        ports = {"PORT": str(tcp.getsockname()[1]), "UDP": str(udp.getsockname()[1])}
        yield {"OUT": str(out), "ABSTRACT": str(out), "VICTIM": str(victim), **ports}, out


@pytest.fixture(scope="module", params=KINDS)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    owner = NOBODY if request.param else -1
    with (
        open_folder() as folder,
        serving(folder, request.param) as process,
        surroundings(owner, process.process.pid) as (environment, out),
    ):
        yield Ground(process, environment, out)


def program(attacks: dict[str, str]) -> bytes:
    return f"{FRAME}\nrun({attacks!r})\n".encode()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def verdicts(output: bytes) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in output.decode().splitlines())


async def test_every_attack_is_held(ground: Ground) -> None:
    before = names(ground.out)
    attacks = ORDINARY | PRIVILEGED
    async with ground.process.stub() as stub:
        story = await run(stub, PYTHON, "-", stdin=program(attacks), env=ground.environment)
    found = verdicts(story.stdout)
    assert set(found) == set(attacks), story.stderr
    assert {name: verdict for name, verdict in found.items() if not verdict.startswith("held")} == {}
    assert names(ground.out) == before
    assert (ground.out / "writable").read_text() == "secret"
    assert ground.process.process.poll() is None


def test_attacks_work_outside(tmp_path: Path) -> None:
    """What the sandbox holds must be the sandbox's doing: the same code escapes from an ordinary process."""
    with surroundings(-1, os.getpid()) as (environment, _):
        found = subprocess.run(
            [PYTHON, "-"],
            input=program(ORDINARY),
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            check=True,
        )
    told = verdicts(found.stdout)
    assert set(told) == set(ORDINARY)
    # These some machines close to everybody: by sysctl, by having no IPv6, by a temporary folder of another device.
    optional = {"tcp_fast_open", "tcp6_socket", "hard_link_in", "hard_link_out", "rename_in", "rename_out"}
    assert {name: verdict for name, verdict in told.items() if verdict != "escaped" and name not in optional} == {}


async def test_what_is_said_to_be_open_is_open(ground: Ground) -> None:
    """not_enforced must not say less, and need not say more, than what is found here."""
    attacks = {
        "stat": "os.stat(OUT + '/readable')",
        "chmod": "os.chmod(OUT + '/readable', 0o600); os.chmod(OUT + '/readable', 0o666)",
        "utime": "os.utime(OUT + '/readable', (1, 1))",
    }
    async with ground.process.stub() as stub:
        story = await run(stub, PYTHON, "-", stdin=program(attacks), env=ground.environment)
    found = verdicts(story.stdout)
    told = " ".join(story.result.isolation.not_enforced)
    assert (found["stat"] == "escaped") == ("with stat" in told)
    assert (found["chmod"] == "escaped") == (found["utime"] == "escaped") == ("own user" in told)


SWAP = """
os.mkdir('real')
def swap():
    while True:
        try:
            os.rename('real', 'kept'); os.symlink(OUT, 'real'); os.unlink('real'); os.rename('kept', 'real')
        except OSError:
            pass
threading.Thread(target=swap, daemon=True).start()
"""


async def test_swapping_a_folder_for_a_link_wins_nothing(ground: Ground) -> None:
    code = (
        FRAME.partition("def attack")[0]
        + SWAP
        + """
end = time.monotonic() + 1
while time.monotonic() < end:
    try:
        open('real/raced', 'w').close()
    except OSError:
        pass
"""
    )
    async with ground.process.stub() as stub:
        await run(stub, PYTHON, "-c", code, env=ground.environment)
    assert not (ground.out / "raced").exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an entry of x86 only")
async def test_calls_of_another_architecture_kill(ground: Ground) -> None:
    """int 0x80 enters the kernel with 32-bit call numbers, which mean other calls."""
    code = (
        FRAME.partition("def attack")[0]
        + """
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000 cd80 c3'))  # mov eax, getpid; int 0x80; ret
print('before', flush=True)
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    )
    async with ground.process.stub() as stub:
        story = await run(stub, PYTHON, "-c", code, env=ground.environment)
    assert story.stdout == b"before\n"
    assert (story.end, story.result.signal) == ("SIGNALED", 31)


async def test_calls_that_hide_their_arguments_are_missing(ground: Ground) -> None:
    """Programs fall back when they hear ENOSYS; any other error could be taken for an answer."""
    attacks = {"clone3": "call(435, None, 0)", "newer": "call(463, 0)", "x32": "call(0x40000000 | 41, 2, 1, 0)"}
    async with ground.process.stub() as stub:
        story = await run(stub, PYTHON, "-", stdin=program(attacks), env=ground.environment)
    assert all("Errno 38" in verdict for verdict in verdicts(story.stdout).values())
    assert len(verdicts(story.stdout)) == 3


async def test_killing_everything_kills_only_itself(ground: Ground) -> None:
    async with ground.process.stub() as stub:
        story = await run(stub, script="kill -9 -1; sleep 0.1; echo still here")
        assert story.end in ("EXITED", "SIGNALED")
        assert ground.process.process.poll() is None
        assert (await run(stub, "echo", "next")).stdout == b"next\n"


async def test_a_command_cannot_touch_another(ground: Ground) -> None:
    async with ground.process.stub() as stub:
        call = stub.Run(request(script="echo secret > s; pwd; echo $$; sleep 30"))
        text = b""
        while text.count(b"\n") < 2:
            text += (await call.read()).chunk.data
        home, pid = text.decode().split()
        folder = Path(home)
        assert (folder / "s").read_text() == "secret\n"
        script = f"cat {home}/s; ls {home}; echo x > {home}/t; kill -9 {pid}; rm -rf {home}; ls .."
        story = await run(stub, script=script)
        assert story.stdout == b""
        assert names(folder) == ["s"]
        assert alive(int(pid))
        call.cancel()


async def test_setuid_programs_gain_nothing(ground: Ground) -> None:
    """Nothing a command leaves or runs gives it another user."""
    async with ground.process.stub() as stub:
        script = (
            "id -u; cp /usr/bin/id i; chmod 6755 i; ./i -u; for s in /usr/bin/su /usr/bin/sudo; do $s -c id root; done"
        )
        story = await run(stub, script=script, wall_time=5)
    users = story.stdout.split()
    assert users[0] == users[1] != b"0"
    assert b"uid=0" not in story.stdout


async def test_what_holds_a_command_has_nothing_to_steal(ground: Ground) -> None:
    """What stays outside of the sandbox holds no environment and no socket of the service."""
    async with ground.process.stub() as stub:
        call = stub.Run(request(script="echo $$; sleep 30"))
        await call.read()
        command = int((await call.read()).chunk.data)
        supervisor = parent(command)
        for pid in (supervisor, parent(supervisor)):
            assert outside(pid)
        call.cancel()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def outside(pid: int) -> bool:
    if os.geteuid() != 0:
        return not os.access(f"/proc/{pid}/environ", os.R_OK)
    targets = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    bare = Path(f"/proc/{pid}/environ").read_bytes() == b""
    return bare and sum(target.startswith("socket:") for target in targets) <= 1  # the lease on the user
