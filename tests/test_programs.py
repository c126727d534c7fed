"""What may run: a command's program is found as the kernel and execvp(3) find it, and the policy judges what it is."""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from services.common.errors import Refusal
from services.terminal import lookup
from services.terminal.lookup import View
from services.terminal.policy_file import PolicyFile, Rule
from services.terminal.programs import Allowed, Programs
from tests.programs_at_hand import ECHO, PATH, SHELL, Place, outcome, place, policy, refused

__all__ = ["place"]


FREE = Programs(None)

ANOTHER = 60_706  # a user of commands

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
