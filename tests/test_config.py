"""Settings: what stands in the environment is used or refused by name, once, before anything is served."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, project_pb2

from services.common.config import (
    PREFIXES,
    ConductorSettings,
    ConfigError,
    ReportWriterSettings,
    ResearcherSettings,
    TerminalSettings,
    load,
)
from tests.conftest import until

ROOT = Path(__file__).resolve().parent.parent
EVERY = pytest.mark.parametrize("settings", PREFIXES, ids=PREFIXES.values())

# What is expected of a setting, by how its value looks: bad values, and a word of what the message must say.
NUMBERS = (["", "0", "-1", "1.5", "many", " 7", "1e3", "0x10", "NaN"], "whole number above 0")
SECONDS = (["", "0", "-1", "soon", "nan", "inf", "-inf", "1e999"], "seconds above 0")
ADDRESSES = (["", "50051", ":50051", "localhost", "localhost:", "localhost:http", "h:65536", "h:-1"], "host:port")
TARGETS = (["", " ", "a b:1", "a:1\n"], "gRPC target")
PATHS = ([""], "a path")
# Empty means that everything is kept, and 0 that nothing is waited for.
OTHERS = {
    "CONDUCTOR_DRAIN": ([bad for bad in SECONDS[0] if bad != "0"], SECONDS[1]),
    "CONDUCTOR_KEEP_FOR": (SECONDS[0][1:], SECONDS[1]),
    "CONDUCTOR_KEEP_TASKS": (NUMBERS[0][1:], NUMBERS[1]),
    "REPORT_WRITER_KEEP_FILES": (SECONDS[0][1:], SECONDS[1]),
    "RESEARCHER_EXTRAS": (["Semantic", "all", "rerank semantic"], "names of rerank, semantic, separated by commas"),
    "TERMINAL_PATH": (["", "bin", "/bin:", "/bin::/usr/bin", "~/bin", ":/bin"], "absolute folders, separated by ':'"),
    "TERMINAL_TIER": (["", "Best", " strong", "none", "weak"], "one of best, strong, standard, none-i-understand"),
}
FREE_TEXT = {
    *("CONDUCTOR_INSTANCE", "CONDUCTOR_STAGES", "RESEARCHER_ROOTS", "RESEARCHER_SOURCES"),
    *("TERMINAL_DATA", "TERMINAL_FOLDERS", "TERMINAL_POLICY", "TERMINAL_WORKSPACES"),
}


def expected(name: str, value: Any) -> tuple[list[str], str]:
    if name.endswith("_LISTEN"):
        return ADDRESSES
    if name in ("CONDUCTOR_RESEARCHER", "CONDUCTOR_TERMINAL", "CONDUCTOR_REPORT_WRITER"):
        return TARGETS
    if name in OTHERS:
        return OTHERS[name]
    return {int: NUMBERS, float: SECONDS}.get(type(value), PATHS)


def bad_values() -> Iterator[Any]:
    for settings, prefix in PREFIXES.items():
        defaults = load(settings, {})
        for item in fields(settings):
            name = f"{prefix}_{item.name.upper()}"
            bad, says = ([], "") if name in FREE_TEXT else expected(name, getattr(defaults, item.name))
            yield from (pytest.param(settings, name, value, says, id=f"{name}={value!r}") for value in bad)


# ---- load ----


@EVERY
def test_an_empty_environment_gives_the_defaults_and_nobody_listens_beyond_loopback(settings: Any) -> None:
    values = load(settings, {})
    assert values.listen.startswith("127.0.0.1:")
    assert values == load(settings, {"PATH": "/bin", "SOME_LISTEN": "0.0.0.0:1"})
    first = fields(settings)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(values, first, "127.0.0.1:1")


def test_the_services_find_each_other_by_their_defaults() -> None:
    conductor = load(ConductorSettings, {})
    assert conductor.researcher == load(ResearcherSettings, {}).listen
    assert conductor.terminal == load(TerminalSettings, {}).listen
    assert conductor.report_writer == load(ReportWriterSettings, {}).listen
    assert len({load(settings, {}).listen for settings in PREFIXES}) == 4


def test_no_default_of_the_terminal_is_above_its_own_ceiling() -> None:
    terminal = load(TerminalSettings, {})
    ceilings = [item.name for item in fields(TerminalSettings) if hasattr(terminal, item.name.removeprefix("max_"))]
    pairs = [(name.removeprefix("max_"), name) for name in ceilings if name.startswith("max_")]
    assert len(pairs) == 9 and all(getattr(terminal, low) <= getattr(terminal, high) for low, high in pairs)


def test_every_variable_is_read_under_its_documented_name() -> None:
    environ = {
        "CONDUCTOR_LISTEN": "[::1]:0",
        "CONDUCTOR_STORE": "elsewhere.db",
        "CONDUCTOR_RESEARCHER": "dns:///researcher:50052",
        "CONDUCTOR_INSTANCE": "blue",
        "CONDUCTOR_MAX_IN_FLIGHT": "1",
        "CONDUCTOR_HEARTBEAT": "0.5",
    }
    values = load(ConductorSettings, environ)
    assert (values.listen, values.researcher) == ("[::1]:0", "dns:///researcher:50052")
    assert Path(values.store) == Path.cwd() / "elsewhere.db"
    assert (values.instance, values.max_in_flight, values.heartbeat) == ("blue", 1, 0.5)
    assert load(ConductorSettings, {"RESEARCHER_LISTEN": "h:1"}) == load(ConductorSettings, {})  # not another's


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@db:5432/conductor",
        "postgres://db/conductor",
        "postgresql://me@one:1,two:2/conductor?target_session_attrs=primary",
        "postgresql:///conductor?host=/run/postgresql",
    ],
)
def test_a_store_is_the_url_of_a_database_or_the_path_of_a_file(url: str) -> None:
    assert load(ConductorSettings, {"CONDUCTOR_STORE": url}).store == url
    assert load(ConductorSettings, {"CONDUCTOR_STORE": "a:b.db"}).store == Path.cwd() / "a:b.db"


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@db/x", "postgresql:me:secret@db/x", "postgres://me:se cret@db/x", "POSTGRESQL://secret"]
)
def test_another_url_is_refused_and_its_password_is_not_told(url: str) -> None:
    with pytest.raises(ConfigError, match=r"CONDUCTOR_STORE.*postgresql://user:password@host:port/database") as refused:
        load(ConductorSettings, {"CONDUCTOR_STORE": url})
    assert "cret" not in str(refused.value)


def test_roots_are_a_list_of_absolute_folders() -> None:
    assert load(ResearcherSettings, {"RESEARCHER_ROOTS": "/a:b::/c/"}).roots == (
        Path("/a"),
        Path.cwd() / "b",
        Path("/c"),
    )
    assert load(ResearcherSettings, {"RESEARCHER_ROOTS": ""}).roots == ()


def test_a_terminal_lends_no_folders_unless_told() -> None:
    values = load(TerminalSettings, {})
    assert (values.folders, values.data, values.path) == ((), (), "/usr/local/bin:/usr/bin:/bin")
    environ = {"TERMINAL_FOLDERS": "/opt/a:b", "TERMINAL_DATA": "/srv/tables:", "TERMINAL_PATH": "/opt/a/bin:/bin"}
    values = load(TerminalSettings, environ)
    assert (values.folders, values.data) == ((Path("/opt/a"), Path.cwd() / "b"), (Path("/srv/tables"),))
    assert values.path == "/opt/a/bin:/bin"


def test_a_conductor_takes_a_gibibyte_and_our_own_stages_unless_told() -> None:
    values = load(ConductorSettings, {})
    assert (values.max_upload, values.stages) == (1024**3, None)
    values = load(ConductorSettings, {"CONDUCTOR_MAX_UPLOAD": "10", "CONDUCTOR_STAGES": "ours.yaml"})
    assert (values.max_upload, values.stages) == (10, Path.cwd() / "ours.yaml")


def test_everything_is_kept_unless_a_limit_is_named() -> None:
    for environ in ({}, {"CONDUCTOR_KEEP_FOR": "", "CONDUCTOR_KEEP_TASKS": ""}):
        values = load(ConductorSettings, environ)
        assert (values.keep_for, values.keep_tasks) == (None, None)
    values = load(ConductorSettings, {"CONDUCTOR_KEEP_FOR": "2592000", "CONDUCTOR_KEEP_TASKS": "100000"})
    assert (values.keep_for, values.keep_tasks) == (2592000.0, 100000)


def test_a_terminal_takes_the_best_tier_and_no_policy_unless_told() -> None:
    for environ in ({}, {"TERMINAL_POLICY": ""}):
        values = load(TerminalSettings, environ)
        assert (values.tier, values.policy) == ("best", None)
    values = load(TerminalSettings, {"TERMINAL_POLICY": "policy.toml", "TERMINAL_TIER": "none-i-understand"})
    assert (values.tier, values.policy) == ("none-i-understand", Path.cwd() / "policy.toml")


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPORT_WRITER_MAX_BYTES", "123")
    assert load(ReportWriterSettings).max_bytes == 123


@pytest.mark.parametrize(("settings", "name", "value", "says"), list(bad_values()))
def test_a_value_that_cannot_be_used_is_refused_by_name(settings: Any, name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(settings, {name: value})
    message = str(refused.value)
    assert name in message and repr(value) in message and says in message
    assert message.count("\n") == 0 and message.endswith(".")


@pytest.mark.parametrize("name", ["CONDUCTOR_LISTEN", "CONDUCTOR_MAX_QUEUED"])
@pytest.mark.parametrize("digits", ["²", "٣", "9" * 5000])
def test_digits_of_other_scripts_and_endless_ones_are_refused_in_our_words(name: str, digits: str) -> None:
    value = f"127.0.0.1:{digits}" if name.endswith("LISTEN") else digits
    with pytest.raises(ConfigError, match=r"host:port|whole number"):
        load(ConductorSettings, {name: value})


@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_an_instance_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="CONDUCTOR_INSTANCE"):
        load(ConductorSettings, {"CONDUCTOR_INSTANCE": name})


# ---- start ----


async def start(name: str, environ: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", f"services.{name}"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def refuses_to_start(name: str, environ: dict[str, str]) -> str:
    """Expects a service to end with exit code 2 and one sentence; returns it."""
    process = await start(name, environ)
    async with asyncio.timeout(15):
        out, err = await process.communicate()
    lines = [line for line in err.decode().splitlines() if "add_port.cc" not in line]  # gRPC's own word on the port
    assert process.returncode == 2, err.decode()
    assert out == b"" and len(lines) == 1 and lines[0].startswith(f"{name}: ") and lines[0].endswith(".")
    assert "Traceback" not in err.decode()
    return lines[0]


async def test_a_conductor_that_cannot_serve_says_so_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "garbage.db").write_bytes(bytes(range(256)) * 64)
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # it would share its port; that must not happen
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        free = {"CONDUCTOR_LISTEN": "127.0.0.1:0", "CONDUCTOR_STORE": str(tmp_path / "log.db")}
        port = f"127.0.0.1:{busy.getsockname()[1]}"
        cases = {
            "CONDUCTOR_MAX_QUEUED": {**free, "CONDUCTOR_MAX_QUEUED": "lots"},
            port: {**free, "CONDUCTOR_LISTEN": port},
            str(tmp_path / "file"): {**free, "CONDUCTOR_STORE": str(tmp_path / "file" / "log.db")},
            str(tmp_path): {**free, "CONDUCTOR_STORE": str(tmp_path)},
            "garbage.db": {**free, "CONDUCTOR_STORE": str(tmp_path / "garbage.db")},
        }
        told = await asyncio.gather(*(refuses_to_start("conductor", environ) for environ in cases.values()))
    for word, sentence in zip(cases, told, strict=True):
        assert word in sentence
    assert (tmp_path / "garbage.db").read_bytes() == bytes(range(256)) * 64  # what it cannot use it leaves alone


@pytest.mark.parametrize("name", ["researcher", "terminal", "report_writer"])
async def test_a_worker_that_cannot_serve_says_so_in_one_sentence(name: str) -> None:
    variable = f"{name.upper()}_LISTEN"
    assert variable in await refuses_to_start(name, {variable: "nowhere"})


async def test_a_conductor_that_can_serve_keeps_its_log_over_a_restart_and_its_lock_meanwhile(tmp_path: Path) -> None:
    environ = {"CONDUCTOR_LISTEN": f"127.0.0.1:{free_port()}", "CONDUCTOR_STORE": str(tmp_path / "deep" / "log.db")}
    request = conductor_pb2.TransitionToRequest(project_id="p-1", stage_id=project_pb2.STAGE_PARSE_INTENT)
    first = await served(environ, lambda stub: stub.TransitionTo(request))
    sentence = await refuses_to_start("conductor", {**environ, "CONDUCTOR_LISTEN": "127.0.0.1:0"})
    assert "log.db" in sentence  # one store, one process
    first.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(first.wait(), 10) == 0
    states: list[Any] = []

    async def look(stub: Any) -> None:
        states.append(await stub.GetState(conductor_pb2.GetStateRequest(project_id="p-1")))

    second = await served(environ, look)
    assert states[-1].HasField("created_at")
    second.kill()
    await second.communicate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def served(environ: dict[str, str], use: Any) -> asyncio.subprocess.Process:
    """Starts a Conductor and calls it once it answers."""
    process = await start("conductor", environ)
    impatient = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
    async with grpc.aio.insecure_channel(environ["CONDUCTOR_LISTEN"], impatient) as channel:

        async def answers() -> bool:
            assert process.returncode is None
            try:
                await use(conductor_pb2_grpc.ConductorStub(channel))
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE
                return False
            return True

        await until(answers, 15)
    return process
