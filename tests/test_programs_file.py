"""The file of the rules on programs: whatever is wrong in it stops the start and is named."""

import os
from pathlib import Path

import pytest
from conductor.v1 import terminal_pb2

from services.common.config import ConfigError, TerminalSettings, load
from services.terminal import policy_file, programs
from tests.programs_at_hand import ENV, PATH, ROOT, Place, only, place, policy

__all__ = ["place"]


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
