"""The file that lets the Researcher out, read as data: it opens one way for one service and changes nothing else."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.envoy import ROOT
from services.common.config import ResearcherSettings, load
from services.researcher.extract.reading import Parsers
from services.researcher.registry import WEB, Registry
from tests.researchers import settings_of

NAME = "docker-compose.web.yml"
BASE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
MORE: dict[str, Any] = yaml.safe_load((ROOT / NAME).read_text())
RESEARCHER = MORE["services"]["researcher"]
MANUAL = (ROOT / "docs" / "operations.md").read_text()


def test_without_it_the_researcher_has_no_way_out() -> None:
    assert all(BASE["networks"][name]["internal"] for name in BASE["services"]["researcher"]["networks"])


def test_it_opens_a_network_to_the_researcher_and_to_nobody_else() -> None:
    assert MORE.keys() == {"services", "networks"} and MORE["services"].keys() == {"researcher"}
    (only,) = RESEARCHER["networks"]
    assert MORE["networks"] == {only: {}} and only not in BASE["networks"]
    assert RESEARCHER.keys() == {"environment", "env_file", "volumes", "networks"}


def test_what_it_mounts_is_what_the_service_reads_and_cannot_be_written() -> None:
    (mount,) = RESEARCHER["volumes"]
    assert mount["read_only"] is True and mount["bind"] == {"create_host_path": False}
    settings = load(ResearcherSettings, RESEARCHER["environment"])
    assert settings.sources == Path(mount["target"])
    assert (ROOT / mount["source"]).parent == ROOT


def test_keys_stay_out_of_git() -> None:
    (keys,) = RESEARCHER["env_file"]
    assert keys["path"].removeprefix("./").split("/")[0] + "/" in (ROOT / ".gitignore").read_text().splitlines()
    assert keys["required"] is False


def test_the_manual_tells_how_and_its_example_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_KEY", "a key")
    assert f"docker compose -f docker-compose.yml -f {NAME} up" in MANUAL
    (example,) = re.findall(r"```toml\n(# sources\.toml\n.*?)```", MANUAL, re.DOTALL)
    assert RESEARCHER["env_file"][0]["path"].removeprefix("./") in MANUAL
    parsers = Parsers()
    settings = load(ResearcherSettings, settings_of(tmp_path))
    registry = Registry(settings, tomllib.loads(example), parsers, None)
    try:
        assert WEB in [source.name for source in registry.all()]
    finally:
        registry.close()
        parsers.close()


def test_a_compose_that_is_installed_puts_both_together(tmp_path: Path) -> None:
    client = shutil.which("docker")
    if client is None or subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose on this machine")
    files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(ROOT / NAME)]
    command = [client, "compose", *files, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    researcher = json.loads(done.stdout)["services"]["researcher"]
    assert researcher["networks"].keys() == {"research", "web"}
    assert researcher["environment"]["RESEARCHER_ROOTS"] == "/documents"
    assert {mount["target"] for mount in researcher["volumes"]} == {
        "/documents",
        "/research",
        "/reports",
        "/sources.toml",
    }
