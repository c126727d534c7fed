"""Asks the providers and merges what they say; one that fails becomes a gap and nothing more."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.researcher.documents import Kind
from services.researcher.protocol import Notes
from services.researcher.watch import POLL_S, Cancelled, OutOfTime, Watch
from services.researcher.web.fetch import Spent
from services.researcher.web.providers import SECONDS, Hit, Provider, ProviderFailed
from services.researcher.web.spread import Late, spread

COUNT = 10  # pages asked of a provider for a query
THREADS = 16
FUSION = 60  # of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009)
SEARCHES_SHARE = 0.5  # of the budget of requests that searches may use; the rest is for pages


@dataclass(frozen=True, slots=True)
class _Ask:
    provider: Provider
    query: str


class Searching:
    """One inquiry's searches."""

    def __init__(self, providers: Sequence[Provider], watch: Watch, notes: Notes) -> None:
        self._providers = providers
        self._watch = watch
        self._notes = notes
        self._failed: set[int] = set()  # ids of providers: one that fails is asked nothing more

    def search(self, queries: Iterable[str], most: int) -> list[Hit]:
        """Returns the pages that at most `most` searches name, best first. Raises Cancelled, OutOfTime."""
        wanted = list(dict.fromkeys(" ".join(query.split()) for query in queries if query.strip()))
        asks = [_Ask(provider, query) for query in wanted for provider in self._providers]
        if len(asks) > most:
            detail = f"{len(asks) - most} of {len(asks)} searches were left out, so that pages could be read."
            self._notes.spend("max_fetches", detail)
        asks = asks[:most]
        named: dict[int, list[Hit]] = {}
        for index, ended in spread(self._ask, asks, THREADS, self._watch, SECONDS + POLL_S):
            if isinstance(ended, Exception):
                self._fail(asks[index].provider, ended)
            else:
                named[index] = ended
        return merge([named[index] for index in sorted(named)])

    def _ask(self, ask: _Ask) -> list[Hit]:
        """Asks once, and once more when the provider says when to come again and that is soon enough."""
        if id(ask.provider) in self._failed:
            return []
        until = time.monotonic() + SECONDS
        try:
            return self._once(ask)
        except ProviderFailed as problem:
            wait = problem.retry_after
            if wait is None or time.monotonic() + wait >= until:
                self._failed.add(id(ask.provider))
                raise
        self._wait(wait)
        try:
            return self._once(ask)
        except ProviderFailed:
            self._failed.add(id(ask.provider))
            raise

    def _once(self, ask: _Ask) -> list[Hit]:
        if not self._notes.fetched():
            raise Spent
        return ask.provider.search(ask.query, COUNT, self._watch)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._watch.check()
            time.sleep(min(left, POLL_S))

    def _fail(self, provider: Provider, problem: Exception) -> None:
        if isinstance(problem, Cancelled | OutOfTime):
            raise problem
        if isinstance(problem, Spent):
            self._notes.spend("max_fetches", "The budget of requests was used up before all searches were made.")
            return
        detail = str(problem) if isinstance(problem, ProviderFailed) else _surprise(problem)
        self._notes.miss(Kind.GAP_KIND_PROVIDER_FAILED, provider.name, detail)


def _surprise(problem: Exception) -> str:
    """Says what a provider did that its interface does not foresee; it may be somebody else's code."""
    if isinstance(problem, Late):
        return f"It did not answer within {SECONDS:g} s."
    return f"It broke with {type(problem).__name__}."


def merge(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Fuses ranked lists by reciprocal rank: a page that several name comes first. Equal input, equal output."""
    scores: dict[str, float] = {}
    first: dict[str, Hit] = {}
    for each in lists:
        for rank, hit in enumerate(dict.fromkeys(each)):
            first.setdefault(hit.url, hit)
            scores[hit.url] = scores.get(hit.url, 0.0) + 1 / (FUSION + rank + 1)
    return [first[url] for url in sorted(scores, key=lambda url: -scores[url])]
