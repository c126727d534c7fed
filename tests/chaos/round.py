"""One run: a system of its own, people who use it, faults, healing, and what there is to judge afterwards."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conductor.v1 import conductor_pb2, event_pb2, project_pb2, task_pb2

from services.conductor.events import CHECKPOINT
from services.conductor.state.task_state import TERMINAL
from tests.chaos.edge import Edge
from tests.chaos.faults import Fault, Hands
from tests.chaos.history import Call, History, calls_in
from tests.chaos.people import Submitter, Walker
from tests.chaos.promises import Evidence, Report, Run
from tests.chaos.subscribers import Subscriber
from tests.chaos.system import Setting, System, running

SUBMITTERS = tuple(f"s{i}" for i in range(8))
WALKERS = ("w0", "w1")
LOOK_AGAIN_S = 0.1


@dataclass
class Outcome:
    """What a run leaves to be judged."""

    history: History
    faults: Sequence[Fault]
    evidence: Evidence


# From what a fault can be done to, the faults to do.
Planner = Callable[[Sequence[str]], Sequence[Fault]]


async def run(seed: int, setting: Setting, folder: Path, planner: Planner, tell: Callable[[str], None]) -> Outcome:
    """Does one run in an empty folder: for as long as its faults last, then the healing, and a few seconds more."""
    async with running(seed, setting, folder, SUBMITTERS) as system:
        history = History()  # its time begins now that everything runs
        hands = Hands(system, history)
        faults = planner(system.targets)
        users = _Users(seed, setting, system, history)
        try:
            work = asyncio.create_task(_tell(hands, faults, tell))
            stuck = await users.work_while(work, hands, setting.heals_within)
            evidence = await _read_back(users.reader, folder, history, stuck)
        finally:
            await users.close()
    return Outcome(history, hands.done, evidence)


async def _tell(hands: Hands, faults: Sequence[Fault], tell: Callable[[str], None]) -> None:
    for fault in faults:
        tell(f"  {fault}")
    await hands.carry_out(faults)


class _Users:
    """Everybody who uses the system during a run."""

    def __init__(self, seed: int, setting: Setting, system: System, history: History) -> None:
        def edge(who: str) -> Edge:
            return Edge(who, system.stack.addresses["envoy"], history, seed)

        self._history = history
        self._closing = asyncio.Event()
        submitters = [Submitter(edge(who), setting.deadline, self._closing) for who in SUBMITTERS]
        walkers = [Walker(edge(who), self._closing) for who in WALKERS]
        self._busy: list[Submitter | Walker] = [*submitters, *walkers]
        self._listening = [
            Subscriber(edge("sub-grpc")),
            Subscriber(edge("sub-grpc-2")),
            Subscriber(edge("sub-sse"), over_sse=True),
            Subscriber(edge("sub-project"), project_id="of-s0"),
        ]
        self.reader = edge("reader")

    async def work_while(self, faults: asyncio.Task[None], hands: Hands, heals_within: float) -> list[str]:
        """Lets all work until the faults are over and healed, and then come to an end. Returns what did not."""
        names = [f"{type(user).__name__} {user.edge.who}" for user in self._busy]
        working = [asyncio.create_task(user.work()) for user in self._busy]
        listening = [asyncio.create_task(user.work()) for user in self._listening]
        try:
            await faults
            await hands.heal()
            self._history.happened("healed")
            self._closing.set()
            until = asyncio.get_running_loop().time() + heals_within
            await asyncio.wait(working, timeout=heals_within)
            stuck = [
                f"{name} still waits for an answer" for name, it in zip(names, working, strict=True) if not it.done()
            ]
            stuck += [
                f"{name} broke: {it.exception()!r}"
                for name, it in zip(names, working, strict=True)
                if it.done() and it.exception()
            ]
            stuck += await self._wait(until, "accepted tasks have not ended", self._unended)
            stuck += await self._wait(until, "subscribers are behind", self._behind)
            return stuck
        finally:
            for task in (*working, *listening, faults):
                task.cancel()
            await asyncio.gather(*working, *listening, faults, return_exceptions=True)

    async def _wait(self, until: float, what: str, left: Callable[[], Awaitable[Sequence[str]]]) -> list[str]:
        while found := await left():
            if asyncio.get_running_loop().time() > until:
                return [f"{len(found)} {what}: {', '.join(found[:5])}"]
            await asyncio.sleep(LOOK_AGAIN_S)
        return []

    async def _unended(self) -> list[str]:
        accepted = {call.answer.task_id for call in calls_in(self._history.records, "Execute") if call.code == "OK"}
        shown = await all_tasks(self.reader)
        return sorted(task_id for task_id in accepted if task_id not in shown or shown[task_id].status not in TERMINAL)

    async def _behind(self) -> list[str]:
        head = await head_of(self.reader)
        return [user.edge.who for user in self._listening if user.cursor < head and user.edge.who != "sub-project"]

    async def close(self) -> None:
        for user in self._busy:
            await user.edge.close()
        for listener in self._listening:
            await listener.edge.close()
        await self.reader.close()


# ---- reading back ----


async def settled(reader: Edge, request: Any) -> Any:
    """Asks until it is answered; a refusal of a read is an error of the run."""
    call: Call = await reader.settle(request)
    assert call.answer is not None, f"{call.method} was refused: {call.code} {call.reason}"
    return call.answer


async def head_of(reader: Edge) -> int:
    """Returns the position of the newest event."""
    state = await settled(reader, conductor_pb2.GetStateRequest(project_id="nobody"))
    return int(state.as_of_sequence)


async def all_tasks(reader: Edge) -> dict[str, task_pb2.Task]:
    """Returns every task, page by page."""
    tasks: dict[str, task_pb2.Task] = {}
    token = ""
    while True:
        page = await settled(reader, conductor_pb2.ListTasksRequest(page_size=200, page_token=token))
        tasks |= {task.task_id: task for task in page.tasks}
        token = page.next_page_token
        if not token:
            return tasks


async def _read_back(reader: Edge, folder: Path, history: History, stuck: Sequence[str]) -> Evidence:
    head = await head_of(reader)
    log: list[event_pb2.Event] = []
    while not log or log[-1].sequence < head:
        async for event in reader.events(log[-1].sequence if log else 0):
            if event.type != CHECKPOINT:
                log.append(event)
            if event.sequence >= head:
                break
    tasks = await all_tasks(reader)
    project_ids = sorted({event.project_id for event in log if event.project_id and not event.task_id})
    projects: dict[str, project_pb2.ProjectState] = {}
    for project_id in project_ids:
        projects[project_id] = await settled(reader, conductor_pb2.GetStateRequest(project_id=project_id))
    reports = {
        task_id: await _report(reader, folder, task) for task_id, task in tasks.items() if task.HasField("report_path")
    }
    return Evidence(tuple(history.records), log, tasks, projects, reports, _ledger(folder), stuck)


async def _report(reader: Edge, folder: Path, task: task_pb2.Task) -> Report:
    served = await settled(reader, conductor_pb2.GetTaskReportRequest(task_id=task.task_id))
    file = folder / task.report_path
    return Report(served.data, file.read_bytes() if file.exists() else None)


def _ledger(folder: Path) -> list[Run]:
    file = folder / "ledger.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [Run(**json.loads(line)) for line in lines]
