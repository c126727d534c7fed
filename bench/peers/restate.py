"""Restate beside Conductor: the same job, on the same machine, one after the other. Nothing of the project needs it.

    python3 -m venv var/peer && var/peer/bin/pip install restate-sdk hypercorn aiohttp
    npm install --prefix var/peer @restatedev/restate-server
    var/peer/bin/python -m bench.peers.restate var/peer/node_modules/@restatedev/*/bin/restate-server [--quick]

`run`: steps inside the engine, one hypercorn process. `call`: steps are services of their own, still in that one
process. `apart`: the same with three processes, as Conductor's workers are. The server runs with its defaults: a
replicated log of one node that syncs before it acknowledges. Prints JSON.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp  # type: ignore[import-not-found, unused-ignore]  # installed for this comparison only

from bench import processes
from bench.conditions import now, percentiles

IN_FLIGHT = 64
COUNTS = {False: (500, 6000, 500), True: (64, 300, 30)}  # warm-up, throughput, one at a time; by --quick
FORMS: Mapping[str, tuple[str, Sequence[str]]] = {
    "run": ("Run", ("everything",)),
    "call": ("Call", ("everything",)),
    "apart": ("Call", ("job", "researcher", "writer")),
}
INGRESS, ADMIN, NODE, APPS = 18080, 19070, 15122, 19080
OBJECTIVE = "Compare the durable orchestration engines on the job of submit, research, report. " * 2
READY_S, POLL_S = 30.0, 0.1
ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()


@contextlib.asynccontextmanager
async def started(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> AsyncIterator[int]:
    """Runs a process in a group of its own; gives its id."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, cwd=ROOT, env={**os.environ, **environ}, process_group=0
        )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def ready(client: Any, method: str, url: str, **how: Any) -> None:
    """Asks until the answer is good. Raises TimeoutError after READY_S."""
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.request(method, url, **how) as answer:
                    if answer.ok:
                        return
            await asyncio.sleep(POLL_S)


async def task(client: Any, workflow: str, path: str = "run") -> float:
    """Runs one task to its end, or submits it with `run/send`; returns the milliseconds to the answer."""
    key = f"{time.time_ns()}-{next(_numbers)}"
    start = time.perf_counter()
    async with client.post(f"http://127.0.0.1:{INGRESS}/{workflow}/{key}/{path}", json=OBJECTIVE) as answer:
        answer.raise_for_status()
        await answer.read()
    taken = (time.perf_counter() - start) * 1e3
    if path != "run":  # its end is waited for, so that one is in flight at a time
        url = f"http://127.0.0.1:{INGRESS}/restate/workflow/{workflow}/{key}/attach"
        async with client.get(url) as answer:
            answer.raise_for_status()
    return taken


async def tasks(client: Any, workflow: str, count: int, in_flight: int) -> list[float]:
    """Runs tasks in closed loops; returns their milliseconds."""
    taken: list[float] = []
    numbers = iter(range(count))

    async def loop() -> None:
        for _ in numbers:
            taken.append(await task(client, workflow))

    await asyncio.gather(*(loop() for _ in range(in_flight)))
    return taken


async def measure(client: Any, workflow: str, groups: Mapping[str, Sequence[int]], quick: bool) -> dict[str, Any]:
    warm_up, many, few = COUNTS[quick]
    await tasks(client, workflow, warm_up, IN_FLIGHT)
    before, own, start = processes.cpu_by_name(groups), time.process_time(), time.perf_counter()
    taken = await tasks(client, workflow, many, IN_FLIGHT)
    elapsed, client_s, after = time.perf_counter() - start, time.process_time() - own, processes.cpu_by_name(groups)
    used = {name: round((after[name] - before[name]) * 1e3 / many, 3) for name in before}
    return {
        "tasks_per_s": round(many / elapsed, 1),
        "latency_ms": percentiles(taken),
        "cpu_ms_per_task": used,
        "cpu_ms_per_task_all_but_client": round(sum(used.values()), 3),
        "cpu_ms_per_task_client": round(client_s * 1e3 / many, 3),
        "alone_ms": percentiles(await tasks(client, workflow, few, 1)),
        "acknowledged_ms": percentiles([await task(client, workflow, "run/send") for _ in range(few)]),
    }


async def run(form: str, server: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Measures one form of the job on a server of its own."""
    workflow, apps = FORMS[form]
    environ = {
        "RESTATE_BASE_DIR": str(folder / "data"),
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{INGRESS}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ADMIN}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{NODE}",
        "RESTATE_LOG_FILTER": "warn",
        "REPORTS": str(folder),
    }
    async with contextlib.AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        groups = {"server": [await stack.enter_async_context(started([server], folder / "server.log", environ))]}
        for i, app in enumerate(apps):
            place = f"127.0.0.1:{APPS + i}"
            command = [sys.executable, "-m", "hypercorn", "--bind", place, f"bench.peers.restate_app:{app}"]
            groups[app] = [await stack.enter_async_context(started(command, folder / f"{app}.log", environ))]
        admin = f"http://127.0.0.1:{ADMIN}"
        await ready(client, "GET", f"{admin}/health")
        for i in range(len(apps)):
            deployment = {"uri": f"http://127.0.0.1:{APPS + i}", "force": True}
            await ready(client, "POST", f"{admin}/deployments", json=deployment)
        return await measure(client, workflow, groups, quick)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="path of restate-server")
    parser.add_argument("--form", choices=FORMS, action="append", help="all when left out")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"peer": "restate"}
    for form in arguments.form or FORMS:
        with tempfile.TemporaryDirectory(prefix="restate-") as folder:
            before = now(Path(folder))
            found[form] = {"conditions": before, **await run(form, arguments.server, Path(folder), arguments.quick)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
