"""Search providers: a question → addresses of pages. Each is a small class made from its table in the settings.

The shapes are those their makers document: SearXNG's search API (its settings must allow `format=json`), Brave's web
search, Tavily's and Exa's /search. What a provider says is data: addresses are judged before they are fetched, and
snippets are never evidence.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit, urlunsplit

from services.common.config import ConfigError, secret
from services.researcher.documents import Unreadable
from services.researcher.watch import Watch
from services.researcher.web.client import Client, retry_after
from services.researcher.web.guard import Refused, parse
from services.researcher.web.wire import Answer, Limits, Request

MAX_QUERY = 380  # characters sent; Brave and Tavily take 400
MAX_TITLE = 300
MAX_SNIPPET = 1000
SECONDS = 10.0  # for one search, waiting for a second try included
LIMITS = Limits(seconds=SECONDS, first_byte_seconds=SECONDS, bytes=4 * 1024 * 1024)

Json = Any  # what json.loads returns; looked at before it is believed


@dataclass(frozen=True, slots=True)
class Hit:
    """A page that a provider names."""

    url: str  # normalised, without a fragment
    title: str
    snippet: str


class ProviderFailed(Exception):
    """A provider gave nothing usable; the text says why. `retry_after`: seconds it asks to wait, if it does."""

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Provider(Protocol):
    """A search provider. Thread-safe. Made as `Class(options, client)`: its table, and how to ask the web.

    The client may ask the host of the option `url`, wherever it is; it follows no redirect.
    """

    name: str

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        """Returns about `count` pages, best first. Raises ProviderFailed, Cancelled, OutOfTime."""


class Api:
    """What providers with an HTTP interface share: options, key, one request, sound JSON."""

    kind = ""
    default_url = ""
    options = frozenset(("kind", "name", "url", "key"))

    def __init__(self, options: Mapping[str, object], client: Client) -> None:
        if unknown := options.keys() - self.options:
            known = ", ".join(sorted(self.options))
            raise ConfigError(f"{min(unknown)!r} of a web provider is not known; {self.kind} has {known}.")
        self.name = _text(options, "name", self.kind)
        self.url = _text(options, "url", self.default_url)
        self._key = _key(_text(options, "key", ""))
        self._client = client
        if not self.url:
            raise ConfigError(f"The web provider {self.name!r} needs `url`.")

    def headers(self) -> dict[str, str]:
        """Returns the headers that carry the key."""
        return {}

    def ask(self, url: str, watch: Watch, body: Json = None) -> Answer:
        """Asks once, with JSON when there is a body. Raises ProviderFailed for all but a 200."""
        headers = {"Accept": "application/json", **self.headers()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = b"" if body is None else json.dumps(body).encode()
        try:
            request = Request(headers, "GET" if body is None else "POST", data)
            answer = self._client.ask(self._client.guard.target(url), request, LIMITS, watch)
        except Unreadable as problem:
            raise ProviderFailed(str(problem)) from None
        if answer.status != HTTPStatus.OK:
            raise ProviderFailed(_refusal(answer.status), retry_after(answer.headers))
        return answer

    def json(self, url: str, watch: Watch, body: Json = None) -> Json:
        """Asks once and reads the JSON of the answer. Raises ProviderFailed."""
        return decode(self.ask(url, watch, body))


class KeyedApi(Api):
    """A provider that needs a key."""

    def __init__(self, options: Mapping[str, object], client: Client) -> None:
        super().__init__(options, client)
        if not self._key:
            raise ConfigError(
                f"The web provider {self.name!r} needs `key`, the environment variable that holds its key."
            )


class SearXng(Api):
    """A SearXNG instance; `url` is its base."""

    kind = "searxng"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        answer = self.json(with_query(self.url.rstrip("/") + "/search", q=shortened(query), format="json"), watch)
        found = hits(answer, ("results",), "content")
        if not found and isinstance(answer.get("unresponsive_engines"), list) and answer["unresponsive_engines"]:
            raise ProviderFailed("None of its engines answered.")
        return found[:count]


class Brave(KeyedApi):
    """Brave Search API, web search."""

    kind = "brave"
    default_url = "https://api.search.brave.com/res/v1/web/search"
    most = 20

    def headers(self) -> dict[str, str]:
        return {"X-Subscription-Token": self._key}

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        url = with_query(self.url, q=shortened(query), count=str(min(count, self.most)), text_decorations="false")
        answer = self.json(url, watch)
        if isinstance(answer, dict) and "web" not in answer:
            return []  # as it answers when there are no pages
        return hits(answer, ("web", "results"), "description")[:count]


class Tavily(KeyedApi):
    """Tavily search."""

    kind = "tavily"
    default_url = "https://api.tavily.com/search"
    most = 20

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        body = {"query": shortened(query), "max_results": min(count, self.most), "search_depth": "basic"}
        return hits(self.json(self.url, watch, body), ("results",), "content")[:count]


class Exa(KeyedApi):
    """Exa search, with highlights as snippets."""

    kind = "exa"
    default_url = "https://api.exa.ai/search"
    most = 100

    def headers(self) -> dict[str, str]:
        return {"x-api-key": self._key}

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        wanted = min(count, self.most)
        body = {"query": shortened(query), "type": "auto", "numResults": wanted, "contents": {"highlights": True}}
        return hits(self.json(self.url, watch, body), ("results",), "highlights")[:count]


def decode(answer: Answer) -> Json:
    """Reads JSON. Raises ProviderFailed for garbage."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise ProviderFailed("It answered with something that is not JSON.") from None


def hits(answer: Json, path: Iterable[str], snippet: str, url: str = "url", title: str = "title") -> list[Hit]:
    """Returns the pages of a list within an answer; entries without a usable address are left out.

    Raises ProviderFailed when there is no list.
    """
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(answer, list):
        raise ProviderFailed("It answered without a list of results.")
    entries = (entry for entry in answer if isinstance(entry, dict))
    made = (hit(entry.get(url), entry.get(title), entry.get(snippet)) for entry in entries)
    return [each for each in made if each is not None]


def hit(url: Json, title: Json, snippet: Json) -> Hit | None:
    """Makes a hit of what a provider says, None when its address is none."""
    if not isinstance(url, str):
        return None
    try:
        address = parse(url.strip()).url
    except Refused:
        return None
    return Hit(address, _line(title, MAX_TITLE), _line(snippet, MAX_SNIPPET))


def shortened(query: str) -> str:
    """Cuts a query between words to what every provider takes."""
    query = " ".join(query.split())
    return query if len(query) <= MAX_QUERY else (query[:MAX_QUERY].rpartition(" ")[0] or query[:MAX_QUERY])


def with_query(url: str, **parameters: str) -> str:
    """Adds parameters to a URL's query."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode(parameters)) if part)
    return urlunsplit(parts._replace(query=query))


def _line(value: Json, most: int) -> str:
    if isinstance(value, list):
        value = " ".join(each for each in value if isinstance(each, str))
    return " ".join(value[: 4 * most].split())[:most] if isinstance(value, str) else ""


def _refusal(status: int) -> str:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"It answered {status}: check its key (SearXNG: that its settings allow the json format)."
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return f"It answered {status}, a redirect: set `url` to where it leads."
    return f"It answered {status}."


def _key(name: str) -> str:
    """Returns the key that an environment variable holds; it must fit into a header, where errors would show it."""
    key = secret(name).strip() if name else ""
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{name} holds characters that no key has: put the key alone into this environment variable.")
    return key


def _text(options: Mapping[str, object], name: str, default: str) -> str:
    value = options.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"`{name}` of a web provider must be text, not {value!r}.")
    return value
