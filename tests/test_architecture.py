"""Who may import whom, and who may do what: read from the sources, so that a broken rule names its file and line.

Each rule is shown to fail on a small source that breaks it and to pass one that does not.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("services", "client", "stages", "console", "ops", "bench")  # ours, without tests and generated code
MAX_CODE_LINES = 300

# Files that may be longer, and why.
LONG: dict[str, str] = {}  # path → why it may be longer
CORE = ("services/conductor/events.py", "services/conductor/protocol.py", "services/conductor/state/")
# Imported by the core, and so bound by the same rule.
PURE = (*CORE, "services/conductor/idempotency.py", "services/conductor/machines.py", "services/common/errors.py")
IMPURE = {
    "grpc",
    "asyncio",
    "time",
    "random",
    "os",
    "uuid",
    "uuid_utils",
    "secrets",
    "socket",
    "subprocess",
    "threading",
}
IMPURE |= {"datetime", "grpc_status", "uvloop", "apsw", "pathlib", "tempfile", "io"}
STUB_PLACES = {"api.py", "lines.py", "multiplex.py", "service.py", "__main__.py", "server.py"}
ENGINES = ("services.conductor.store.sqlite", "services.conductor.store.postgres")


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, its text, and its tree."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def service(self) -> str:
        """Returns the room below services/ it lives in; "" when it lives elsewhere."""
        parts = self.path.split("/")
        return parts[1] if parts[0] == "services" and len(parts) > 2 else ""

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree; all rules look at the same."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and full name of every import, also those inside functions and of names from packages."""
        return list(self._imports())

    def _imports(self) -> Iterator[tuple[int, str]]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                package = "." * node.level + (node.module or "")
                yield from ((node.lineno, f"{package}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and _named(node.func).endswith(("import_module", "__import__")):
                yield node.lineno, node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yields line and value of every text in the code that is no docstring."""
        said = {id(node.value) for node in self.nodes if isinstance(node, ast.Expr)}
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
                yield node.lineno, node.value

    def uses(self, *names: str) -> Iterator[int]:
        """Yields the lines where a name, or an attribute of that name, is used."""
        for node in self.nodes:
            if _named(node) in names:
                yield node.lineno


def _named(node: ast.AST) -> str:
    """Returns the name, or the attribute's, that a node is; "" when it is neither."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


Rule = Callable[[Source], Iterator[int]]
RULES: dict[str, Rule] = {}


def rule(sentence: str) -> Callable[[Rule], Rule]:
    def named(check: Rule) -> Rule:
        RULES[sentence] = check
        return check

    return named


# ---- who may import whom ----


@rule("a service never imports another service: they meet on the wire only")
def _strangers(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        other = name.split(".")[1] if inside(name, "services") and "." in name else ""
        if source.service not in ("", "common") and other not in ("", "common", source.service):
            yield line


@rule("services/common imports nothing of services but itself")
def _common(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if source.service == "common" and inside(name, "services") and not inside(name, "services.common"):
            yield line


@rule("the core is pure: no grpc, asyncio, clock, random, os, uuid, files, and no stubs")
def _core(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if source.path.startswith(PURE) and (name.split(".")[0] in IMPURE or "_pb2_grpc" in name):
            yield line


@rule("the core imports of services only what is pure itself")
def _core_imports(source: Source) -> Iterator[int]:
    seams = source.path.endswith(("machines.py", "idempotency.py"))  # between the core and the store's value types
    for line, name in source.imports:
        if source.path.startswith(PURE) and inside(name, "services"):
            path = name.replace(".", "/")
            known = any(path.startswith(pure.removesuffix(".py").removesuffix("/")) for pure in PURE)
            if not known and not (seams and inside(name, "services.conductor.store.base")):
                yield line


@rule("api never imports the store, nor views what writes to it")
def _api(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if source.path == "services/conductor/api.py" and inside(name, "services.conductor.store"):
            yield line


@rule("the actor never sees gRPC, nor a concrete store or router")
def _actor(source: Source) -> Iterator[int]:
    concrete = (*ENGINES, "services.conductor.router", "services.conductor.api", "grpc", "grpc_status")
    for line, name in source.imports:
        if source.path == "services/conductor/actor.py" and (inside(name, *concrete) or "_pb2_grpc" in name):
            yield line


@rule("only the store itself names its engines")
def _engines(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        engine = name.startswith(ENGINES)
        if source.service and engine and not source.path.startswith("services/conductor/store/"):
            yield line


@rule("stubs are imported only in api, router, service, __main__ and server, and outside of services")
def _stubs(source: Source) -> Iterator[int]:
    free = not source.service or source.path.split("/")[-1] in STUB_PLACES
    for line, name in source.imports:
        if "_pb2_grpc" in name and not free:
            yield line


@rule("nothing imports tests")
def _tests(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if inside(name, "tests") or inside(name, "pytest", "conftest"):
            yield line


@rule("client and stages import nothing of services")
def _outside(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if source.path.startswith(("client/", "stages/", "console/")) and inside(name, "services", "ops"):
            yield line


@rule("services import neither ops nor client, and imports are absolute")
def _inwards(source: Source) -> Iterator[int]:
    for line, name in source.imports:
        if source.service and (inside(name, "ops", "client", "stages", "bench") or name.startswith(".")):
            yield line


# ---- who may do what ----


@rule("only config.py reads the environment")
def _environment(source: Source) -> Iterator[int]:
    if source.service and source.path != "services/common/config.py":
        yield from source.uses("environ", "environb", "getenv", "getenvb")
        yield from (line for line, name in source.imports if name in ("os.environ", "os.getenv", "os.environb"))


@rule("only status.py makes a status of an error, and only boundary.py asks it to")
def _status(source: Source) -> Iterator[int]:
    if source.service and source.path != "services/common/status.py":
        if source.path != "services/common/boundary.py":
            yield from source.uses("to_status", "abort_with_status")
        yield from source.uses("status_pb2", "abort", "set_code", "set_details")
        yield from (line for line, name in source.imports if "status_pb2" in name)


@rule("only report.py builds a path below reports/")
def _reports(source: Source) -> Iterator[int]:
    if source.service and source.path not in ("services/report_writer/report.py", "services/report_writer/files.py"):
        for line, text in source.texts():
            # A sentence for a person may name the shape of a path; a value may not begin one.
            if "reports/" in text and "<task_id>" not in text:
                yield line


@rule(f"a file has at most {MAX_CODE_LINES} lines of code; longer ones hold two ideas")
def _size(source: Source) -> Iterator[int]:
    if source.text.count("\n") < MAX_CODE_LINES:
        return  # to read the tokens of all files takes seconds
    lines = code_lines(source)
    if source.path not in LONG and len(lines) > MAX_CODE_LINES:
        yield lines[MAX_CODE_LINES]


def code_lines(source: Source) -> list[int]:
    """Returns the numbers of the lines that hold code: not blank, comment or docstring."""
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in source.nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sorted(lines)


def broken(sources: list[Source], sentence: str) -> list[str]:
    """Returns what breaks a rule, as file:line."""
    return [f"{sentence}: {source.path}:{line}" for source in sources for line in RULES[sentence](source)]


# ---- the rules, on this repository ----

SOURCES = [
    Source(path.relative_to(ROOT).as_posix(), path.read_text())
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("sentence", RULES)
def test_rule(sentence: str) -> None:
    assert broken(SOURCES, sentence) == []


def test_every_service_was_read() -> None:
    assert {source.service for source in SOURCES} >= {"common", "conductor"}
    found = {source.path for source in SOURCES}
    assert all(any(path.startswith(pure) for path in found) for pure in PURE), "a rule names a file that is gone"
    assert set(LONG) <= found


def test_an_exception_is_dropped_once_it_is_not_needed() -> None:
    assert [s.path for s in SOURCES if s.path in LONG and len(code_lines(s)) <= MAX_CODE_LINES] == []


def test_packages_of_services_have_no_init_and_none_is_named_like_generated_code() -> None:
    assert sorted((ROOT / "services").rglob("__init__.py")) == []
    assert not (ROOT / "conductor").exists() and not (ROOT / "buf").exists()


# ---- each rule can fail, and does not fail for nothing ----

API, ACTOR, TASK = "services/conductor/api.py", "services/conductor/actor.py", "services/conductor/state/task.py"
WORKER = "services/terminal/service.py"

BREAKS = [
    ("a service never", WORKER, "from services.conductor import events"),
    ("a service never", WORKER, "import services.researcher.index as index"),
    ("a service never", WORKER, "def f():\n    from services import report_writer"),
    ("a service never", WORKER, "import importlib\nimportlib.import_module('services.conductor.actor')"),
    ("services/common imports", "services/common/errors.py", "from services.conductor.events import TYPES"),
    ("the core is pure", TASK, "import time"),
    ("the core is pure", "services/conductor/protocol.py", "from asyncio import Event"),
    ("the core is pure", TASK, "def f():\n    import os.path"),
    ("the core is pure", "services/conductor/events.py", "from conductor.v1 import terminal_pb2_grpc"),
    ("the core imports", TASK, "from services.common.server import new_id"),
    ("the core imports", TASK, "from services.conductor.store.base import Append"),
    ("api never", API, "from services.conductor.store.base import Append"),
    ("api never", API, "from services.conductor import store"),
    ("the actor never", ACTOR, "import grpc"),
    ("the actor never", ACTOR, "from services.conductor.store.sqlite import SqliteStore"),
    ("only the store itself", "services/conductor/views.py", "from services.conductor.store.sqlite import SqliteStore"),
    ("stubs are", "services/terminal/sandbox.py", "from conductor.v1 import terminal_pb2_grpc"),
    ("stubs are", "services/conductor/views.py", "import conductor.v1.conductor_pb2_grpc as stubs"),
    ("nothing imports tests", "ops/demo.py", "from tests.fakes import Workers"),
    ("client and stages", "client/api.py", "from services.common.errors import TABLE"),
    ("client and stages", "stages/train.py", "import services"),
    ("services import neither", WORKER, "from ops.health import SETTINGS"),
    ("services import neither", WORKER, "from . import sandbox"),
    ("only config.py", WORKER, "import os\nos.environ['HOME']"),
    ("only config.py", WORKER, "from os import getenv"),
    ("only status.py", WORKER, "from services.common.status import to_status\nto_status(error, '')"),
    ("only status.py", API, "from google.rpc import status_pb2"),
    ("only status.py", WORKER, "async def Run(self, request, context):\n    await context.abort(code, 'no')"),
    ("only report.py", API, "path = f'reports/{task_id}.md'"),
    ("a file has", WORKER, "x = 1\n" * (MAX_CODE_LINES + 1)),
]
KEEPS = [
    (API, "from services.conductor.views import Views\nfrom conductor.v1 import conductor_pb2_grpc\nimport grpc"),
    (ACTOR, "from services.conductor.store.base import Store\nimport asyncio"),
    (
        TASK,
        "from services.common.errors import typed\nfrom services.conductor.protocol import Given\nimport dataclasses",
    ),
    (WORKER, "from services.terminal import sandbox\nfrom services.common.server import Service"),
    (WORKER, '"""Writes reports/ and reads os.environ."""\n# reports/\n' + "\n# line" * 2 * MAX_CODE_LINES),
    ("services/common/config.py", "import os\nos.environ"),
    ("client/api.py", "from conductor.v1 import conductor_pb2_grpc\nimport os\nos.environ"),
]


@pytest.mark.parametrize(("start", "path", "text"), BREAKS)
def test_a_source_that_breaks_a_rule_is_named_with_its_line(start: str, path: str, text: str) -> None:
    (sentence,) = [sentence for sentence in RULES if sentence.startswith(start)]
    found = broken([Source(path, text)], sentence)
    assert found and found[0].startswith(f"{sentence}: {path}:")


@pytest.mark.parametrize(("path", "text"), KEEPS)
def test_a_source_that_keeps_the_rules_passes_all(path: str, text: str) -> None:
    assert [complaint for sentence in RULES for complaint in broken([Source(path, text)], sentence)] == []


def test_every_rule_is_shown_to_fail() -> None:
    shown = {sentence for sentence in RULES for start, _, _ in BREAKS if sentence.startswith(start)}
    assert shown == set(RULES)
