"""What an attack is, and the frame its code runs in.

An attack is a command for a Terminal. Its verdict is never its own exit code: it is looked up outside, in what the
attack aimed at (ground.py). Where the outside cannot see the harm, the attack prints a proof, a number that it prints
for nothing else.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conductor.v1 import terminal_pb2

from tests.terminals import PYTHON

if TYPE_CHECKING:
    from tests.attacks.scene import Scene

MIB = 1024 * 1024
WALL_S = 8
BATCH_WALL_S = 60
LIMITS: dict[str, Any] = {
    "processes": 32,
    "memory_bytes": 64 * MIB,
    "wall_time": WALL_S,
    "file_size_bytes": 4 * MIB,
    "workspace_bytes": 10 * MIB,
    "workspace_entries": 500,
}
BEGUN = "attack-begun"  # and the attack's mark: what follows, in either stream, is its output
BROKEN = "attack-broken"

# What Python attacks find: the ground's names as globals, the kernel's calls by number, and ways to tell what they got.
# It makes those it reads from its input one after the other, each in a process and a folder of its own if there are
# many. The proof is put together here, so that to print one's own environment or input proves nothing.
MODULES = ("errno", "fcntl", "mmap", "resource", "select", "signal", "socket", "stat", "struct", "threading", "time")
FRAME = f"""
import ctypes, os, sys
AARCH64 = os.uname().machine == "aarch64"
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *args):
    number = number if isinstance(number, int) else number[AARCH64]
    result = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *args)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def say(text):
    os.write(1, f"{{text}}\\n".encode())
def proof(what):
    say(f"{{KEY_2}}{{KEY_1}} {{what}}")
def attempt(action, *args, **more):
    try:
        return action(*args, **more)
    except (OSError, ValueError):
        pass
def show(path, **more):
    fd = attempt(os.open, path, os.O_RDONLY, **more)
    if fd is not None:
        data = attempt(os.read, fd, 1 << 20)
        os.write(1, data or b"")
        return data
def processes():
    return [int(name) for name in attempt(os.listdir, "/proc") or [] if name.isdigit()]
def children(count, action):
    for number in range(count):
        if not os.fork():
            action(number)
            os._exit(0)
def connect(address, family=2, kind=1, protocol=0):
    import socket
    with socket.socket(family, kind, protocol) as made:
        made.settimeout(1)
        made.connect(address)
        made.send(b"attack")
def make(told, code):
    globals().update(told)
    for stream in (1, 2):
        os.write(stream, f"\\n{BEGUN} {{MARK}}\\n".encode())
    try:
        exec(code, globals())
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        os.write(2, f"{{error}}\\n".encode())
    except Exception as error:
        say(f"{BROKEN} {{KEY_2}}{{KEY_1}} {{error!r}}")
attacks = eval(open(0, closefd=False).read())
if len(attacks) == 1:
    make(*attacks[0])
    sys.exit()
for number, attack in enumerate(attacks):
    if not os.fork():
        os.mkdir(str(number)); os.chdir(str(number))
        make(*attack)
        os._exit(0)
    os.wait()
"""


Check = Callable[["Scene"], str]
Meanwhile = Callable[["Scene"], Awaitable[None]]


def nothing_else(_: "Scene") -> str:
    """Looks for no evidence beyond what every attack is checked for."""
    return ""


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: a command, and how the outside can tell that it got out."""

    name: str
    code: str = ""  # Python, or for the shell when `script`
    script: bool = False
    argv: tuple[str, ...] = ()  # instead of code; `{OUT}` and its like are filled in; may be refused
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)  # instead of LIMITS
    inputs: dict[str, bytes] = field(default_factory=dict)
    victim: bool = False  # it aims at a process of the service's user
    sibling: bool = False  # another command of the same Terminal runs meanwhile
    alone: bool = False  # no other attack runs meanwhile
    heavy: bool = False  # a bomb: not tried where nothing contains it, and few at once
    cancel: bool = False  # the caller goes away when the attack has begun
    meanwhile: Meanwhile | None = None  # done outside while the attack runs
    check: Check = nothing_else  # returns evidence of an escape, or "", beyond what is always looked for
    work: bool = False  # not an attack: ordinary work, which must succeed

    @property
    def slow(self) -> bool:
        """Whether it mostly sleeps, or is ended by a limit: others can be made meanwhile."""
        return self.heavy or "wall_time" in self.limits

    @property
    def batched(self) -> bool:
        """Whether it may be made by the same command as others: nothing about it is special."""
        special = (self.script, self.argv, self.env, self.limits, self.inputs, self.sibling, self.heavy, self.alone)
        return not any(special) and not self.cancel and not self.meanwhile and self.check is nothing_else


def command(attacks: Sequence[Attack], told: Sequence[dict[str, Any]]) -> terminal_pb2.Command:
    """Returns the command that makes attacks: many when all are `batched`, else one. Its limits are missing."""
    first = attacks[0]
    names = {name: str(value) for name, value in told[0].items()}
    env = {key: value.format(**names) for key, value in first.env.items()}
    inputs = [terminal_pb2.InputFile(name=name, content=content) for name, content in first.inputs.items()]
    if first.argv:
        return terminal_pb2.Command(argv=[part.format(**names) for part in first.argv], env=env)
    if first.script:
        begin = f"echo '{BEGUN} {names['MARK']}'"
        return terminal_pb2.Command(script=f"{begin}; {begin} >&2\n{first.code}", env={**names, **env})
    marks = [str(each["MARK"]) for each in told]
    work = [(each, attack.code) for each, attack in zip(told, attacks, strict=True)]
    argv = (PYTHON, "-I", "-S", "-c", _imports(attacks) + FRAME, *marks)
    return terminal_pb2.Command(argv=argv, stdin=repr(work).encode(), env=env, inputs=inputs)


def _imports(attacks: Sequence[Attack]) -> str:
    """Returns what imports the modules that attacks name: to import all takes longer than most attacks."""
    named = {word for attack in attacks for word in re.findall(r"\w+", attack.code)}
    return "".join(f"import {module}\n" for module in MODULES if module in named)


def outputs(stream: bytes, told: Sequence[dict[str, Any]]) -> list[bytes]:
    """Returns what each attack wrote to a stream; of an attack that was not begun, nothing."""
    begun = [f"{BEGUN} {each['MARK']}\n".encode() for each in told]
    parts: dict[bytes, bytes] = {}
    at = b""
    for piece in re.split(b"(" + b"|".join(map(re.escape, begun)) + b")", stream):
        if piece in begun:
            at = piece
        parts[at] = parts.get(at, b"") + piece
    return [parts.get(line, b"") for line in begun]
