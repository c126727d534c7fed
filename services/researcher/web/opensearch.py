"""Any search with a URL template (OpenSearch 1.1): answers in Atom, RSS or JSON.

The template's parameters: {searchTerms}, {count}, {startIndex}, {startPage}, {language}, {inputEncoding},
{outputEncoding}; others only when optional, as in {geo:name?}, and then empty.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from xml.parsers import expat

from services.common.config import ConfigError
from services.researcher.watch import Watch
from services.researcher.web.client import Client
from services.researcher.web.providers import Api, Hit, Json, ProviderFailed, decode, hit, hits, shortened

MAX_ENTRIES = 200  # of a feed that are read
MAX_FIELD = 10_000  # characters of one
MAX_DEPTH = 64
LISTS = ("results", "items", "entries", "data", "hits")  # where JSON answers keep their list
_PARAMETER = re.compile(r"\{([A-Za-z0-9:._-]{1,64})(\?)?\}")
_SPACE = "http://www.w3.org/2005/Atom "


class OpenSearch(Api):
    """A provider with a URL template.

    Options: `url` the template, `key` and `key_header` (Authorization, as a bearer, when left out), and for JSON
    `results` the dotted path to its list, `fields` the names of address, title and snippet.
    """

    kind = "opensearch"
    options = Api.options | {"key_header", "results", "fields"}

    def __init__(self, options: Mapping[str, object], client: Client) -> None:
        super().__init__(options, client)
        self._header = str(options.get("key_header", ""))
        self._path = tuple(part for part in str(options.get("results", "")).split(".") if part)
        fields: Any = options.get("fields", ["url", "title", "content"])
        if not isinstance(fields, list) or len(fields) != 3 or not all(isinstance(each, str) for each in fields):
            raise ConfigError(f"`fields` of the web provider {self.name!r} must be three names: url, title, snippet.")
        self._fields: tuple[str, str, str] = (fields[0], fields[1], fields[2])
        names = {match[1] for match in _PARAMETER.finditer(self.url) if not match[2]}
        if "searchTerms" not in names or names - _values("", 1).keys():
            raise ConfigError(
                f"`url` of the web provider {self.name!r} must hold {{searchTerms}}, and of others only "
                f"{', '.join(sorted(_values('', 1)))}, unless they are optional."
            )

    def headers(self) -> dict[str, str]:
        if not self._key:
            return {}
        return {self._header: self._key} if self._header else {"Authorization": f"Bearer {self._key}"}

    def search(self, query: str, count: int, watch: Watch) -> list[Hit]:
        values = _values(shortened(query), count)
        url = _PARAMETER.sub(lambda match: quote(values.get(match[1], ""), safe=""), self.url)
        answer = self.ask(url, watch)
        if answer.body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            return feed(answer.body)[:count]
        return self._listed(decode(answer))[:count]

    def _listed(self, answer: Json) -> list[Hit]:
        if not self._path and _is_suggestions(answer):
            return _suggested(answer)
        address, title, snippet = self._fields
        found = next((name for name in LISTS if isinstance(answer, dict) and isinstance(answer.get(name), list)), "")
        return hits(answer, self._path or (found,), snippet, address, title)


def _values(query: str, count: int) -> dict[str, str]:
    return {
        "searchTerms": query,
        "count": str(count),
        "startIndex": "1",
        "startPage": "1",
        "language": "*",
        "inputEncoding": "UTF-8",
        "outputEncoding": "UTF-8",
    }


def _is_suggestions(answer: Json) -> bool:
    """Whether it is [terms, titles, descriptions, addresses] (OpenSearch suggestions, as MediaWiki answers)."""
    return isinstance(answer, list) and len(answer) == 4 and all(isinstance(each, list) for each in answer[1:])


def _suggested(answer: Json) -> list[Hit]:
    _, titles, descriptions, addresses = answer
    made = (hit(*each) for each in zip(addresses, titles, descriptions, strict=False))
    return [each for each in made if each is not None]


def feed(body: bytes) -> list[Hit]:
    """Reads the entries of an Atom (RFC 4287) or RSS 2.0 feed. Raises ProviderFailed when it is neither."""
    reader = _Feed()
    try:
        reader.parse(body)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ProviderFailed(f"It answered with XML that cannot be read: {error}.") from None
    if not reader.known:
        raise ProviderFailed("It answered with XML that is no Atom or RSS feed.")
    made = (hit(entry.get("link"), entry.get("title"), entry.get("summary")) for entry in reader.entries)
    return [each for each in made if each is not None]


_FIELDS = {
    "title": "title",
    "description": "summary",
    "link": "link",
    f"{_SPACE}title": "title",
    f"{_SPACE}summary": "summary",
    f"{_SPACE}content": "summary",
}


class _Feed:
    """One pass over a feed with expat; a document type, and with it every entity of its own, is refused."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.known = False
        self._depth = 0
        self._inside = 0  # depth of the entry we are in, 0 outside
        self._field = ""
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._data

    def parse(self, body: bytes) -> None:
        self._parser.Parse(body, True)

    def _doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if self._depth == 1:
            self.known = name in ("rss", f"{_SPACE}feed", "http://www.w3.org/1999/02/22-rdf-syntax-ns# RDF")
        if name in ("item", f"{_SPACE}entry") and len(self.entries) < MAX_ENTRIES:
            self.entries.append({})
            self._inside = self._depth
        elif self._inside and self._depth == self._inside + 1:
            self._field = _FIELDS.get(name, "")
            if name == f"{_SPACE}link" and attributes.get("rel", "alternate") == "alternate":
                self.entries[-1].setdefault("link", attributes.get("href", ""))

    def _end(self, name: str) -> None:
        if self._depth == self._inside:
            self._inside = 0
        if self._depth <= self._inside + 1:
            self._field = ""
        self._depth -= 1

    def _data(self, data: str) -> None:
        if self._field:
            entry = self.entries[-1]
            entry[self._field] = (entry.get(self._field, "") + data)[:MAX_FIELD]
