"""Search providers: the shapes they document, what they do wrong, and how their answers are merged."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from conductor.v1 import researcher_pb2

from services.common.config import ConfigError
from services.researcher.documents import Document, Kind
from services.researcher.watch import Cancelled, OutOfTime, Watch
from services.researcher.web import providers, searching
from services.researcher.web.client import Client, agent
from services.researcher.web.guard import Guard
from services.researcher.web.opensearch import feed
from services.researcher.web.providers import Hit, Provider, ProviderFailed
from services.researcher.web.searching import Searching, merge
from services.researcher.web.settings import provider
from services.researcher.web.wire import Limits
from tests.web_servers import Act, Asked, Server, answer, raw, redirect, serving, trusting, watch

A, B = "https://a.example/1", "https://b.example/2"
HITS = [Hit(A, "First", "one two"), Hit(B, "Second", "three")]
CLIENT = Client(Guard(), trusting(), agent(""))


class Recorded:
    """Notes that are kept."""

    def __init__(self, fetches: int = 1000) -> None:
        self.misses: list[tuple[int, str, str]] = []
        self.spent: list[str] = []
        self.said: list[str] = []
        self.documents: list[Document] = []
        self.fetches = fetches
        self._lock = threading.Lock()

    def say(self, message: str) -> None:
        self.said.append(message)

    def read(self, document: Document) -> None:
        self.documents.append(document)

    def miss(self, kind: researcher_pb2.GapKind.ValueType, subject: str, detail: str) -> None:
        self.misses.append((kind, subject, detail))

    def spend(self, budget: str, detail: str) -> None:
        self.spent.append(budget)

    def fetched(self) -> bool:
        with self._lock:
            self.fetches -= 1
            return self.fetches >= 0


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as running:
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "s3cret\n")
    monkeypatch.setenv("BROKEN_KEY", "s3c\nret")


def json_answer(value: Any, **headers: str) -> Act:
    return answer(json.dumps(value), kind="application/json", **headers)


SEARXNG = {
    "query": "q",
    "number_of_results": 2,
    "results": [
        {"url": A, "title": "First", "content": "one  two", "engine": "x", "engines": ["x"], "score": 1.0},
        {"url": B + "#part", "title": "Second", "content": "three", "publishedDate": None},
    ],
    "suggestions": [],
    "unresponsive_engines": [],
}
BRAVE = {
    "type": "search",
    "query": {"original": "q"},
    "web": {
        "type": "search",
        "results": [
            {"title": "First", "url": A, "description": "one two", "page_age": "2026-01-01", "meta_url": {}},
            {"title": "Second", "url": B, "description": "three"},
        ],
    },
}
TAVILY = {
    "query": "q",
    "answer": None,
    "images": [],
    "results": [
        {"title": "First", "url": A, "content": "one two", "score": 0.9, "raw_content": None},
        {"title": "Second", "url": B, "content": "three", "score": 0.8, "raw_content": None},
    ],
    "response_time": 1.1,
}
EXA = {
    "requestId": "1",
    "results": [
        {"id": A, "url": A, "title": "First", "author": None, "highlights": ["one", "two"], "highlightScores": [1, 1]},
        {"id": B, "url": B, "title": "Second", "publishedDate": "2026-01-01", "highlights": ["three"]},
    ],
    "costDollars": {"total": 0.005},
}
ATOM = f"""<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"
 xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"><title>Results</title><link href="http://host.example/"/>
 <opensearch:totalResults>2</opensearch:totalResults>
 <entry><title>First</title><link rel="self" href="http://host.example/x"/><link href="{A}"/><summary>one two</summary>
  <author><name>N</name></author></entry>
 <entry><title type="html">Second</title><link rel="alternate" href="{B}"/><content>three</content></entry></feed>"""
RSS = f"""<rss version="2.0" xmlns:atom="http://www.w3.org/2005/Atom"><channel><title>Results</title><link>http://h/</link>
 <item><title>First</title><link>{A}</link><description>one two</description><guid>1</guid></item>
 <item><title><![CDATA[Second]]></title><link>
 {B} </link><description>three</description><image><link>http://host.example/i</link></image></item></channel></rss>"""


def made(kind: str, url: str, **options: object) -> Provider:
    return provider({"kind": kind, "url": url, "key": "SEARCH_KEY", **options}, CLIENT)


@pytest.mark.parametrize(
    ("kind", "path", "act", "method", "header"),
    [
        ("searxng", "/search", json_answer(SEARXNG), "GET", ("authorization", "Bearer s3cret")),
        ("brave", "/", json_answer(BRAVE), "GET", ("x-subscription-token", "s3cret")),
        ("tavily", "/", json_answer(TAVILY), "POST", ("authorization", "Bearer s3cret")),
        ("exa", "/", json_answer(EXA), "POST", ("x-api-key", "s3cret")),
        ("opensearch", "/?q={searchTerms}&n={count}&l={language?}&x={ex:tra?}", answer(ATOM), "GET",
         ("authorization", "Bearer s3cret")),
        ("opensearch", "/?q={searchTerms}", answer("\ufeff" + RSS, kind="text/xml"), "GET", ("host", "")),
        ("opensearch", "/?q={searchTerms}", json_answer({"items": SEARXNG["results"]}), "GET", ("host", "")),
        ("opensearch", "/?q={searchTerms}", json_answer(["q", ["First", "Second"], ["one two", "three"], [A, B]]),
         "GET", ("host", "")),
    ],
)  # fmt: skip
def test_a_provider_is_asked_and_read_as_it_documents(
    kind: str, path: str, act: Act, method: str, header: tuple[str, str], server: Server
) -> None:
    server.acts |= {"/": act, "/search": act}
    one = made(kind, server.url + ("" if kind == "searxng" else path))
    assert one.search("what is  a&b?", 2, watch()) == HITS
    assert one.search("what", 1, watch()) == HITS[:1]
    asked = server.asked[0]
    assert asked.method == method and header[1] in asked.headers[header[0]]
    if method == "POST":
        assert json.loads(asked.body)["query"] == "what is a&b?"
    else:
        assert "q=what%20is%20a%26b%3F" in asked.target.replace("+", "%20")
    assert "s3cret" not in asked.target


def test_the_template_of_an_opensearch_provider_is_filled(server: Server) -> None:
    server.acts["/s"] = json_answer({"deep": {"list": [{"link": A, "name": "First", "text": "one two"}]}})
    url = server.url + "/s?q={searchTerms}&n={count}&p={startPage}&i={startIndex}&e={inputEncoding}&x={x?}"
    options = {"results": "deep.list", "fields": ["link", "name", "text"], "key_header": "X-Key"}
    assert made("opensearch", url, **options).search("ä/b", 7, watch()) == HITS[:1]
    assert server.asked[0].target == "/s?q=%C3%A4%2Fb&n=7&p=1&i=1&e=UTF-8&x="
    assert server.asked[0].headers["x-key"] == "s3cret"


def test_long_questions_are_cut_between_words(server: Server) -> None:
    server.acts["/search"] = json_answer(SEARXNG)
    made("searxng", server.url).search("word " * 3000, 2, watch())
    assert len(server.asked[0].target) < 500 and "wor&" not in server.asked[0].target
    made("searxng", server.url).search("x" * 16_384, 2, watch())


GARBAGE: Mapping[str, tuple[Act, str]] = {
    "500": (answer("", status="500 Oops"), "answered 500"),
    "401": (answer("", status="401 No"), "check its key"),
    "redirect": (redirect("http://127.0.0.1/"), "a redirect: set `url`"),
    "html": (answer("<html>captcha</html>"), "not JSON"),
    "half": (answer('{"results": [', kind="application/json"), "not JSON"),
    "deep": (answer("[" * 100_000, kind="application/json"), "not JSON|without a list"),
    "binary": (answer(b"\xff\xfe\x00", kind="application/json"), "not JSON"),
    "list": (json_answer([]), "without a list of results"),
    "null": (json_answer(None), "without a list of results"),
    "other": (json_answer({"results": {"a": 1}}), "without a list of results"),
    "engines": (json_answer({"results": [], "unresponsive_engines": [["x", "captcha"]]}), "None of its engines"),
    "huge": (answer(b" " * (5 * 1024 * 1024), kind="application/json"), "larger than|more than"),
    "nothing": (raw(b""), "not sound HTTP"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_failure_that_says_what(name: str, server: Server) -> None:
    act, says = GARBAGE[name]
    server.acts["/search"] = act
    with pytest.raises(ProviderFailed, match=says):
        made("searxng", server.url).search("q", 5, watch())
    assert len(server.asked) == 1


def test_entries_without_a_usable_address_are_left_out(server: Server) -> None:
    bad: list[Any] = [None, 1, {}, {"url": 1}, {"url": ""}, {"url": "javascript:x"}, {"url": "http://[::1"}, ["x"]]
    odd = {"url": A, "title": ["x"], "content": {"a": 1}}
    server.acts["/search"] = json_answer({"results": [*bad, odd, {"url": B, "title": None}]})
    assert [hit.url for hit in made("searxng", server.url).search("q", 50, watch())] == [A, B]


@pytest.mark.parametrize(
    "xml",
    [
        "<html><body>no</body></html>",
        "<rss><channel><item>",
        "<" * 1000,
        '<!DOCTYPE rss [<!ENTITY a "b">]><rss><channel><item><title>&a;</title></item></channel></rss>',
        '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><rss>&x;</rss>',
        "<rss>" + "<a>" * 5000,
        '<?xml version="1.0" encoding="no-such"?><rss/>',
    ],
)
def test_xml_that_is_no_feed_is_a_failure(xml: str) -> None:
    with pytest.raises(ProviderFailed):
        feed(xml.encode())


def test_a_feed_of_a_million_entries_is_read_in_part() -> None:
    began = time.process_time()
    many = f"<item><link>{A}</link><title>{'t' * 50}</title></item>" * 10_000
    assert len(feed(f"<rss><channel>{many}</channel></rss>".encode())) == 200
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "must be one of"),
        ({"kind": "altavista"}, "must be one of"),
        ({"kind": 5}, "must be one of"),
        ({"kind": "searxng"}, "needs `url`"),
        ({"kind": "searxng", "url": "ftp://x/"}, "cannot be used"),
        ({"kind": "searxng", "url": 5}, "must be text|cannot be used"),
        ({"kind": "brave"}, "needs `key`"),
        ({"kind": "exa", "key": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"kind": "brave", "keys": "SEARCH_KEY"}, "'keys' of a web provider is not known; brave has key, kind"),
        ({"kind": "brave", "key": "BROKEN_KEY"}, "BROKEN_KEY holds characters that no key has"),
        ({"kind": "no.such.module:Class"}, "cannot be imported"),
        ({"kind": "json:Nothing"}, "cannot be imported"),
        ({"kind": "opensearch", "url": "https://x/?q="}, "must hold {searchTerms}"),
        ({"kind": "opensearch", "url": "https://x/?q={searchTerms}&y={odd}"}, "must hold {searchTerms}"),
        ({"kind": "opensearch", "url": "https://x/?q={searchTerms}", "fields": ["a"]}, "three names"),
    ],
)
def test_options_that_cannot_be_used_are_told(options: Mapping[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        provider(options, CLIENT)


class Mine:
    """Somebody else's provider."""

    def __init__(self, options: Mapping[str, object], client: Client) -> None:
        self.name = str(options["title"])

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        return HITS[:count]


def test_somebody_elses_provider_is_a_class_and_a_line() -> None:
    one = provider({"kind": "tests.test_web_providers:Mine", "title": "mine"}, CLIENT)
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
