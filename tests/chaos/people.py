"""Those who use the system during a run: submitters of tasks and walkers of projects, each with known answers."""

import asyncio
from collections.abc import Sequence
from typing import Any

from conductor.v1 import conductor_pb2, project_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2

from tests.chaos.edge import Edge
from tests.chaos.history import Call

RESEARCHER, TERMINAL = task_pb2.CAPABILITY_RESEARCHER, task_pb2.CAPABILITY_TERMINAL
# What the real Terminal runs; the scripted one answers the same. The answer is a hash of the token.
SCRIPT = 'printf %s "$TOKEN" | sha256sum | cut -c1-16'
ROUTES: Sequence[Any] = ([RESEARCHER], [TERMINAL], [RESEARCHER, TERMINAL], [])
RESEARCH_S, COMMAND_S, ATTEMPTS = 4, 4, 3
THINK_S = (0.0, 0.35)
STAGES: Sequence[Any] = project_pb2.Stage.values()[1:]


class Submitter:
    """Submits one task after the other, now and then twice, at the same time, with another body, or cancels it.

    Args:
        deadline: seconds each task has.
    """

    def __init__(self, edge: Edge, deadline: int, closing: asyncio.Event) -> None:
        self.edge, self._deadline, self._closing = edge, deadline, closing
        self._luck = edge.luck

    async def work(self) -> None:
        count = 0
        while not self._closing.is_set():
            count += 1
            await self._submit(token_of(self.edge.who, count))
            await asyncio.sleep(self._luck.uniform(*THINK_S))

    async def _submit(self, token: str) -> None:
        request, chance = self._request(token), self._luck.random()
        if chance < 0.1:  # two at once: a nervous client, or a retry that overtakes
            call, _ = await asyncio.gather(self.edge.settle(request), self.edge.settle(request))
        else:
            call = await self.edge.settle(request)
        if call.answer is None:
            return  # refused, which a promise judges
        if chance > 0.85:
            await self.edge.settle(request)
        elif chance > 0.75:
            other = conductor_pb2.ExecuteRequest()
            other.CopyFrom(request)
            other.objective += " Or not?"
            await self.edge.settle(other, expects="REFUSED")
        elif chance > 0.65:
            cancel = conductor_pb2.CancelTaskRequest(task_id=call.answer.task_id, reason="enough")
            await self.edge.settle(cancel, expects="EITHER")
        elif chance > 0.45:
            await self.edge.settle(conductor_pb2.GetTaskRequest(task_id=call.answer.task_id))

    def _request(self, token: str) -> conductor_pb2.ExecuteRequest:
        luck = self._luck
        route = luck.choice(ROUTES)
        commands = [] if route == [RESEARCHER] else [self._command(f"{token}c{i}") for i in range(luck.randint(1, 2))]
        hints = task_pb2.Hints(
            capabilities=route,
            commands=commands,
            research=task_pb2.ResearchHints(timeout=duration_pb2.Duration(seconds=RESEARCH_S)),
            deadline=duration_pb2.Duration(seconds=self._deadline),
            max_attempts=ATTEMPTS,
        )
        return conductor_pb2.ExecuteRequest(
            objective=f"What is the answer to {token}?",
            output_mode=task_pb2.OUTPUT_MODE_MARKDOWN_REPORT_TO_WRITER,
            hints=hints,
            request_id=token,
            correlation_id=token,
            project_id=f"of-{self.edge.who}",
            wait=duration_pb2.Duration(seconds=luck.choice((0, 0, 1, 5))),
        )

    def _command(self, token: str) -> terminal_pb2.Command:
        limits = terminal_pb2.Limits(wall_time=duration_pb2.Duration(seconds=COMMAND_S))
        idempotent = self._luck.random() < 0.3
        return terminal_pb2.Command(script=SCRIPT, env={"TOKEN": token}, limits=limits, idempotent=idempotent)


class Walker:
    """Walks projects through their eight stages, one gate at a time, and answers gates that are not open any more."""

    def __init__(self, edge: Edge, closing: asyncio.Event) -> None:
        self.edge, self._closing = edge, closing
        self._luck = edge.luck
        self._requests = 0
        self._projects = 0

    async def work(self) -> None:
        while not self._closing.is_set():
            self._projects += 1
            await self._walk(f"{self.edge.who}-{self._projects}")

    async def _walk(self, project_id: str) -> None:
        stage, going_back = STAGES[0], self._luck.random() < 0.3
        while not self._closing.is_set():
            await self._pass(project_id, stage)
            if stage == STAGES[-1]:
                return
            stage += 1
            if going_back and stage == project_pb2.STAGE_TRAIN:
                stage, going_back = project_pb2.STAGE_DATA_SOURCE, False
                await self._ask(conductor_pb2.TransitionToRequest(project_id=project_id, stage_id=stage))
            await asyncio.sleep(self._luck.uniform(*THINK_S))

    async def _pass(self, project_id: str, stage: Any) -> None:
        """Opens the stage's gate in one of three ways and answers it."""
        confirm = conductor_pb2.ConfirmRequest(project_id=project_id, stage_id=stage)
        way = self._luck.random()
        if way < 0.6:
            wait = conductor_pb2.WaitForConfirmationRequest(
                project_id=project_id, stage_id=stage, summary=f"Go on from {stage}?"
            )
            shown = await self._ask(wait)
            if shown.answer is None:
                return
            confirm.confirmation_id = shown.answer.waiting_confirmation.confirmation_id
        elif way < 0.8:
            plan = conductor_pb2.ProposePlanRequest(project_id=project_id, stage_id=stage, summary=f"Plan of {stage}")
            shown = await self._ask(plan)
            if shown.answer is None:
                return
            confirm.plan_id = shown.answer.plan.plan_id
        if self._luck.random() < 0.2:  # a double click: one moves the stage, the other is refused
            await asyncio.gather(self._ask(confirm, "EITHER"), self._ask(confirm, "EITHER"))
        else:
            await self._ask(confirm)
        if self._luck.random() < 0.3:  # a stale page
            await self._ask(confirm, "REFUSED")

    async def _ask(self, request: Any, expects: str = "OK") -> Call:
        """Sends a copy of the request under a request_id of its own."""
        self._requests += 1
        own = type(request)()
        own.CopyFrom(request)
        own.request_id = f"{self.edge.who}-r{self._requests}"
        return await self.edge.settle(own, expects=expects)


def token_of(who: str, count: int) -> str:
    """Names the count-th task of a submitter in one word, so that research can find it."""
    return f"{who.replace('-', '')}n{count}"
