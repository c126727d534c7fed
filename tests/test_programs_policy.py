"""The operator's rules on programs: which holds, what it covers, and that the kernel keeps to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conductor.v1 import terminal_pb2

from services.common import landlock
from services.common.config import TerminalSettings, load
from services.terminal import programs
from services.terminal.programs import Allowed, Programs
from tests.programs_at_hand import ECHO, ENV, PATH, ROOT, SHELL, Place, only, outcome, place, policy, refused
from tests.terminals import PYTHON as PYTHON_OF_COMMANDS
from tests.terminals import open_folder, refusal, run, serving

__all__ = ["place"]


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
