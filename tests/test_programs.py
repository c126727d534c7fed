"""What may run: a command's program is found as the kernel and execvp(3) find it, and the policy judges what it is."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conductor.v1 import error_pb2, terminal_pb2

from services.common import landlock
from services.common.config import ConfigError, TerminalSettings, load
from services.common.errors import Refusal
from services.terminal import lookup, policy_file, programs
from services.terminal.lookup import View
from services.terminal.policy_file import PolicyFile, Rule
from services.terminal.programs import Allowed, Programs
from tests.terminals import PYTHON as PYTHON_OF_COMMANDS
from tests.terminals import open_folder, refusal, run, serving

ROOT = Path(__file__).resolve().parent.parent
PATH = "/usr/local/bin:/usr/bin:/bin"
ECHO = os.path.realpath("/bin/echo")
SHELL = os.path.realpath("/bin/sh")
ENV = os.path.realpath("/usr/bin/env")
FREE = Programs(None)
Reason = error_pb2.ErrorReason
ANOTHER = 60_706  # a user of commands


@dataclass
class Place:
    """A workspace, and outside of it a folder that is none of a command's business."""

    path: Path
    fd: int
    outside: Path

    def view(self, uid: int = 0) -> View:
        return View(os.fsencode(self.path), self.fd, uid)

    def put(self, name: str, content: str = "#!/bin/sh\necho $0\n", mode: int = 0o755) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    def link(self, name: str, target: str | Path) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).symlink_to(target)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "workspace", os.O_RDONLY)
    yield Place(tmp_path / "workspace", fd, tmp_path / "outside")
    os.close(fd)


def policy(place: Place, text: str, **settings: str) -> Programs:
    """Loads a policy file as the service does."""
    file = place.outside / "policy.toml"
    file.write_text(text)
    environ = {f"TERMINAL_{name.upper()}": value for name, value in settings.items()}
    return programs.load(load(TerminalSettings, {"TERMINAL_POLICY": str(file), **environ}))


def refused(rules: Programs, place: Place, program: str | bytes, *, uid: int = 0, **how: Any) -> dict[str, str]:
    """Expects a refusal; returns its reason, message and metadata."""
    path = how.pop("path", PATH)
    with pytest.raises(Refusal) as caught:
        rules.decide(program, path, place.view(uid), **how)
    error = caught.value.error
    reason = Reason.Name(error.reason).removeprefix("ERROR_REASON_")
    return {**error.metadata, "reason": reason, "message": error.message}


def outcome(rules: Programs, place: Place, program: str, path: str | None = PATH) -> Allowed | str:
    """Returns what may run, or the errno that says why it cannot."""
    try:
        return rules.decide(program, path, place.view())
    except Refusal as refusal:
        assert refusal.error.reason == Reason.ERROR_REASON_COMMAND_NOT_STARTED, refusal
        return refusal.error.metadata["errno"]


PYTHON = shutil.which("python3", path=PATH) or "python3"
EXECUTE = "import os, sys; os.execve(sys.argv[1], sys.argv[2:], {})"


def executed(place: Place, allowed: Allowed, *argv: str) -> str:
    """Executes what was allowed as a supervisor does, in the workspace. Returns its output."""
    assert allowed.identity == identity(allowed.path, place.fd)
    command = [PYTHON, "-I", "-S", "-c", EXECUTE, allowed.path, *argv]
    return subprocess.run(command, cwd=place.path, env={}, capture_output=True, check=True).stdout.decode()


def identity(path: bytes, folder: int) -> tuple[int, int, int, int]:
    found = os.stat(path, dir_fd=folder)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# ---- found as execvp(3) and the kernel find it ----


def furnish(place: Place) -> None:
    """Puts into the workspace what a search along PATH may stumble over."""
    place.put("good/tool")
    place.put("other/tool")
    place.put("closed/tool", mode=0o644)
    place.put("here")
    (place.path / "folder" / "tool").mkdir(parents=True)
    place.put("file")
    place.link("dangling/tool", "nowhere")
    place.link("loop/tool", "tool")
    place.link("linked", "good")
    os.mkfifo(place.path / "good" / "pipe", 0o755)
    place.put("good/strange", "no format that the kernel knows\n")
    place.put("good/empty", "")
    place.put("good/lost", "#!/usr/no/such/interpreter\n")
    place.put("good/locked", "#!./closed/tool\n")
    place.put("good/relative", "#!good/tool\n")
    place.put("good/bare", "#!tool\n")
    place.put("good/folder", "#!/usr\n")


SEARCHES = [
    ("tool", "good"),
    ("tool", "other:good"),
    ("tool", "closed:good"),
    ("tool", "closed"),
    ("tool", "folder:good"),
    ("tool", "folder"),
    ("tool", "dangling:good"),
    ("tool", "dangling"),
    ("tool", "loop:good"),
    ("tool", "file:good"),
    ("tool", "linked"),
    ("tool", "good/../other/./"),
    ("tool", "nowhere:good"),
    ("tool", "closed:nowhere"),
    ("here", ""),
    ("here", ":good"),
    ("here", "good:"),
    ("here", "good::other"),
    ("here", "good"),
    ("./here", "good"),
    ("good/tool", ""),
    ("good/tool/", "good"),
    ("good/nothing/../tool", "good"),
    ("file/../good/tool", "good"),
    ("file/", "good"),
    (".", "good"),
    ("..", "good"),
    ("good/", "good"),
    ("pipe", "good"),
    ("strange", "good"),
    ("empty", "good"),
    ("lost", "good"),
    ("locked", "good"),
    ("relative", "good"),
    ("bare", "good"),
    ("folder", "good"),
    ("x" * 255, "good"),
    ("x" * 256, "good"),
    ("x" * 300, "good"),
    ("./" * 2046 + "here", "good"),  # 4,096 bytes: one too many
    ("./" * 2045 + "/here", "good"),
    ("echo", PATH),
    ("awk", PATH),
    ("echo", None),
    ("../" * 40 + "bin/echo", PATH),
    ("/bin//../bin/./echo", PATH),
]


@pytest.mark.parametrize(("program", "path"), SEARCHES, ids=lambda value: str(value)[-30:])
def test_a_program_is_found_where_execvp_finds_it(place: Place, program: str, path: str | None) -> None:
    furnish(place)
    environ = {} if path is None else {"PATH": path}
    # posix_spawnp(3) searches as execvp(3) does and, like the sandbox, hands nothing to a shell. It searches the
    # parent's PATH, so the parent is a process of its own.
    code = (
        "import os, sys\n"
        "try: pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], {})\n"
        "except OSError as error: print(error.errno)\n"
        "else: os.waitpid(pid, 0)\n"
    )
    command = [PYTHON, "-I", "-S", "-c", code, program]
    ours = outcome(FREE, place, program, path)
    theirs = subprocess.run(command, cwd=place.path, env=environ, capture_output=True, check=True).stdout.decode()
    if isinstance(ours, str):
        assert theirs.strip() == str(getattr(errno, ours))
    else:
        assert executed(place, ours, program) == theirs


@pytest.mark.parametrize("newline", ["\n", "", " ", "\t", "\0", "\0junk\n", " -x\n", "\n\n"])
@pytest.mark.parametrize("length", [1, 2, 251, 252, 253, 254, 255, 256])
@pytest.mark.parametrize("blank", ["", " ", "\t \t"])
def test_a_first_line_is_read_as_the_kernel_reads_it(place: Place, blank: str, length: int, newline: str) -> None:
    place.link("i", ECHO)
    name = ("./" * 200)[-(length - 1) :] + "i" if length > 1 else "i"
    place.put("script", f"#!{blank}{name.removeprefix('/')}{newline}")
    try:
        done = subprocess.run(["./script"], cwd=place.path, capture_output=True, check=False)
    except OSError as error:
        assert outcome(FREE, place, "./script") == errno.errorcode[error.errno or 0]
    else:
        assert done.returncode == 0
        assert isinstance(outcome(FREE, place, "./script"), Allowed)


@pytest.mark.parametrize(
    "line", ["#!", "#!\n", "#!   ", "#!   \n", "#! \t" + " " * 300, "#", "", "#!\0", "#!\0\n", " #!/bin/sh\n"]
)
def test_a_first_line_without_a_name_is_no_program(place: Place, line: str) -> None:
    place.put("script", line)
    with pytest.raises(OSError, match="script") as kernel:
        subprocess.run(["./script"], cwd=place.path, capture_output=True, check=False)
    assert outcome(FREE, place, "./script") == errno.errorcode[kernel.value.errno or 0]


@pytest.mark.parametrize("depth", range(1, 9))
def test_interpreters_interpret_each_other_as_deep_as_in_the_kernel(place: Place, depth: int) -> None:
    place.link("0", ECHO)
    for level in range(1, depth + 1):
        place.put(str(level), f"#!./{level - 1}\n")
    try:
        subprocess.run([f"./{depth}"], cwd=place.path, capture_output=True, check=True)
    except OSError as error:
        assert outcome(FREE, place, f"./{depth}") == errno.errorcode[error.errno or 0] == "ELOOP"
    else:
        assert isinstance(outcome(FREE, place, f"./{depth}"), Allowed)


@pytest.mark.parametrize("links", [39, 40, 41])
def test_links_are_followed_as_far_as_in_the_kernel(place: Place, links: int) -> None:
    place.put("0")
    for number in range(1, links + 1):
        place.link(str(number), str(number - 1))
    try:
        (place.path / str(links)).stat()
    except OSError as error:
        assert outcome(FREE, place, f"./{links}") == errno.errorcode[error.errno or 0] == "ELOOP"
    else:
        assert isinstance(outcome(FREE, place, f"./{links}"), Allowed)


def test_a_binary_sees_the_name_that_the_caller_wrote(place: Place) -> None:
    python = os.path.realpath(PYTHON)
    place.link("venv/bin/python", python)
    place.put("venv/pyvenv.cfg", f"home = {Path(python).parent}\n")
    allowed = FREE.decide("venv/bin/python", PATH, place.view())
    assert allowed.path == python.encode()
    code = "import sys; print(sys.prefix)"
    assert executed(place, allowed, "venv/bin/python", "-c", code).strip() == str(place.path / "venv")


def test_a_script_sees_the_name_it_was_found_under(place: Place) -> None:
    place.put("one")
    place.link("bin/two", "../one")  # many programs in one script, told apart by $0
    allowed = FREE.decide("two", "bin", place.view())
    assert executed(place, allowed, "anything").strip() == "bin/two"


def test_what_was_allowed_is_known_again_and_what_replaced_it_is_not(place: Place) -> None:
    tool = place.put("tool")
    allowed = FREE.decide("./tool", PATH, place.view())
    tool.chmod(0o500)
    os.utime(tool, ns=(1, tool.stat().st_mtime_ns))
    assert identity(allowed.path, place.fd) == allowed.identity
    place.put("another", tool.read_text()).replace(tool)
    assert identity(allowed.path, place.fd) != allowed.identity


def test_a_file_replaced_while_it_is_looked_at_is_not_taken_for_another(place: Place) -> None:
    place.put("tool", "#!/bin/sh\n")
    search = lookup.Lookup(place.view())
    found = search.locate(b"./tool")
    place.put("tool", "#!/no/such\n")
    with pytest.raises(OSError, match="Stale"):
        search.interpreter(found)
    (place.path / "tool").unlink()
    os.mkfifo(place.path / "tool", 0o755)  # and does not wait for a writer
    with pytest.raises(OSError, match="Stale"):
        search.interpreter(found)
    (place.path / "tool").unlink()
    place.link("tool", "/bin/sh")
    with pytest.raises(OSError, match="Too many levels"):
        search.interpreter(found)


def test_a_search_without_end_is_cut_off(place: Place) -> None:
    (place.path / "a").mkdir()
    for number in range(40):
        place.link(f"l{number}", "a/../" * 800 + (f"l{number - 1}" if number else "a"))
    path = ":".join(["l39"] * 8000)
    begun = time.monotonic()
    assert outcome(FREE, place, "tool", path) == "ELOOP"
    assert time.monotonic() - begun < 1  # the kernel's own walk would take minutes
    assert outcome(FREE, place, "tool", ":" * 32_000) == "ELOOP"
    assert isinstance(outcome(FREE, place, "echo"), Allowed)


@pytest.mark.parametrize("program", ["", "\0", "/bin/\0echo", "./\0"])
def test_a_name_that_cannot_be_one_is_not_started(place: Place, program: str) -> None:
    assert outcome(FREE, place, program) in ("ENOENT", "EINVAL")


def test_bytes_that_are_no_text_are_found_and_told_in_signs(place: Place) -> None:
    place.put("caf\udce9\n")
    assert FREE.decide(b"./caf\xe9\n", PATH, place.view()).path == b"./caf\xe9\n"
    rules = policy(place, "[[program]]\npath = '/usr/bin/env'\n")
    told = refused(rules, place, b"./caf\xe9\n")
    assert told["reason"] == "PROGRAM_REFUSED" and told["path"].endswith("caf\\xe9\\n")
    place.link("named", "caf\udce9\n")
    assert refused(rules, place, "./named")["path"].endswith("caf\\xe9\\n")
    assert refused(FREE, place, "./caf\udce9")["errno"] == "ENOENT"


# ---- nothing is told of what is outside ----


@pytest.mark.parametrize("uid", [0, ANOTHER])
def test_what_is_outside_answers_alike_whether_it_is_there_or_not(place: Place, uid: int) -> None:
    for name in ("there", "folder/there"):
        (place.outside / name).parent.mkdir(exist_ok=True)
        shutil.copy(ECHO, place.outside / name)
    for there, missing in (("there", "missing"), ("folder/there", "folder/missing"), ("folder", "none")):
        for way in (f"{place.outside}/%s", "../outside/%s", "linked/%s"):
            place.link("linked", place.outside)
            first, second = (refused(FREE, place, way % name, uid=uid) for name in (there, missing))
            assert first["errno"] == second["errno"] == "EACCES"
            assert first["message"].replace(there, "") == second["message"].replace(missing, "")
            (place.path / "linked").unlink()


@pytest.mark.parametrize(
    "program",
    [
        "/proc/self/exe",
        "/proc/self/root/bin/echo",
        "/proc/1/exe",
        "/dev/fd/3",
        "/etc/passwd",
        "/",
        "//",
        "/root/x",
        "/usrx/y",
        "/etc/alternativesx",
    ],
)
def test_nothing_but_programs_and_the_workspace_is_looked_at(place: Place, program: str) -> None:
    assert outcome(FREE, place, program) == "EACCES"


def test_a_folder_outside_is_passed_over_in_a_search_as_if_it_held_nothing(place: Place) -> None:
    shutil.copy(ECHO, place.outside / "tool")
    assert outcome(FREE, place, "tool", f"{place.outside}:/proc/self/cwd:../outside") == "ENOENT"
    allowed = outcome(FREE, place, "echo", f"{place.outside}:{PATH}")
    assert isinstance(allowed, Allowed) and allowed.path == ECHO.encode()


def test_the_workspace_is_seen_through_its_descriptor_under_whatever_path(place: Place) -> None:
    place.put("tool")
    view = View(b"/home/task/", place.fd, 0)  # in a file system of its own
    for program in ("./tool", "/home/task/tool", "/home/task/../task/tool", "../task/tool"):
        assert FREE.decide(program, PATH, view).path == program.encode()
    place.link("sh", "/bin/sh")
    assert FREE.decide("/home/task/sh", PATH, view).path == SHELL.encode()
    empty = View(b"/home/task", -1, 0)
    with pytest.raises(Refusal, match="ENOENT"):
        FREE.decide("./tool", PATH, empty)
    assert FREE.decide("sh", PATH, empty).path == SHELL.encode()
    with pytest.raises(Refusal, match="EACCES"):
        FREE.decide(str(place.path / "tool"), PATH, view)  # the service's own path of it is not the command's


@pytest.fixture
def machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that the test may change."""
    folder = place.outside / "usr"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(lookup, "_FOLDERS", (os.fsencode(folder),))
    return folder


@pytest.mark.parametrize(
    ("folder", "file", "others", "owner"),
    [
        (0o755, 0o755, True, True),
        (0o750, 0o755, False, True),
        (0o754, 0o755, False, True),  # listed, not passed
        (0o755, 0o750, False, True),
        (0o755, 0o754, False, True),
        (0o711, 0o755, True, True),
    ],
)
def test_another_user_finds_what_its_rights_reach(
    place: Place, machine: Path, folder: int, file: int, others: bool, owner: bool
) -> None:
    shutil.copy(ECHO, machine / "bin" / "tool")
    (machine / "bin" / "tool").chmod(file)
    (machine / "bin").chmod(folder)
    for uid, reached in ((ANOTHER, others), (0, owner)):
        for name, errno_of_closed in (("tool", "EACCES"), ("missing", "EACCES" if folder & 0o001 == 0 else "ENOENT")):
            program = str(machine / "bin" / name)
            if reached and name == "tool":
                assert FREE.decide(program, PATH, place.view(uid)).path == program.encode()
            elif uid:
                assert refused(FREE, place, program, uid=uid)["errno"] == errno_of_closed
    if not others and not folder & 0o001:
        told = [refused(FREE, place, str(machine / "bin" / name), uid=ANOTHER)["message"] for name in ("tool", "mist")]
        assert told[0].replace("tool", "") == told[1].replace("mist", "")


def test_a_script_that_cannot_be_read_may_be_anything(place: Place, machine: Path) -> None:
    script = machine / "bin" / "tool"
    script.write_text(f"#!{machine}/bin/secret -c\n")
    script.chmod(0o711)
    allowed = FREE.decide(str(script), PATH, place.view(ANOTHER))  # as the kernel would
    assert allowed.path == os.fsencode(script)
    everything = Rule(f"{machine}/bin/*", {}, loopback=False)
    told = refused(Programs(PolicyFile((everything,), None, None)), place, str(script), uid=ANOTHER)
    assert told["reason"] == "PROGRAM_REFUSED" and "secret" not in told["message"]


# ---- the policy ----


def only(*patterns: str, more: str = "") -> str:
    """Returns a policy of these programs."""
    return "".join(f"[[program]]\npath = '{pattern}'\n" for pattern in patterns) + more


WORKSPACE = "[workspace]\nexecute = true\n"
SCRIPT = "[script]\nallowed = true\n"


def test_without_a_policy_every_program_may_run_and_none_has_loopback(place: Place) -> None:
    rules = programs.load(load(TerminalSettings, {}))
    assert (rules.rules(), rules.execute_paths(), rules.workspace, rules.loopback) == ((), None, True, False)
    place.put("tool")
    for program, script in (("echo", False), ("./tool", False), ("/bin/sh", True)):
        assert rules.decide(program, PATH, place.view(), script=script).ceilings == {}
    told = refused(rules, place, "echo", network=True)
    assert (told["reason"], told["path"]) == ("PROGRAM_REFUSED", ECHO)
    assert "NETWORK_LOOPBACK" in told["message"]


def test_the_executable_is_judged_and_never_the_text(place: Place) -> None:
    rules = policy(place, only(ENV))
    for ways_to_it in ("env", "/usr/bin/env", "/usr/lib/../bin/./env", "./linked", f"{place.path}/linked"):
        (place.path / "linked").unlink(missing_ok=True)
        place.link("linked", "/usr/bin/env")
        assert rules.decide(ways_to_it, PATH, place.view()).path == ENV.encode()
    place.put("env")
    shutil.copy(ENV, place.path / "copied")
    place.link("bin/env", ECHO)
    place.put("usr/bin/env")
    for program, real in {
        "echo": ECHO,
        f"{Path(ENV).parent}/../bin/echo": ECHO,
        "./bin/env": ECHO,
        "./env": f"{place.path}/env",
        "./copied": f"{place.path}/copied",
        "usr/bin/env": f"{place.path}/usr/bin/env",
        "/bin/sh": SHELL,
    }.items():
        told = refused(rules, place, program)
        assert (told["reason"], told["path"], told["program"]) == ("PROGRAM_REFUSED", real[:200], program)
        assert real[:200] in told["message"]
    # The first that is found is the program, not the first that may run.
    assert refused(rules, place, "env", path=f".:{PATH}")["path"] == f"{place.path}/env"[:200]
    for loader in Path("/").glob("lib64/ld-linux*"):
        assert refused(rules, place, str(loader))["reason"] == "PROGRAM_REFUSED"


def test_what_is_missing_is_not_refused_but_not_started(place: Place) -> None:
    rules = policy(place, only(ENV))
    place.put("data", mode=0o644)
    for program, number in {
        "no-such-program": "ENOENT",
        "/usr/bin/no-such-program": "ENOENT",
        "./missing": "ENOENT",
        "./data": "EACCES",
        "/usr/bin": "EACCES",
        "/etc/passwd": "EACCES",
    }.items():
        assert outcome(rules, place, program) == number


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/usr/bin/python3*", "/usr/bin/python3", True),
        ("/usr/bin/python3*", "/usr/bin/python3.11", True),
        ("/usr/bin/python3*", "/usr/bin/python", False),
        ("/usr/bin/python3*", "/usr/bin/python3/x", False),
        ("/usr/bin/python3.?", "/usr/bin/python3.11", False),
        ("/usr/bin/?", "/usr/bin/[", True),
        ("/usr/bin/?", "/usr/bin/\udce9", True),
        ("/usr/bin/[", "/usr/bin/[", True),
        ("/usr/bin/[a]*", "/usr/bin/a", False),
        ("/usr/bin/[a]*", "/usr/bin/[a]b", True),
        ("/usr/bin/[!a]*", "/usr/bin/b", False),
        ("/usr/*/x", "/usr/bin/x", True),
        ("/usr/*/x", "/usr/local/bin/x", False),
        ("/usr/*", "/usr/bin/x", False),
        ("/usr/bin/*", "/usr/bin/.hidden", True),
        ("/usr/bin/X", "/usr/bin/x", False),
        ("/usr/bin/a.c", "/usr/bin/abc", False),
        ("/usr/bin/x", "/usr/bin/x\n", False),
        ("/usr/bin/" + "*a" * 40 + "b", "/usr/bin/" + "a" * 250, False),  # and is told in no time
    ],
)
def test_a_pattern_fits_names_one_by_one(place: Place, pattern: str, path: str, fits: bool) -> None:
    assert programs._matches(pattern.split("/"), path.split("/")) is fits


def test_the_first_rule_that_matches_holds(place: Place) -> None:
    first = f"[[program]]\npath = '{ENV}'\nmax_processes = 3\nmax_wall_time = 1.5\n"
    second = f"[[program]]\npath = '{Path(ENV).parent}/*'\nmax_processes = 2\nloopback = true\n"
    rules = policy(place, first + second)
    assert rules.decide("env", PATH, place.view()).ceilings == {"processes": 3, "wall_time": 1.5}
    assert rules.decide("echo", PATH, place.view(), network=True).ceilings == {"processes": 2}
    assert refused(rules, place, "env", network=True)["reason"] == "PROGRAM_REFUSED"
    assert policy(place, second + first).decide("env", PATH, place.view(), network=True).ceilings == {"processes": 2}
    assert rules.loopback and not policy(place, first).loopback


def test_a_script_needs_its_interpreter_allowed_and_has_the_lower_ceilings(place: Place) -> None:
    place.put("script", "#! /bin/sh -e\n")
    place.put("outer", "#!./script\n")
    told = refused(policy(place, WORKSPACE), place, "./script")
    assert (told["reason"], told["path"]) == ("PROGRAM_REFUSED", SHELL)
    told = refused(policy(place, only(SHELL)), place, "./script")
    assert told["path"] == f"{place.path}/script"[:200] and "workspace" in told["message"]
    shell = f"[[program]]\npath = '{SHELL}'\nmax_processes = 3\nmax_open_files = 50\nloopback = true\n"
    inside = "[workspace]\nexecute = true\nmax_processes = 5\nmax_open_files = 40\n"
    rules = policy(place, shell + inside)
    assert rules.decide("./outer", PATH, place.view()).ceilings == {"processes": 3, "open_files": 40}
    assert refused(rules, place, "./script", network=True)["path"] == f"{place.path}/script"[:200]
    rules = policy(place, shell + inside + "loopback = true\n")
    assert isinstance(rules.decide("./outer", PATH, place.view(), network=True), Allowed)
    strict = policy(place, shell.replace("loopback = true", "") + inside + "loopback = true\n")
    assert refused(strict, place, "./outer", network=True)["path"] == SHELL
    place.put("finder", "#!/usr/bin/env python3\n")
    assert refused(rules, place, "./finder")["path"] == ENV


def test_an_interpreter_of_what_is_refused_is_not_looked_at(place: Place) -> None:
    place.put("script", "#!/usr/no/such/interpreter\n")
    assert refused(policy(place, only(ENV)), place, "./script")["reason"] == "PROGRAM_REFUSED"
    assert outcome(policy(place, WORKSPACE), place, "./script") == "ENOENT"


def test_scripts_are_allowed_with_their_shell_or_not_at_all(place: Place) -> None:
    rules = policy(place, "[script]\nallowed = true\nmax_wall_time = 7\n")
    for script in (True, False):  # the same power, under either name
        allowed = rules.decide("/bin/sh", PATH, place.view(), script=script)
        assert (allowed.path, allowed.ceilings) == (SHELL.encode(), {"wall_time": 7})
    assert refused(rules, place, "env")["reason"] == "PROGRAM_REFUSED"
    both = policy(place, only(SHELL, more="max_processes = 3\n[script]\nallowed = true\nmax_wall_time = 7\n"))
    assert both.decide("/bin/sh", PATH, place.view(), script=True).ceilings == {"wall_time": 7}
    assert both.decide("/bin/sh", PATH, place.view()).ceilings == {"processes": 3}
    for text in (only(SHELL), only(SHELL, more="[script]\nallowed = false\n")):
        rules = policy(place, text)
        assert refused(rules, place, "/bin/sh", script=True)["reason"] == "PROGRAM_REFUSED"
        assert rules.decide("/bin/sh", PATH, place.view()).path == SHELL.encode()


def test_the_rules_are_told_in_order(place: Place) -> None:
    rules = policy(place, only(ENV, "/usr/bin/x*", more=WORKSPACE + SCRIPT))
    assert [rule.path for rule in rules.rules()] == [ENV, "/usr/bin/x*", SHELL, "$HOME/**"]
    assert rules.workspace and not policy(place, only(ENV, more="[workspace]\nexecute = false\n")).workspace


def test_what_may_be_executed_is_what_is_allowed_with_the_loader(place: Place) -> None:
    paths = policy(place, only(ENV, "/usr/bin/no-such-program")).execute_paths()
    assert paths is not None and ENV in paths and SHELL not in paths
    others = [Path(path) for path in paths if path != ENV]
    assert others and all(path.name.startswith("ld-") and not path.is_symlink() for path in others)
    assert SHELL in (policy(place, SCRIPT).execute_paths() or ())


def test_patterns_become_files_and_a_whole_folder_the_folder(place: Place, tmp_path: Path) -> None:
    for name in ("bin/a1", "bin/a2", "bin/b", "lib/x/tool", "lib/y/tool", "deep/tool", "deep/sub/tool"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).touch(0o755)
    (tmp_path / "m/bin/a3").touch(0o644)
    (tmp_path / "m/bin/a4").symlink_to("b")
    (tmp_path / "m/lib/z").symlink_to("x")
    (tmp_path / "m/lib/file").touch(0o755)
    for pattern, found in {
        "bin/a*": ["bin/a1", "bin/a2"],
        "bin/*": ["bin"],  # a rule of the kernel for each file of /usr/bin would slow the start of every command
        "lib/*/tool": ["lib/x/tool", "lib/y/tool"],
        "lib/*/*": ["lib/x", "lib/y"],
        "deep/*": ["deep/tool"],  # the folder would let what lies below be executed too
        "bin/a4": [],
        "bin/none": [],
        "none/*": [],
        "bin/b/*": [],
    }.items():
        assert sorted(programs._expand(f"{tmp_path}/m/{pattern}")) == [f"{tmp_path}/m/{name}" for name in found]


def test_a_rule_that_matches_nothing_is_told_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    policy(place, only(ENV, "/usr/bin/no-such-program*"))
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "/usr/bin/no-such-program* matches no program of this machine"
    ]


# Takes the paths of a policy as a supervisor does, and executes a command under them.
CONFINED = """
import json, os, sys
from services.common import kernel, landlock
from services.terminal import policy
executables, home, argv = json.loads(sys.argv[1])
paths = [*policy.of_tier("standard", tuple(executables)).paths, (home, landlock.WORKSPACE & ~landlock.EXECUTE)]
ruleset = landlock.build(landlock.abi(), paths, False)
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
landlock.restrict(ruleset)
os.execv(argv[0], argv)
"""


def confined(place: Place, rules: Programs, *argv: str) -> "subprocess.CompletedProcess[str]":
    told = json.dumps([rules.execute_paths(), str(place.path), argv])
    command = [sys.executable, "-c", CONFINED, told]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not landlock.abi(), reason="the kernel has no Landlock")
def test_the_kernel_holds_what_a_program_starts_to_the_policy(place: Place) -> None:
    place.put("copy").write_bytes(Path(ECHO).read_bytes())
    place.link("named", ECHO)
    rules = policy(place, only(ENV, more=SCRIPT))
    assert confined(place, rules, "/bin/sh", "-c", "env -i A=1 env").stdout == "A=1\n"  # with its libraries
    for refused_one in (ECHO, f"{place.path}/copy", f"{place.path}/named"):
        for way in (["/bin/sh", "-c", f"{refused_one} ran"], ["/bin/sh", "-c", f"exec env {refused_one} ran"]):
            done = confined(place, rules, *way)
            assert (done.stdout, done.returncode) == ("", 126) and "ermission denied" in done.stderr
    allowed = policy(place, only(ENV, ECHO, more=SCRIPT))
    assert confined(place, allowed, "/bin/sh", "-c", f"{place.path}/named ran").stdout == "ran\n"
    everything = policy(place, only(f"{Path(ECHO).parent}/*"))
    assert confined(place, everything, "/bin/sh", "-c", "env echo ran").stdout == "ran\n"


PYTHON_RESOLVED = os.path.realpath(PYTHON_OF_COMMANDS)
COPIED = """
import os, shutil, subprocess
shutil.copy(ECHO, "copy")
shutil.copy(SHELL, "sh")
for argv in (["env", "-i"], [ECHO, "ran"], ["./copy", "ran"], ["./sh", "-c", ":"], ["../" * 40 + ECHO[1:], "ran"]):
    try:
        print(subprocess.run(argv).returncode, end=" ", flush=True)
    except OSError as error:
        print(type(error).__name__, end=" ", flush=True)
"""


@pytest.mark.parametrize("tier", ["standard", "strong"])
async def test_a_terminal_holds_commands_to_the_policy(tier: str) -> None:
    code = COPIED.replace("SHELL", repr(SHELL)).replace("ECHO", repr(ECHO))
    with open_folder() as folder:
        text = only(ENV, PYTHON_RESOLVED, more="max_output_bytes = 1000\n[workspace]\nexecute = false\n")
        (folder / "policy.toml").write_text(text)
        with serving(folder, tier=tier, policy=str(folder / "policy.toml")) as service:
            async with service.stub() as stub:
                told = await stub.GetCapabilities(terminal_pb2.GetCapabilitiesRequest())
                if not told.available:
                    pytest.skip(told.unavailable_reason)
                assert [rule.path for rule in told.programs] == [ENV, PYTHON_RESOLVED] and not told.loopback
                assert told.programs[1].max_limits == terminal_pb2.Limits(output_bytes=1000)
                story = await run(stub, PYTHON_OF_COMMANDS, "-c", code)
                assert story.stdout.split() == [b"0"] + [b"PermissionError"] * 4, story.stderr
                assert story.result and story.result.limits.output_bytes == 1000
                for argv in (["echo", "ran"], ["/bin/sh", "-c", ":"]):
                    async with refusal("PROGRAM_REFUSED") as why:
                        await run(stub, *argv)
                    assert why["path"] in (ECHO, SHELL) and why["path"] in why["message"]
                async with refusal("PROGRAM_REFUSED") as why:
                    await run(stub, script="exit 0")
                assert "argv" in why["message"]
                async with refusal("COMMAND_NOT_STARTED"):
                    await run(stub, "no-such-program")


def test_a_terminal_with_a_mistake_in_its_policy_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[[program]]\npath = 'env'\n")
    said = pytest.raises(AssertionError, match=r"terminal: TERMINAL_POLICY=.*\[\[program\]\] 1, 'path' = 'env'")
    with said, serving(tmp_path, policy=str(tmp_path / "policy.toml")):
        pass


# ---- the file ----


LINK = next((path for path in ("/bin", "/bin/sh", "/usr/bin/awk", "/usr/bin/python3") if Path(path).is_symlink()), "")
GOOD = only(ENV)
MISTAKES: list[tuple[str | bytes, tuple[str, ...]]] = [
    ("", ("program",)),
    ("[workspace]\nexecute = false\n", ("at least one program",)),
    ("program = []", ("at least one program",)),
    ("not toml", ("no TOML", "line 1")),
    ("a = 1\n\x00", ("no TOML",)),
    (b"# \xff", ("UTF-8", "byte 2")),
    ("#" * 300_000, ("larger than 262144 bytes",)),
    ("x = " + "[" * 5000, ("nested",)),
    ("x = " + "9" * 5000, ("no TOML",)),
    ("[[programs]]\npath = '/usr/bin/env'", ("the file", "'programs'", "program, workspace, script")),
    ("[program]\npath = '/usr/bin/env'", ("the file", "'program'", "[[program]]")),
    ("program = [1]", ("[[program]] 1", "table")),
    ("workspace = true", ("[workspace]", "table")),
    ("[[workspace]]\nexecute = true", ("[workspace]", "table")),
    ("[workspace]\n", ("[workspace]", "'execute'", "true or false")),
    ("[workspace]\nexecute = 1", ("[workspace]", "'execute' = 1", "true or false")),
    ("[script]\nallowed = 'yes'", ("[script]", "'allowed' = 'yes'", "true or false")),
    ("[script]\nexecute = true", ("[script]", "'execute'", "no such key", "allowed, loopback, max_wall_time")),
    (GOOD + "[[program]]\n", ("[[program]] 2", "'path'", "in quotes")),
    (GOOD + GOOD, ("twice", ENV)),
    ("[[program]]\npath = 3", ("[[program]] 1", "'path' = 3", "in quotes")),
    ("[[program]]\npath = ['/usr/bin/env']", ("[[program]] 1", "'path'")),
    (GOOD + "max_memory = 3", ("[[program]] 1", "'max_memory'", "no such key", "max_memory_bytes")),
    (GOOD + "loopback = 'no'", ("[[program]] 1", "'loopback' = 'no'", "true or false")),
]
PATHS = ["", "env", "./env", "usr/bin/env", "/", "/usr", "/usr/", "/usr/bin/", "/usr//env", "/usr/./env", "/usr/../env"]
PATHS += ["~/x", "$HOME/x", "/usr/bin/**", "/usr/**/x", "/*/bin/x", "/u?r/x", "/opt/x", "/home/x", "/proc/self/exe"]
PATHS += ["/usr/bin/\\u0000", "/usr/bin/\\n", "/usr/bin/" + "x" * 4096, "/usrlocal/x"]
MISTAKES += [(f'[[program]]\npath = "{path}"', ("[[program]] 1", "'path'")) for path in PATHS]
NUMBERS = ["0", "-1", "true", "'1'", "1.5", "1e3", "nan", "[1]", "99999999999999999999", "0x" + "f" * 4000]
MISTAKES += [(GOOD + f"max_processes = {value}", ("[[program]] 1", "'max_processes'", "512")) for value in NUMBERS]
TIMES = ["0", "-1", "0.0", "-0.5", "nan", "inf", "-inf", "true", "'1'", "3600.1", "1979-05-27", "9" * 300]
MISTAKES += [(GOOD + f"max_wall_time = {value}", ("[[program]] 1", "'max_wall_time'", "3600")) for value in TIMES]


@pytest.mark.parametrize(("text", "says"), MISTAKES, ids=lambda value: repr(value)[-40:])
def test_a_mistake_in_the_file_stops_the_start(place: Place, text: str | bytes, says: tuple[str, ...]) -> None:
    file = place.outside / "policy.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        programs.load(load(TerminalSettings, {"TERMINAL_POLICY": str(file)}))
    message = str(caught.value)
    assert message.startswith(f"TERMINAL_POLICY='{file}' cannot be used: ") and message.endswith(".")
    assert message.isprintable() and len(message) < 600
    for word in says:
        assert word in message


@pytest.mark.skipif(not LINK, reason="no program is known by a link on this machine")
def test_a_pattern_that_a_link_keeps_from_matching_is_refused_with_what_it_leads_to(place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(place, only(LINK if LINK != "/bin" else "/bin/e*"))
    assert f"the link {LINK} leads to" in str(caught.value) and os.path.realpath(LINK) in str(caught.value)


@pytest.mark.parametrize("name", [*policy_file.TIMES, *policy_file.NUMBERS])
def test_every_limit_can_be_lowered_to_the_operators_own_ceiling_and_no_further(place: Place, name: str) -> None:
    highest = getattr(load(TerminalSettings, {}), f"max_{name}")
    text = only(ENV, more=f"max_{name} = {highest}\n")
    assert policy(place, text).decide("env", PATH, place.view()).ceilings == {name: highest}
    with pytest.raises(ConfigError, match=f"TERMINAL_MAX_{name.upper()}"):
        policy(place, text, **{f"max_{name}": "1" if highest > 1 else "0.5"})


def test_the_limits_are_those_of_the_contract() -> None:
    assert {*policy_file.TIMES, *policy_file.NUMBERS} == set(terminal_pb2.Limits.DESCRIPTOR.fields_by_name)


def test_a_file_that_cannot_be_read_stops_the_start(place: Place) -> None:
    os.mkfifo(place.outside / "pipe")  # nobody writes to it
    (place.outside / "folder").mkdir()
    place.link("broken", "nowhere")
    for path in ("missing", "pipe", "folder", "../workspace/broken", "missing/below"):
        settings = load(TerminalSettings, {"TERMINAL_POLICY": str(place.outside / path)})
        why = "it is no file" if path == "pipe" else ".*"
        with pytest.raises(ConfigError, match=rf"^TERMINAL_POLICY='.*' cannot be used: {why}\.$"):
            programs.load(settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_is_closed_to_the_service_stops_the_start(place: Place) -> None:
    (place.outside / "policy.toml").touch(0o000)
    with pytest.raises(ConfigError, match="Permission denied"):
        programs.load(load(TerminalSettings, {"TERMINAL_POLICY": str(place.outside / "policy.toml")}))


def test_the_example_can_be_used(place: Place) -> None:
    text = (ROOT / "docs" / "terminal-policy.example.toml").read_text()
    if any(Path(f"/usr/bin/{name}").is_symlink() for name in ("make",)):
        pytest.skip("make is a link on this machine")
    rules = policy(place, text)
    assert rules.workspace and rules.loopback and len(rules.rules()) == 5
    assert all(f"max_{name}" in text for name in (*policy_file.TIMES, *policy_file.NUMBERS))
