"""What an attack is, and the frame its code runs in.

An attack is a command for a Terminal. Its verdict is never its own exit code: it is looked up outside, in what the
attack aimed at (ground.py). Where the outside cannot see the harm, the attack prints a proof, a number that it prints
for nothing else.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.terminals import PYTHON

if TYPE_CHECKING:
    from tests.attacks.scene import Scene

MIB = 1024 * 1024
WALL_S = 5
LIMITS: dict[str, Any] = {
    "processes": 32,
    "memory_bytes": 128 * MIB,
    "wall_time": WALL_S,
    "file_size_bytes": 16 * MIB,
}
BEGUN = "attack-begun"
BROKEN = "attack-broken"

# What Python attacks find: the ground's names as globals, the kernel's calls by number, and ways to tell what they got.
FRAME = f"""
import ctypes, errno, fcntl, json, mmap, os, resource, select, signal, socket, stat, struct, sys, threading, time
globals().update(json.loads(os.environ["GROUND"]))
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
    say(f"{{PROOF}} {{what}}")
def attempt(action, *args, **more):
    try:
        return action(*args, **more)
    except (OSError, ValueError) as error:
        os.write(2, f"{{error}}\\n".encode())
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
def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
    with socket.socket(family, kind, protocol) as made:
        made.settimeout(1)
        made.connect(address)
        made.send(b"attack")
say({BEGUN!r})
try:
    exec(sys.argv[2])
except (OSError, ValueError, MemoryError, RuntimeError) as error:
    os.write(2, f"{{error}}\\n".encode())
except Exception as error:
    say({BROKEN!r} + f" {{error!r}}")
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
    code: str = ""  # Python, or a script when `shell`
    shell: bool = False
    argv: tuple[str, ...] = ()  # instead of code; `{OUT}` and its like are filled in; may be refused
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)  # instead of LIMITS
    inputs: dict[str, bytes] = field(default_factory=dict)
    sibling: bool = False  # another command of the same Terminal runs meanwhile
    alone: bool = False  # no other attack runs meanwhile
    heavy: bool = False  # a bomb: not tried where nothing contains it, and few at once
    cancel: bool = False  # the caller goes away when the attack has begun
    meanwhile: Meanwhile | None = None  # done outside while the attack runs
    check: Check = nothing_else  # returns evidence of an escape, or "", beyond what is always looked for
    work: bool = False  # not an attack: ordinary work, which must succeed


def command(attack: Attack, told: dict[str, Any]) -> tuple[tuple[str, ...], str, dict[str, str]]:
    """Returns argv, script and environment of an attack on a ground."""
    names = {name: str(value) for name, value in told.items()}
    env = {**names, "GROUND": json.dumps(told), **{key: value.format(**names) for key, value in attack.env.items()}}
    if attack.argv:
        return tuple(part.format(**names) for part in attack.argv), "", env
    if attack.shell:
        return (), f"echo {BEGUN}\n{attack.code}\n# {names['MARK']}", env
    return (PYTHON, "-I", "-S", "-c", FRAME, names["MARK"], attack.code), "", env
