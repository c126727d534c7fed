"""A language model at work for one research: plans sub-questions, words claims, within budget, retries and time.

Nothing the model says is believed here; claims.py checks its claims.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from services.researcher.model import prompt as prompts
from services.researcher.model.forms import Claims, Form, Misshapen, Plan, read
from services.researcher.model.meter import OVERHEAD, Meter, believed, estimate
from services.researcher.model.options import Options
from services.researcher.model.prompt import MAX_CLAIMS, MAX_QUESTIONS, Prompt
from services.researcher.model.reply import Caller, CallFailed, Exchange, Reply
from services.researcher.model.waiting import Background
from services.researcher.protocol import Claim, Evidence, ModelBudget, ModelFailed, ModelRun, ModelUsage
from services.researcher.watch import OutOfTime, Watch

RETRIES = 2  # of one question, after failures that may pass
BACKOFF_S = 0.5  # before the first retry; doubled for the next
MAX_PAUSE_S = 20.0  # longest wait that a provider may ask for
MAX_QUESTION = 200  # characters
MAX_REPEATED = 2000  # characters of an unreadable answer that are shown to the model again
PLAN_OUTPUT = 1024  # tokens

Result = TypeVar("Result")


class LanguageModel:
    """A configured model. Thread-safe."""

    def __init__(self, caller: Caller, options: Options) -> None:
        self._caller = caller
        self._options = options
        self._background = Background()

    def run(self, budget: ModelBudget) -> ModelRun:
        """Begins to count for one research."""
        return Asking(self._caller, self._options, self._background, budget)


class Asking:
    """Asks a model for one research. Its methods block; they raise ModelFailed and Cancelled."""

    def __init__(self, caller: Caller, options: Options, background: Background, budget: ModelBudget) -> None:
        self._caller = caller
        self._options = options
        self._background = background
        self._meter = Meter(budget, options.prices)
        self.name = options.name
        self.usage = ModelUsage()

    def plan(self, objective: str, sources: Sequence[str], watch: Watch) -> Sequence[str]:
        """Returns the sub-questions of an objective, at most MAX_QUESTIONS, each at most MAX_QUESTION characters.

        Returns the objective itself, and asks nobody, when the budget has one call left: it is kept for the claims.
        """
        if self._meter.calls_left() == 1:
            return (objective,)
        asked = prompts.plan(objective, sources, Plan.model_json_schema())
        answer = self._ask(asked, Plan, PLAN_OUTPUT, watch)
        questions = dict.fromkeys(" ".join(prompts.seen(each).split())[:MAX_QUESTION] for each in answer.questions)
        return tuple(each for each in questions if each)[:MAX_QUESTIONS] or (objective,)

    def synthesize(
        self, objective: str, questions: Sequence[str], evidence: Sequence[Evidence], watch: Watch
    ) -> Sequence[Claim]:
        """Returns at most MAX_CLAIMS claims. Evidence that has no room in the budget is left out from its end."""
        most = self._options.max_output
        room = min(self._meter.room(most), self._options.context - most)
        asked, shown = prompts.synthesize(objective, questions, evidence, room, Claims.model_json_schema())
        if evidence and not shown:
            raise ModelFailed("The budget of model tokens has no room for any evidence: allow more tokens.")
        answer = self._ask(asked, Claims, most, watch)
        return tuple(
            Claim(
                text=each.text,
                quotes=tuple((quote.evidence, quote.quote) for quote in each.quotes),
                question=each.question - 1 if 0 < each.question <= len(questions) else 0,
            )
            for each in answer.claims[:MAX_CLAIMS]
        )

    def _ask(self, asked: Prompt, form: type[Form], most: int, watch: Watch) -> Form:
        """Asks, and once more when the answer cannot be read. Raises ModelFailed, Cancelled."""
        reply = self._persist(asked, None, most, watch)
        try:
            return read(form, reply.answer)
        except Misshapen as problem:
            before = Exchange(_text(reply)[:MAX_REPEATED], _why(reply, problem))
        reply = self._persist(asked, before, most, watch)
        try:
            return read(form, reply.answer)
        except Misshapen as problem:
            raise ModelFailed(f"The model's answer could not be read, twice: {_why(reply, problem)}") from None

    def _persist(self, asked: Prompt, before: Exchange | None, most: int, watch: Watch) -> Reply:
        """Makes a call, and again after failures that may pass, within budget and time."""
        pause = BACKOFF_S
        for attempt in range(RETRIES + 1):
            try:
                return self._once(asked, before, most, watch)
            except CallFailed as problem:
                wait = pause if problem.after is None else max(problem.after, pause)
                if not problem.again or attempt == RETRIES:
                    raise ModelFailed(_attempts(problem, attempt + 1)) from None
                if wait > MAX_PAUSE_S:
                    raise ModelFailed(f"{problem} It asked to wait {wait:.0f} seconds.") from None
                failed = problem
            if self._meter.calls_left() == 0:
                raise ModelFailed(f"{failed} The budget has no call left to try again.")
            self._timely(lambda wait=wait: asyncio.sleep(wait), watch)  # type: ignore[misc]
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _once(self, asked: Prompt, before: Exchange | None, most: int, watch: Watch) -> Reply:
        try:
            return self._counted(asked, before, most, watch)
        finally:
            self.usage = self._meter.usage

    def _counted(self, asked: Prompt, before: Exchange | None, most: int, watch: Watch) -> Reply:
        sent = asked.tokens() + (estimate(before.answer + before.problem) if before else 0)
        allowed = self._meter.begin(sent, most)
        try:
            reply = self._timely(lambda: self._limited(asked, before, allowed), watch)
        except CallFailed as problem:
            if problem.billed:
                self._meter.spend(sent, 0)
            raise
        except BaseException:  # given up half-way: the provider counts what it was sent
            self._meter.spend(sent, 0)
            raise
        told = len(_text(reply).encode())
        self._meter.spend(
            believed(reply.input_tokens, sent, 3 * sent + OVERHEAD),
            believed(reply.output_tokens, estimate(_text(reply)), max(allowed, told)),
        )
        return reply

    async def _limited(self, asked: Prompt, before: Exchange | None, allowed: int) -> Reply:
        try:
            async with asyncio.timeout(self._options.timeout):
                return await self._caller.call(asked, before, allowed)
        except TimeoutError:
            detail = f"The model did not answer within {self._options.timeout:g} seconds."
            raise CallFailed(detail, again=True, billed=True) from None

    def _timely(self, work: Callable[[], Coroutine[Any, Any, Result]], watch: Watch) -> Result:
        try:
            watch.check()
            return self._background.wait(work(), watch.check)
        except OutOfTime:
            raise ModelFailed("The time was over before the model answered.") from None


def _text(reply: Reply) -> str:
    return reply.answer if isinstance(reply.answer, str) else json.dumps(reply.answer)


def _why(reply: Reply, problem: Misshapen) -> str:
    return f"it was cut off at its longest allowed length; {problem}" if reply.cut else str(problem)


def _attempts(problem: CallFailed, attempts: int) -> str:
    return f"{problem} It was tried {attempts} times." if attempts > 1 else str(problem)
