"""Decides which programs may run, by the operator's policy, on the executable that a command's program resolves to.

A script's interpreter must be allowed as well as the script. What an allowed program starts in turn is the kernel's to
judge: `execute_paths` is what Landlock may let be executed. An allowed interpreter can do what any program can, and the
loader, which every program needs, can load any readable ELF file: a policy narrows what runs by its own name and keeps
honest callers to it, and the sandbox is what contains a hostile one.
"""

import errno
import fnmatch
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.config import TerminalSettings
from services.common.errors import Reason, Refusal
from services.terminal import policy_file, refusals
from services.terminal.lookup import Found, Identity, Lookup, Unreadable, View
from services.terminal.policy_file import SHELL, PolicyFile, Rule
from services.terminal.running import NotStarted

log = logging.getLogger(__name__)

INTERPRETERS = 5  # that may interpret each other; exec_binprm of the kernel
# The kernel opens the loader of a program as a program. Libraries it only reads.
LOADERS = ("lib64/ld-linux*.so.*", "lib/ld-linux*.so.*", "lib/ld-musl-*.so.1")
SHOWN = 200  # characters of a path in a message
_ANY = Rule("", {}, loopback=False)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A program that may run.

    Args:
        path: for execve(2): the real path of a binary; of a script the path it was found under, which is its $0.
        identity: what `path` must still be when it is executed: st_dev, st_ino, st_size, st_mtime_ns of stat(2).
        ceilings: of its limits, named as in the contract; only those that the policy sets.
    """

    path: bytes
    identity: Identity
    ceilings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Programs:
    """The operator's policy; None lets every program of the machine and of the workspace run."""

    policy: PolicyFile | None

    @property
    def workspace(self) -> bool:
        """Whether programs in the workspace may be executed."""
        return self.policy is None or self.policy.workspace is not None

    @property
    def loopback(self) -> bool:
        """Whether any program may ask for NETWORK_LOOPBACK."""
        return any(rule.loopback for rule in self.rules())

    def rules(self) -> tuple[Rule, ...]:
        """Returns what may run, in the order it is looked through. Empty when every program may."""
        if self.policy is None:
            return ()
        others = (self.policy.script, self.policy.workspace)
        return (*self.policy.programs, *(rule for rule in others if rule is not None))

    def execute_paths(self) -> tuple[str, ...] | None:
        """Returns the files and folders, beyond the workspace, that must be executable; None: all folders of programs.

        Reads the machine's folders as they are now: a program that is installed under a new path needs a restart.
        """
        if self.policy is None:
            return None
        loaders = {str(path.resolve()) for pattern in LOADERS for path in Path("/").glob(pattern)}
        found = {path for rule in self.policy.programs for path in _expand(rule.path)}
        shell = {self.policy.script.path} if self.policy.script else set()
        return tuple(sorted(loaders | found | shell))

    def decide(
        self, program: str | bytes, path: str | bytes | None, view: View, network: bool = False, script: bool = False
    ) -> Allowed:
        """Finds a command's program and says whether it may run.

        Args:
            program: argv[0].
            path: the command's own PATH, along which it is looked up.
            view: what the command sees of the file system.
            network: whether it asks for NETWORK_LOOPBACK.
            script: whether `program` is the shell of a request that gave a script.

        Raises PROGRAM_REFUSED, or COMMAND_NOT_STARTED for what is missing or cannot be executed. The service may see
        more than the command: neither tells more than the command's own user could learn of the same paths.
        """
        name = _bytes(program)
        try:
            return self._decide(name, None if path is None else _bytes(path), Lookup(view), network, script)
        except OSError as error:
            shown = NotStarted("program", error.errno or errno.EIO)
            raise refusals.not_started(shown, _text(name)) from None

    def _decide(self, name: bytes, path: bytes | None, lookup: Lookup, network: bool, script: bool) -> Allowed:
        if script and self.policy is not None and self.policy.script is None:
            raise _refused(name, SHELL.encode(), "is not allowed to run scripts: name the program in `argv`")
        found = lookup.search(name, path)
        chain = [(found, self._rule(name, found, script))]
        # Each is allowed before its own first line is read.
        chain += ((each, self._rule(name, each, script=False)) for each in self._interpreters(lookup, name, found))
        for used, rule in chain:
            if network and not rule.loopback:
                raise _refused(name, used.real, "is not allowed to ask for NETWORK_LOOPBACK")
        ceilings: dict[str, float] = {}
        for _, rule in chain:
            ceilings |= {key: min(value, ceilings.get(key, value)) for key, value in rule.ceilings.items()}
        return Allowed(found.real if len(chain) == 1 else found.name, found.identity, ceilings)

    def _interpreters(self, lookup: Lookup, name: bytes, found: Found) -> Iterator[Found]:
        for _ in range(INTERPRETERS + 1):
            try:
                line = lookup.interpreter(found)
            except Unreadable:
                if self.policy is None:
                    return  # the kernel may be able to execute it all the same
                raise _refused(name, found.real, "cannot be read, so nobody can tell what interprets it") from None
            if line is None:
                return
            found = lookup.locate(line)
            yield found
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _rule(self, name: bytes, found: Found, script: bool) -> Rule:
        """Returns the rule that allows a file. Raises PROGRAM_REFUSED."""
        if self.policy is None:
            return _ANY
        if script and self.policy.script:
            return self.policy.script
        if found.inside:
            if self.policy.workspace:
                return self.policy.workspace
            raise _refused(name, found.real, "lies in the workspace, where nothing may be executed")
        real = os.fsdecode(found.real)
        for rule in (*self.policy.programs, *([self.policy.script] if self.policy.script else [])):
            if _matches(rule.path.split("/"), real.split("/")):
                return rule
        raise _refused(name, found.real, "is none of the programs that may run")


def load(settings: TerminalSettings) -> Programs:
    """Reads the policy that the settings name. Raises ConfigError."""
    if settings.policy is None:
        return Programs(None)
    policy = policy_file.read(settings.policy, settings)
    for rule in policy.programs:
        if next(_expand(rule.path), None) is None:
            log.warning("policy %s: %s matches no program of this machine", settings.policy, rule.path)
    return Programs(policy)


def _matches(pattern: list[str], path: list[str]) -> bool:
    return len(pattern) == len(path) and all(map(_fits, path, pattern))


def _fits(name: str, pattern: str) -> bool:
    # A bracket is part of a name here: there is a program called `[`.
    return name == pattern or (_is_open(pattern) and fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")))


def _is_open(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def _expand(pattern: str) -> Iterator[str]:
    """Yields the executables that match; in place of all in a folder the folder, where that means the same."""
    *above, last = pattern.split("/")[1:]
    folders = [""]
    for part in above:
        if _is_open(part):
            folders = [entry.path for folder in folders for entry in _entries(folder, part) if _is_folder(entry)]
        else:
            folders = [f"{folder}/{part}" for folder in folders]
    for folder in folders:
        if last == "*" and os.path.isdir(folder) and not any(_is_folder(entry) for entry in _entries(folder, last)):  # noqa: PTH112
            yield folder
        else:
            yield from (entry.path for entry in _entries(folder, last) if _is_program(entry))


def _entries(folder: str, pattern: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder or "/") as entries:
            return [entry for entry in entries if _fits(entry.name, pattern)]
    except OSError:
        return []  # it is missing, or nobody's to read: nothing in it can be named


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_program(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file(follow_symlinks=False) and bool(entry.stat(follow_symlinks=False).st_mode & 0o111)


def _refused(name: bytes, real: bytes, why: str) -> Refusal:
    program, path = _text(name), _text(real)
    text = (
        f"The operator's policy refuses {program}: {path} {why}. GetCapabilities lists what may run; the operator's "
        "TERMINAL_POLICY can allow more."
    )
    return Refusal(Reason.ERROR_REASON_PROGRAM_REFUSED, text, program=program, path=path)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _text(path: bytes) -> str:
    shown = path[:SHOWN].decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in shown)
