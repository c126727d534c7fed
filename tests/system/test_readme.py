"""The README's commands, run as they stand there against a running system; only the address is another."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
EDGE = "127.0.0.1:8080"
TIMED_OUT = 28  # curl's exit code when --max-time ends a stream, which has no end of its own


async def run(stack: Stack, command: str) -> tuple[int, str]:
    """Runs one command of the README; returns its exit code and output."""
    there = command.replace(EDGE, stack.addresses["envoy"]).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    there = there.replace("curl ", "curl -fsS --max-time 3 " if "curl -N" in command else "curl -fsS --max-time 60 ")
    addresses = {"CONDUCTOR_TARGET": stack.addresses["envoy"], "CONDUCTOR_RESEARCHER": stack.addresses["researcher"]}
    environ = {**os.environ, **addresses}
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-c", there], capture_output=True, text=True, timeout=90, env=environ, check=False
    )
    return done.returncode, done.stdout + done.stderr


def commands() -> list[str]:
    """Returns every command but make's, in order; a line that ends in a backslash or an open quote goes on."""
    found: list[str] = []
    for block in (text for kind, text in BLOCKS if kind == "sh"):
        for line in block.splitlines():
            if found and (found[-1].endswith("\\") or found[-1].count("'") % 2):
                found[-1] += f"\n{line}"
            else:
                found.append(line)
    return [command for command in found if not command.startswith("make ")]


def test_the_readme_names_only_targets_that_make_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "up"} <= named <= targets


@pytest.mark.asyncio(loop_scope="session")
async def test_every_command_of_the_readme_does_what_it_says(shared: Stack) -> None:
    assert len(commands()) >= 6
    outputs: list[str] = []
    shown = json.loads(next(text for kind, text in BLOCKS if kind == "json"))
    for command in commands():
        if outputs:  # the id that was shown belongs to another day
            command = command.replace(shown["task_id"], json.loads(outputs[0])["task_id"])
        code, output = await run(shared, command)
        assert code == 0 or (code == TIMED_OUT and "curl -N" in command), (command, output)
        outputs.append(output)
    answer = json.loads(outputs[0])
    assert answer.keys() == shown.keys() and answer["status"] == shown["status"]
    states = [json.loads(output) for output in outputs if output.startswith("{") and '"current_stage"' in output]
    assert states[-1]["current_stage"] == "STAGE_DATA_SOURCE", "the gate that was walked through by hand"
    assert outputs[-1].startswith("p2") and "run " in outputs[-1], "the run that was started"
