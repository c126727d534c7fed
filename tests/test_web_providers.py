"""Search providers: the shapes they document, what they do wrong, and how their answers are merged."""

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from services.common.config import ConfigError
from services.researcher.web.opensearch import feed
from services.researcher.web.providers import ProviderFailed
from services.researcher.web.settings import provider
from tests.web_hits import BRAVE, CLIENT, HITS, SEARXNG, A, B, json_answer, key, made, server
from tests.web_servers import Act, Server, answer, raw, redirect, watch

__all__ = ["key", "server"]


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
