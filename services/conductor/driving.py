"""Looks after the runs of projects: what a crash, a full queue or a lost message left undone is done again.

A run goes on by messages between its project and the tasks of its stages (`protocol.Errand`). They are not in the log,
but what they follow from is: a stage in progress names its task. So now and then every running project is looked at:
a task that is not there is made, and one that has ended is told of again. And a task at work that its project no
longer waits for is cancelled. Any replica may, all may at once: each of these changes nothing the second time.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from conductor.v1 import project_pb2, task_pb2

from services.conductor.errands import addressed
from services.conductor.mailbox import Caller
from services.conductor.protocol import BeginStage, CancelStage, Command, Retell
from services.conductor.state import run, task_state
from services.conductor.store.base import Key, Listing, Store, StoreUnavailable

log = logging.getLogger(__name__)

LOOK_S = 1.0
REST = 4.0  # times as long as a look took, at least, until the next: ten thousand runs leave time for other work
PAGE = 200  # projects looked at at once


class Told(Protocol):
    """Carries out commands nobody waits for, and knows what it is at work on."""

    def mention(self, key: Key, command: Command, caller: Caller) -> None:
        """Has a command carried out."""

    def stages(self) -> Sequence[task_pb2.Task]:
        """Returns the tasks of stages that are at work here."""


class Driving:
    """Looks at all running projects every `seconds`, for the first time when it is started."""

    def __init__(self, store: Store, actor: Told, seconds: float = LOOK_S) -> None:
        self._store = store
        self._actor = actor
        self._seconds = seconds
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Ends."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except StoreUnavailable as error:
                log.warning("running projects were not looked at: %s", error.cause)
            except Exception:  # whatever it is, runs must be looked after the next time
                log.exception("running projects were not looked at")
            await asyncio.sleep(max(self._seconds, REST * (time.monotonic() - began)))

    async def look(self) -> None:
        """Looks at all running projects, and at the stages at work here, once. Raises StoreUnavailable."""
        here = {task.task_id: task for task in self._actor.stages()}
        for task in here.values():
            await self._look_after(task)
        before = None
        while True:
            listing = Listing("project", project_pb2.RUN_STATUS_RUNNING, before=before, limit=PAGE)
            rows = await self._store.list(listing)
            for row in rows:
                state = project_pb2.ProjectState.FromString(row.state)
                if run.current(state).task_id not in here:
                    await self._look_at(state)
            if len(rows) < PAGE:
                return
            before = (rows[-1].created_at, rows[-1].id)

    async def _look_at(self, state: project_pb2.ProjectState) -> None:
        task_id = run.current(state).task_id
        caller = Caller(state.run.correlation_id)
        row = await self._store.row(("task", task_id))
        if row is None:
            begin = BeginStage(await self._scope_of(state.project_id, task_id))
            self._actor.mention(("project", state.project_id), begin, caller)
        elif task_pb2.Task.FromString(row.state).status in task_state.TERMINAL:
            self._actor.mention(("task", task_id), Retell(), caller)

    async def _scope_of(self, project_id: str, task_id: str) -> task_pb2.Scope:
        """Returns on whose behalf a stage was begun, from the event that names its task."""
        stream = await self._store.stream(("project", project_id))
        begun = (event for event in reversed(stream.events) if event.stage_status.task_id == task_id)
        return next((event.scope for event in begun), task_pb2.Scope())

    async def _look_after(self, task: task_pb2.Task) -> None:
        row = await self._store.row(("project", task.project_id))
        state = project_pb2.ProjectState() if row is None else project_pb2.ProjectState.FromString(row.state)
        if not run.waits_for(state, task.task_id):
            self._actor.mention(*addressed(CancelStage(task.task_id)))
