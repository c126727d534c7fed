"""The job on Restate: the deployment that its server calls. Served by hypercorn, see bench.peers.restate.

`run` does both steps inside the engine's own invocation; `call` reaches each as a service of its own.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import restate  # type: ignore[import-not-found, unused-ignore]  # installed for this comparison only

FINDING = "x" * 2048
RESEARCHER, WRITER = "Researcher", "Writer"


async def research(objective: str) -> str:
    return FINDING


async def write(name: str, finding: str) -> str:
    """Writes the report: temporary name, then rename, no fsync."""
    folder = Path(os.environ["REPORTS"])
    temporary = folder / f"{name}.tmp"
    temporary.write_text(finding)
    temporary.rename(folder / f"{name}.md")
    return f"reports/{name}.md"


async def _run(context: Any, objective: str) -> str:
    finding = await context.run_typed("research", research, objective=objective)
    return str(await context.run_typed("write", write, name=context.key(), finding=finding))


async def _research(_: Any, objective: str) -> str:
    return await research(objective)


async def _write(_: Any, request: dict[str, str]) -> str:
    return await write(**request)


def _service(name: str, handler: str, work: Callable[..., Any]) -> tuple[Any, Any]:
    service = restate.Service(name)
    return service, service.handler(handler)(work)


_researcher, _research_handler = _service(RESEARCHER, "research", _research)
_writer, _write_handler = _service(WRITER, "write", _write)


async def _call(context: Any, objective: str) -> str:
    finding = await context.service_call(_research_handler, arg=objective)
    return str(await context.service_call(_write_handler, arg={"name": context.key(), "finding": finding}))


_run_workflow, _call_workflow = restate.Workflow("Run"), restate.Workflow("Call")
_run_workflow.main("run")(_run)
_call_workflow.main("run")(_call)

job = restate.app([_run_workflow, _call_workflow])
researcher = restate.app([_researcher])
writer = restate.app([_writer])
everything = restate.app([_run_workflow, _call_workflow, _researcher, _writer])
