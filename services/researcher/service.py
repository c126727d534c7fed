"""The Researcher servicer: maps the request to a question, runs it in a thread, streams what it says."""

import asyncio
import logging
from collections.abc import AsyncIterator

from conductor.v1 import researcher_pb2, researcher_pb2_grpc

from services.common.boundary import Context, correlation_id
from services.common.config import ResearcherSettings
from services.researcher.research import STEPS, Question, Research, Say
from services.researcher.watch import Cancelled, Watch

log = logging.getLogger(__name__)

FULL_NAME = researcher_pb2.DESCRIPTOR.services_by_name["Researcher"].full_name
ANSWER_SHARE = 0.9  # of the caller's deadline; the rest brings the result to the caller


class Researcher(researcher_pb2_grpc.ResearcherServicer):
    """Serves conductor.v1.Researcher. The settings are ceilings for documents and bytes, defaults for the rest."""

    def __init__(self, settings: ResearcherSettings, research: Research) -> None:
        self._settings = settings
        self._research = research

    async def Research(
        self, request: researcher_pb2.ResearchRequest, context: Context
    ) -> AsyncIterator[researcher_pb2.ResearchResponse]:
        """Streams progress, then the result. A caller that hangs up stops the thread at its next look."""
        watch = Watch(self._wall_time(request, context))
        steps: asyncio.Queue[researcher_pb2.ResearchProgress | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def say(message: str, step: int) -> None:
            watch.check()
            progress = researcher_pb2.ResearchProgress(message=message, step=step, total_steps=STEPS)
            loop.call_soon_threadsafe(steps.put_nowait, progress)

        work = asyncio.create_task(asyncio.to_thread(self._answer, self._question(request), watch, say))
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (progress := await steps.get()) is not None:
                yield researcher_pb2.ResearchResponse(progress=progress)
            yield researcher_pb2.ResearchResponse(result=await work)
        finally:
            watch.cancel()

    def _answer(self, question: Question, watch: Watch, say: Say) -> researcher_pb2.ResearchResult:
        try:
            result = self._research.answer(question, watch, say)
        except Cancelled:
            log.info("research cancelled after %.3f s, correlation_id=%s", watch.elapsed(), correlation_id.get())
            return researcher_pb2.ResearchResult()  # nobody reads it: the call is gone
        log.info(
            "research: %d findings, %d gaps, %d documents, %.3f s, correlation_id=%s",
            len(result.findings),
            len(result.gaps),
            result.usage.documents,
            watch.elapsed(),
            correlation_id.get(),
        )
        return result

    def _question(self, request: researcher_pb2.ResearchRequest) -> Question:
        budget, settings = request.budget, self._settings
        return Question(
            objective=request.objective,
            sources=tuple(request.sources),
            max_findings=budget.max_findings or settings.max_findings,
            max_documents=min(budget.max_documents or settings.max_documents, settings.max_documents),
            max_bytes=min(budget.max_bytes or settings.max_bytes, settings.max_bytes),
        )

    def _wall_time(self, request: researcher_pb2.ResearchRequest, context: Context) -> float:
        """Returns seconds: the budget's or the default, and less when the caller's deadline is nearer."""
        asked = request.budget.wall_time.ToNanoseconds() / 1e9 or self._settings.wall_time
        remaining = context.time_remaining()
        return asked if remaining is None else min(asked, remaining * ANSWER_SHARE)
