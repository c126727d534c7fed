"""Researches under way: each runs in a thread of its own, whoever listens, and tells its events to the records."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from dataclasses import dataclass, field

from conductor.v1 import researcher_pb2

from services.common.boundary import correlation_id
from services.common.errors import Reason, Refusal, typed
from services.researcher.journal import Journal
from services.researcher.records import Records, State
from services.researcher.watch import Cancelled, Watch

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks at a research of another process

Result = researcher_pb2.ResearchResult
Work = Callable[[Watch, Journal], Result]


@dataclass(slots=True)
class _Run:
    """A research of this process: who listens, and how it is stopped."""

    watch: Watch
    keep_going: bool
    listeners: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None


class Runs:
    """Starts, follows and stops researches. For one event loop."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._runs: dict[str, _Run] = {}

    async def start(
        self, research_id: str, request: researcher_pb2.ResearchRequest, watch: Watch, max_fetches: int, work: Work
    ) -> None:
        """Starts a research unless it was started before. Raises REQUEST_ID_REUSED."""
        asked = researcher_pb2.ResearchRequest()
        asked.CopyFrom(request)
        asked.ClearField("correlation_id")  # another attempt may have another one
        digest = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
        if not await asyncio.to_thread(self._records.begin, research_id, digest, request.objective):
            return
        run = self._runs[research_id] = _Run(watch, request.keep_going)
        run.work = asyncio.create_task(self._work(research_id, run, max_fetches, work))

    async def follow(
        self, research_id: str, after: int, *, watching: bool = False
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        """Yields the events behind a sequence, then those to come; the result is the last.

        A research that nobody follows any more is stopped, unless it was to keep going; who is only `watching` does not
        count. Raises RESEARCH_NOT_FOUND, CURSOR_OUT_OF_RANGE, and what the research failed with.
        """
        run = self._runs.get(research_id)
        if run is not None and not watching:
            run.listeners += 1
        try:
            async for event in self._events(research_id, after, run):
                yield event
        finally:
            if run is not None and not watching:
                run.listeners -= 1
                if not run.listeners and not run.keep_going:
                    run.watch.cancel()

    async def state(self, research_id: str) -> State:
        """Returns how far a research is. Raises RESEARCH_NOT_FOUND."""
        return await asyncio.to_thread(self._records.state, research_id)

    async def record(self, research_id: str) -> researcher_pb2.ResearchRecord:
        """Returns a research with its result. Raises RESEARCH_NOT_FOUND."""
        state = await self.state(research_id)
        record = researcher_pb2.ResearchRecord(
            research_id=research_id, objective=state.objective, sequence=state.sequence, error=state.error
        )
        record.started_at.FromNanoseconds(state.started_ns)
        if state.ended_ns is not None:
            record.ended_at.FromNanoseconds(state.ended_ns)
            events = await asyncio.to_thread(self._records.after, research_id, state.sequence - 1)
            if events and events[-1].HasField("result"):
                record.result.CopyFrom(events[-1].result)
        return record

    async def cancel(self, research_id: str) -> None:
        """Stops a research of this process and waits for its end. Raises RESEARCH_NOT_FOUND."""
        await self.state(research_id)
        run = self._runs.get(research_id)
        if run is not None and run.work is not None:
            run.watch.cancel()
            await asyncio.wait({run.work})

    async def close(self, grace: float) -> None:
        """Stops all researches; waits at most `grace` seconds."""
        works = {run.work for run in self._runs.values() if run.work is not None}
        for run in self._runs.values():
            run.watch.cancel()
        if works:
            await asyncio.wait(works, timeout=grace)

    async def _events(
        self, research_id: str, after: int, run: _Run | None
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        while True:
            if run is not None:
                run.more.clear()
            state = await self.state(research_id)
            if after > state.sequence:
                text = f"The research has {state.sequence} events; {after} is none of them."
                raise Refusal(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, text, research_id=research_id)
            for event in await asyncio.to_thread(self._records.after, research_id, after):
                after = event.sequence
                yield event
            if state.ended and after >= state.sequence:
                if state.error is not None:
                    raise Refusal.passing_on(state.error)
                return
            if run is None:
                await asyncio.sleep(LOOK_S)
            else:
                await run.more.wait()

    async def _work(self, research_id: str, run: _Run, max_fetches: int, work: Work) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: researcher_pb2.ResearchResponse) -> None:
            self._records.add(research_id, event)
            loop.call_soon_threadsafe(run.more.set)

        def do() -> None:
            result = work(run.watch, Journal(run.watch, tell, max_fetches))
            result.research_id = research_id
            tell(researcher_pb2.ResearchResponse(result=result))
            _log(result, run.watch)

        try:
            await asyncio.to_thread(copy_context().run, do)
        except Refusal as refusal:
            await asyncio.to_thread(self._records.fail, research_id, refusal.error)
        except Cancelled:
            error = typed(Reason.ERROR_REASON_TASK_CANCELLED, "The research was cancelled before it began.")
            await asyncio.to_thread(self._records.fail, research_id, error)
        except Exception:  # whatever it is, those who follow must hear of an end; the text goes to the log only
            log.exception("the research failed, correlation_id=%s", correlation_id.get())
            error = typed(Reason.ERROR_REASON_INTERNAL, "The Researcher failed; its log says why.")
            await asyncio.to_thread(self._records.fail, research_id, error)
        finally:
            run.more.set()
            del self._runs[research_id]


def _log(result: Result, watch: Watch) -> None:
    log.info(
        "research: %d findings, %d gaps, %d documents, %.3f s, correlation_id=%s",
        len(result.findings),
        len(result.gaps),
        result.usage.documents,
        watch.elapsed(),
        correlation_id.get(),
    )
