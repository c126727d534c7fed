"""The Researcher servicer: maps requests to questions, runs and sources, and their outcomes to answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from conductor.v1 import researcher_pb2, researcher_pb2_grpc

from services.common.boundary import Context, new_id
from services.common.config import ResearcherSettings
from services.common.errors import Reason, Refusal
from services.researcher.journal import Journal
from services.researcher.protocol import Limits, ModelBudget
from services.researcher.registry import Registry
from services.researcher.research import Question, Tools, answer
from services.researcher.runs import Runs
from services.researcher.verify import verify
from services.researcher.watch import Cancelled, OutOfTime, Watch

FULL_NAME = researcher_pb2.DESCRIPTOR.services_by_name["Researcher"].full_name
ANSWER_SHARE = 0.9  # of the caller's deadline; the rest brings the result to the caller
INDEX_S = 24 * 3600.0  # an index may take long; whoever asks for it can hang up
VERIFY_S = 60.0
LONG = 16  # indexings, removals and verifications at once; more of them wait

Event = researcher_pb2.ResearchResponse
T = TypeVar("T")


class Researcher(researcher_pb2_grpc.ResearcherServicer):
    """Serves conductor.v1.Researcher. The settings are ceilings for what costs, defaults for the rest."""

    def __init__(self, settings: ResearcherSettings, registry: Registry, tools: Tools, runs: Runs) -> None:
        self._settings = settings
        self._registry = registry
        self._tools = tools
        self._runs = runs
        # Indexing may take hours; looks at sources and records have other threads.
        self._threads = ThreadPoolExecutor(LONG, "sources")

    async def Research(self, request: researcher_pb2.ResearchRequest, context: Context) -> AsyncIterator[Event]:
        """Streams what happens, then the result. A caller that hangs up stops the work at its next look."""
        watch = Watch(self._wall_time(request, context))
        question = self._question(request)

        def work(watch: Watch, journal: Journal) -> researcher_pb2.ResearchResult:
            return answer(question, self._tools, watch, journal)

        research_id = request.research_id or new_id()
        await self._runs.start(research_id, request, watch, question.limits.max_fetches, work)
        async for event in self._runs.follow(research_id, 0):
            yield event

    async def GetResearch(
        self, request: researcher_pb2.GetResearchRequest, context: Context
    ) -> researcher_pb2.ResearchRecord:
        """Returns a research as far as it is."""
        return await self._runs.record(request.research_id)

    async def WatchResearch(
        self, request: researcher_pb2.WatchResearchRequest, context: Context
    ) -> AsyncIterator[Event]:
        """Streams the events of a research after a sequence. Whoever hangs up here stops nothing."""
        async for event in self._runs.follow(request.research_id, request.after_sequence, watching=True):
            yield event

    async def CancelResearch(
        self, request: researcher_pb2.CancelResearchRequest, context: Context
    ) -> researcher_pb2.ResearchRecord:
        """Stops a research and returns it as it ended."""
        await self._runs.cancel(request.research_id)
        return await self._runs.record(request.research_id)

    async def VerifyCitation(
        self, request: researcher_pb2.VerifyCitationRequest, context: Context
    ) -> researcher_pb2.VerifyCitationResponse:
        """Reads a citation's source again."""
        watch = Watch(min(VERIFY_S, context.time_remaining() or VERIFY_S))
        return await self._stoppable(watch, lambda: verify(request.citation, self._registry, watch))

    async def AddSource(self, request: researcher_pb2.AddSourceRequest, context: Context) -> researcher_pb2.Source:
        """Adds a source."""
        return await asyncio.to_thread(lambda: self._registry.add(request).describe())

    async def ListSources(
        self, request: researcher_pb2.ListSourcesRequest, context: Context
    ) -> researcher_pb2.ListSourcesResponse:
        """Lists the sources."""
        sources = await asyncio.to_thread(lambda: [source.describe() for source in self._registry.all()])
        return researcher_pb2.ListSourcesResponse(sources=sources)

    async def IndexSource(
        self, request: researcher_pb2.IndexSourceRequest, context: Context
    ) -> AsyncIterator[researcher_pb2.IndexSourceResponse]:
        """Brings an index up to date and streams how far it is."""
        source = await asyncio.to_thread(self._registry.indexed, request.name)
        watch = Watch(min(INDEX_S, (context.time_remaining() or INDEX_S) * ANSWER_SHARE))
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[researcher_pb2.IndexSourceResponse | None] = asyncio.Queue()

        def tell(message: researcher_pb2.IndexSourceResponse) -> None:
            loop.call_soon_threadsafe(told.put_nowait, message)

        def index() -> None:
            try:
                source.index(watch, tell)
            except OutOfTime:
                text = f"The time was over before all of {source.name} was indexed; the next call goes on from there."
                raise Refusal(Reason.ERROR_REASON_WORKER_TIMEOUT, text, source=source.name) from None

        work = asyncio.create_task(self._stoppable(watch, index))
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (message := await told.get()) is not None:
                yield message
            await work
            yield researcher_pb2.IndexSourceResponse(source=await asyncio.to_thread(source.describe))
        finally:
            watch.cancel()

    async def RemoveSource(
        self, request: researcher_pb2.RemoveSourceRequest, context: Context
    ) -> researcher_pb2.RemoveSourceResponse:
        """Removes an added source."""
        await self._stoppable(Watch(VERIFY_S), lambda: self._registry.remove(request.name))
        return researcher_pb2.RemoveSourceResponse()

    def _question(self, request: researcher_pb2.ResearchRequest) -> Question:
        budget, settings = request.budget, self._settings
        return Question(
            objective=request.objective,
            sources=tuple(request.sources),
            kinds=frozenset(request.kinds),
            web=request.web,
            synthesize=request.mode == researcher_pb2.ANSWER_MODE_SYNTHESIZED,
            max_findings=budget.max_findings or settings.max_findings,
            limits=Limits(
                max_documents=_least(budget.max_documents, settings.max_documents),
                max_bytes=_least(budget.max_bytes, settings.max_bytes),
                max_fetches=_least(budget.max_fetches, settings.max_fetches),
            ),
            model=ModelBudget(
                calls=_least(budget.max_model_calls, settings.max_model_calls),
                tokens=_least(budget.max_model_tokens, settings.max_model_tokens),
                cost_micros=_least(budget.max_model_cost_micros, settings.max_model_cost_micros),
            ),
        )

    def _wall_time(self, request: researcher_pb2.ResearchRequest, context: Context) -> float:
        """Returns seconds: the budget's or the default, and less when the caller's deadline is nearer."""
        asked = request.budget.wall_time.ToNanoseconds() / 1e9 or self._settings.wall_time
        remaining = context.time_remaining()
        return asked if remaining is None or request.keep_going else min(asked, remaining * ANSWER_SHARE)

    async def _stoppable(self, watch: Watch, work: Callable[[], T]) -> T:
        """Runs something long in a thread; a caller that hangs up stops it at its next look."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)
        except Cancelled:
            raise asyncio.CancelledError from None
        finally:
            watch.cancel()


def _least(asked: int, most: int) -> int:
    return min(asked or most, most)
