"""A server that providers of web search are pointed at."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conductor.v1 import researcher_pb2

from services.researcher.documents import Document
from services.researcher.web.client import Client, agent
from services.researcher.web.guard import Guard
from services.researcher.web.providers import Hit, Provider
from services.researcher.web.settings import provider
from tests.web_servers import Act, Server, answer, serving, trusting

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


def made(kind: str, url: str, **options: object) -> Provider:
    return provider({"kind": kind, "url": url, "key": "SEARCH_KEY", **options}, CLIENT)
