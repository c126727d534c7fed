"""Researches under way: each runs in a thread of its own, whoever listens, and tells its events to the records."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from conductor.v1 import error_pb2, researcher_pb2

from services.common.boundary import correlation_id
from services.common.errors import Reason, Refusal, typed
from services.researcher.journal import Journal
from services.researcher.records import Records
from services.researcher.watch import Cancelled, Watch

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks at a research of another process
CANCEL_S = 1.0  # between two looks whether another process was asked to cancel one of this process
CANCELLED_S = 10.0  # a cancel waits for another process to end its research

Result = researcher_pb2.ResearchResult
Work = Callable[[Watch, Journal], Result]
T = TypeVar("T")


@dataclass(slots=True)
class _Run:
    """A research of this process: who listens, and how it is stopped."""

    watch: Watch
    keep_going: bool
    listeners: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Wakes all who wait. Each rings out once, so that none takes it from another."""
        self.more.set()
        self.more = asyncio.Event()

    def abandon(self) -> None:
        """Stops it when nobody follows it any more, unless it is to keep going."""
        if not self.listeners and not self.keep_going:
            self.watch.cancel()


class Runs:
    """Starts, follows and stops researches. For one event loop.

    Args:
        limit: researches of this process at once; more are refused with OVER_CAPACITY.
    """

    def __init__(self, records: Records, limit: int) -> None:
        self._records = records
        self._limit = limit
        self._runs: dict[str, _Run] = {}
        # Long work has threads of its own, so that looks at the records never wait for it.
        self._threads = ThreadPoolExecutor(limit, "research")
        self._looks = ThreadPoolExecutor(2, "records")

    async def start(
        self, research_id: str, request: researcher_pb2.ResearchRequest, watch: Watch, max_fetches: int, work: Work
    ) -> None:
        """Starts a research unless it was started before. Raises REQUEST_ID_REUSED, OVER_CAPACITY."""
        asked = researcher_pb2.ResearchRequest()
        asked.CopyFrom(request)
        asked.ClearField("correlation_id")  # another attempt may have another one
        digest = hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()
        run = _Run(watch, request.keep_going)
        begin = asyncio.create_task(self._begin(research_id, digest, request.objective, run, max_fetches, work))
        try:
            # Record and run come and go together, also when the caller hangs up in between.
            await asyncio.shield(begin)
        except asyncio.CancelledError:
            begin.add_done_callback(lambda done: run.abandon())
            raise

    async def follow(
        self, research_id: str, after: int, *, watching: bool = False
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        """Yields the events behind a sequence, then those to come; the result is the last.

        A research that nobody follows any more is stopped, unless it was to keep going; who is only `watching` does not
        count. Raises RESEARCH_NOT_FOUND, CURSOR_OUT_OF_RANGE, and what the research failed with.
        """
        run = None if watching else self._runs.get(research_id)
        if run is not None:
            run.listeners += 1
        try:
            async for event in self._events(research_id, after):
                yield event
        finally:
            if run is not None:
                run.listeners -= 1
                run.abandon()

    async def record(self, research_id: str) -> researcher_pb2.ResearchRecord:
        """Returns a research with its result. Raises RESEARCH_NOT_FOUND."""
        state = await self._look(lambda: self._records.state(research_id))
        record = researcher_pb2.ResearchRecord(
            research_id=research_id, objective=state.objective, sequence=state.sequence, error=state.error
        )
        record.started_at.FromNanoseconds(state.started_ns)
        if state.ended_ns is not None:
            record.ended_at.FromNanoseconds(state.ended_ns)
            events = await self._look(lambda: self._records.after(research_id, state.sequence - 1))
            if events and events[-1].HasField("result"):
                record.result.CopyFrom(events[-1].result)
        return record

    async def cancel(self, research_id: str) -> None:
        """Stops a research, also one of another process, and waits for its end. Raises RESEARCH_NOT_FOUND."""
        await self._look(lambda: self._records.cancel(research_id))
        if (run := self._runs.get(research_id)) is not None:
            run.watch.cancel()
        with contextlib.suppress(TimeoutError, Refusal):  # that it failed is in its record
            async with asyncio.timeout(CANCELLED_S):
                async for _ in self._events(research_id, 0):
                    pass

    async def close(self, grace: float) -> None:
        """Stops all researches; waits at most `grace` seconds."""
        works = {run.work for run in self._runs.values() if run.work is not None}
        for run in self._runs.values():
            run.watch.cancel()
        if works:
            await asyncio.wait(works, timeout=grace)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._looks.shutdown(wait=True)

    async def _events(self, research_id: str, after: int) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        while True:
            run = self._runs.get(research_id)
            more = None if run is None else run.more  # taken before the look, so that no news falls between
            state = await self._look(lambda: self._records.state(research_id))
            if after > state.sequence:
                text = f"The research has {state.sequence} events; {after} is none of them."
                raise Refusal(Reason.ERROR_REASON_CURSOR_OUT_OF_RANGE, text, research_id=research_id)
            for event in await self._look(partial(self._records.after, research_id, after)):
                after = event.sequence
                yield event
            if state.ended and after >= state.sequence:
                if state.error is not None:
                    raise Refusal.passing_on(state.error)
                return
            if more is not None:
                await more.wait()
            elif state.own and research_id not in self._runs:
                await self._fail(research_id, _internal())  # its end could not be recorded when it came
            else:
                await asyncio.sleep(LOOK_S)

    async def _begin(
        self, research_id: str, digest: bytes, objective: str, run: _Run, max_fetches: int, work: Work
    ) -> None:
        known = research_id in self._runs
        if not known and len(self._runs) >= self._limit:
            text = f"{self._limit} researches are under way; ask again when some have ended."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._limit)
        if not known:
            self._runs[research_id] = run
        new = False
        try:
            new = await self._look(lambda: self._records.begin(research_id, digest, objective))
        finally:
            if not new and not known:
                del self._runs[research_id]
                run.ring()
        if new and not known:
            run.work = asyncio.create_task(self._work(research_id, run, max_fetches, work))

    async def _work(self, research_id: str, run: _Run, max_fetches: int, work: Work) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: researcher_pb2.ResearchResponse) -> None:
            self._records.add(research_id, event)
            loop.call_soon_threadsafe(run.ring)

        def do() -> None:
            result = work(run.watch, Journal(run.watch, tell, max_fetches))
            result.research_id = research_id
            tell(researcher_pb2.ResearchResponse(result=result))
            _log(result, run.watch)

        error: error_pb2.TypedError | None = None
        try:
            doing = loop.run_in_executor(self._threads, copy_context().run, do)
            while not (await asyncio.wait({doing}, timeout=CANCEL_S))[0]:
                if await self._look(lambda: self._records.cancelled(research_id)):
                    run.watch.cancel()
            await doing
        except Refusal as refusal:
            error = refusal.error
        except Cancelled:
            error = typed(Reason.ERROR_REASON_TASK_CANCELLED, "The research was cancelled before it began.")
        except Exception:  # whatever it is, those who follow must hear of an end; the text goes to the log only
            log.exception("the research failed, correlation_id=%s", correlation_id.get())
            error = _internal()
        try:
            if error is not None:
                await self._fail(research_id, error)
        except Exception:  # the disk, whatever it says; whoever follows it tries again
            log.exception("the end of research %s could not be recorded", research_id)
        finally:
            del self._runs[research_id]
            run.ring()

    async def _fail(self, research_id: str, error: error_pb2.TypedError) -> None:
        await self._look(lambda: self._records.fail(research_id, error))

    async def _look(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._looks, what)


def _internal() -> error_pb2.TypedError:
    return typed(Reason.ERROR_REASON_INTERNAL, "The Researcher failed; its log says why.")


def _log(result: Result, watch: Watch) -> None:
    log.info(
        "research: %d findings, %d gaps, %d documents, %.3f s, correlation_id=%s",
        len(result.findings),
        len(result.gaps),
        result.usage.documents,
        watch.elapsed(),
        correlation_id.get(),
    )
