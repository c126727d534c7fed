"""Several providers of web search asked together: failures, waiting, budgets, merging."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import pytest

from services.researcher.documents import Kind
from services.researcher.watch import Cancelled, OutOfTime, Watch
from services.researcher.web import providers, searching
from services.researcher.web.client import Client
from services.researcher.web.providers import Hit, Provider, ProviderFailed
from services.researcher.web.searching import Searching, merge
from services.researcher.web.settings import provider
from services.researcher.web.wire import Limits
from tests.web_hits import BRAVE, CLIENT, HITS, SEARXNG, A, B, Recorded, json_answer, key, made, server
from tests.web_servers import Asked, Server, answer, redirect, serving, watch

__all__ = ["key", "server"]


class Mine:
    """Somebody else's provider."""

    def __init__(self, options: Mapping[str, object], client: Client) -> None:
        self.name = str(options["title"])

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        return HITS[:count]


def test_somebody_elses_provider_is_a_class_and_a_line() -> None:
    one = provider({"kind": "tests.test_web_searching:Mine", "title": "mine"}, CLIENT)
    assert one.name == "mine" and one.search("q", 1, watch()) == HITS[:1]


class Doing:
    """A provider that does as a test says."""

    def __init__(self, name: str, do: Callable[[Watch], list[Hit]]) -> None:
        self.name = name
        self.calls = 0
        self._do = do

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        self.calls += 1
        return self._do(watch)


def failing(problem: Exception) -> Callable[[Watch], list[Hit]]:
    def do(watch: Watch) -> list[Hit]:
        raise problem

    return do


def searched(
    sources: Sequence[Provider],
    notes: Recorded,
    queries: Sequence[str] = ("q",),
    most: int = 100,
    at: Watch | None = None,
) -> list[str]:
    return [hit.url for hit in Searching(sources, at or watch(), notes).search(queries, most)]


def test_one_that_fails_is_a_gap_and_the_others_are_heard(server: Server) -> None:
    server.acts["/search"] = json_answer(SEARXNG)
    notes = Recorded()
    sources = [Doing("down", failing(ProviderFailed("It answered 500."))), Doing("odd", failing(KeyError("x")))]
    assert searched([*sources, made("searxng", server.url)], notes) == [A, B]
    assert sorted(notes.misses) == [
        (Kind.GAP_KIND_PROVIDER_FAILED, "down", "It answered 500."),
        (Kind.GAP_KIND_PROVIDER_FAILED, "odd", "It broke with KeyError."),
    ]


def test_one_that_fails_is_not_asked_again() -> None:
    down = Doing("down", failing(ProviderFailed("It answered 500.")))
    notes = Recorded()
    assert searched([down], notes, [f"q{number}" for number in range(30)]) == []
    assert down.calls <= searching.THREADS
    assert len(notes.misses) == 1


def test_retry_after_is_honoured_within_the_time(server: Server) -> None:
    turns: list[float] = []

    def act(asked: Asked) -> None:
        turns.append(time.monotonic())
        busy = answer("", status="429 Too Many Requests", Retry_After="1")
        (busy if len(turns) == 1 else json_answer(SEARXNG))(asked)

    server.acts["/search"] = act
    notes = Recorded(fetches=2)
    assert searched([made("searxng", server.url)], notes) == [A, B]
    assert turns[1] - turns[0] >= 1 and not notes.misses and notes.fetches == 0


@pytest.mark.parametrize("headers", [{"Retry_After": "3600"}, {}])
def test_one_that_is_busy_for_longer_is_a_gap_at_once(headers: dict[str, str], server: Server) -> None:
    server.acts["/search"] = answer("", status="429 Too Many Requests", **headers)
    notes = Recorded()
    began = time.monotonic()
    assert searched([made("searxng", server.url)], notes) == []
    assert time.monotonic() - began < 3
    assert [miss[1:] for miss in notes.misses] == [("searxng", "It answered 429.")]


def test_one_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SECONDS", 0.3)
    release = threading.Event()
    stuck = Doing("stuck", lambda watch: HITS * release.wait(20))
    notes = Recorded()
    try:
        assert searched([stuck, Doing("good", lambda watch: HITS)], notes) == [A, B]
    finally:
        release.set()
    assert [miss[1:] for miss in notes.misses] == [("stuck", "It did not answer within 0.3 s.")]


def test_a_slow_one_is_left_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "LIMITS", Limits(seconds=9, first_byte_seconds=0.5))
    server.acts["/search"] = lambda asked: asked.dawdle(b"H", 0.05)
    notes = Recorded()
    assert searched([made("searxng", server.url)], notes) == []
    assert "did not begin to answer within 0.5 s" in notes.misses[0][2]


def test_a_cancel_and_the_end_of_time_stop_a_search_at_once() -> None:
    release = threading.Event()
    stuck = Doing("stuck", lambda watch: HITS * release.wait(20))
    at = watch()
    threading.Timer(0.2, at.cancel).start()
    began = time.monotonic()
    try:
        with pytest.raises(Cancelled):
            searched([stuck], Recorded(), at=at)
        with pytest.raises(OutOfTime):
            searched([stuck], Recorded(), at=Watch(0.2))
    finally:
        release.set()
    assert time.monotonic() - began < 2


def test_searches_keep_within_their_budget() -> None:
    good = Doing("good", lambda watch: HITS)
    notes = Recorded(fetches=3)
    queries = [f"q{number}" for number in range(9)]
    searched([good], notes, queries, most=5)
    assert good.calls == 3 and set(notes.spent) == {"max_fetches"}
    searched([good], Recorded(), queries, most=5)
    assert good.calls == 3 + 5
    assert searched([good], Recorded(), ["same  words", "same words", " "]) == [A, B]
    assert good.calls == 3 + 5 + 1


def test_merging_prefers_what_several_name_and_is_stable() -> None:
    def hits(*names: str) -> list[Hit]:
        return [Hit(f"https://{name}.example/", name, "") for name in names]

    merged = merge([hits("a", "b", "c"), hits("c", "d"), hits("c", "b")])
    assert [hit.title for hit in merged] == ["c", "b", "a", "d"]
    assert merge([]) == [] and merge([hits("a", "a")]) == hits("a")


def test_the_key_goes_to_no_other_host(server: Server) -> None:
    with serving({"/": json_answer(BRAVE)}) as other:
        server.acts["/"] = redirect(other.url + "/")
        with pytest.raises(ProviderFailed):
            made("brave", server.url + "/").search("q", 1, watch())
        assert not other.asked
