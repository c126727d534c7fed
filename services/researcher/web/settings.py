"""The table [web] of the settings file → the web as a source.

[web]
contact = "https://example.org/robots"   # in the User-Agent: whom a site may turn to
allow_hosts = ["wiki.internal:8080"]     # private hosts that may be read, by exact name (bare: ports 80, 443)
ports = [8443]                           # of public hosts, besides 80 and 443
ca_file = "/etc/ssl/internal.pem"        # authorities trusted besides the system's
pages = 16                               # read for one research, besides those it names
page_bytes = 16777216                    # of one page
page_seconds = 20                        # for one page
pause = 1.0                              # seconds between two requests to one host
cache_seconds = 3600                     # for which a page is fresh whose server says nothing
cache_bytes = 1073741824

[[web.providers]]
kind = "searxng"                         # or brave, tavily, exa, opensearch, or "module:Class"
url = "http://searxng:8080"
key = "SEARXNG_KEY"                      # the environment variable that holds the key, where one is needed
"""

import importlib
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from services.common.config import MAX_PORT, ConfigError
from services.researcher.documents import Text, Unreadable
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.index.memory import MemoryIndex
from services.researcher.protocol import Encoder
from services.researcher.watch import Watch
from services.researcher.web.cache import Cache
from services.researcher.web.client import Client, agent, tls
from services.researcher.web.fetch import Fetcher
from services.researcher.web.guard import PORTS, Guard, Refused, parse
from services.researcher.web.manners import Manners
from services.researcher.web.opensearch import OpenSearch
from services.researcher.web.providers import Brave, Exa, Provider, SearXng, Tavily
from services.researcher.web.sites import Sites
from services.researcher.web.source import WebSource
from services.researcher.web.wire import Limits

MIB = 1024 * 1024
KINDS: Mapping[str, type[Any]] = {each.kind: each for each in (SearXng, Brave, Tavily, Exa, OpenSearch)}

DEFAULTS: Mapping[str, object] = {
    "contact": "",
    "allow_hosts": [],
    "ports": [],
    "ca_file": "",
    "pages": 16,
    "page_bytes": 16 * MIB,
    "page_seconds": 20.0,
    "pause": 1.0,
    "cache_seconds": 3600.0,
    "cache_bytes": 1024 * MIB,
    "providers": [],
}


@dataclass(frozen=True, slots=True)
class Extractor:
    """Reads documents with the parsers of this service."""

    parsers: Parsers

    def documents(self, name: str, data: bytes, watch: Watch) -> Iterable[tuple[str, Text | Unreadable]]:
        """Yields what the extractor yields."""
        return documents(name, data, self.parsers, watch)

    def document(self, name: str, data: bytes, watch: Watch) -> Text:
        """Returns what the extractor returns."""
        return document(name, "", data, self.parsers, watch)


def web_source(
    name: str, options: Mapping[str, object], home: Path, parsers: Parsers, encoder: Encoder | None = None
) -> WebSource:
    """Makes the web a source, from its table; pages are kept below `home`. Raises ConfigError."""
    values = _values(options)
    guard = Guard(_hosts(values["allow_hosts"]), frozenset(values["ports"]))
    client = Client(guard, _tls(values["ca_file"]), agent(values["contact"]))
    cache = Cache(home / "pages", values["cache_bytes"], values["cache_seconds"])
    limits = Limits(seconds=values["page_seconds"], bytes=values["page_bytes"])
    fetcher = Fetcher(client, cache, Manners(values["pause"]), Sites(client), limits)
    providers = [provider(table, client) for table in values["providers"]]
    index = lambda: MemoryIndex(encoder=encoder)  # noqa: E731
    return WebSource(name, fetcher, providers, Extractor(parsers), index, values["pages"], home / "spool")


def provider(options: Mapping[str, object], client: Client) -> Provider:
    """Makes a provider of its table. Its own host and port may be asked wherever they are. Raises ConfigError."""
    kind = options.get("kind")
    if not isinstance(kind, str) or (kind not in KINDS and ":" not in kind):
        raise ConfigError(f"`kind` of a web provider must be one of {', '.join(KINDS)}, or module:Class, not {kind!r}.")
    made = KINDS[kind] if kind in KINDS else _imported(kind)
    url = options.get("url") or getattr(made, "default_url", "")
    return cast(Provider, made(options, _reaching(str(url), client)))


def _reaching(url: str, client: Client) -> Client:
    """Returns a client that may ask the host of a provider, and that host alone."""
    if not url:
        return client
    try:
        target = parse(url.partition("?")[0].partition("{")[0])
    except Refused as problem:
        raise ConfigError(f"`url` {url!r} of a web provider cannot be used: {problem}") from None
    return Client(Guard(frozenset([(target.host, target.port)])), client.tls, client.agent)


def _imported(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        return cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"The web provider {name!r} cannot be imported: {error}.") from None


def _values(options: Mapping[str, object]) -> dict[str, Any]:
    """Checks the table's names and types. Raises ConfigError."""
    for name, value in options.items():
        if name not in DEFAULTS:
            raise ConfigError(f"web.{name} is not known; there are {', '.join(DEFAULTS)}.")
        expected = (int, float) if isinstance(DEFAULTS[name], float) else type(DEFAULTS[name])
        if not isinstance(value, expected) or isinstance(value, bool) or (isinstance(value, int | float) and value < 0):
            raise ConfigError(f"web.{name} = {value!r} cannot be used: give it like {DEFAULTS[name]!r}.")
    values = {**DEFAULTS, **options}
    _each(values, "ports", lambda port: isinstance(port, int) and 0 < port <= MAX_PORT, "ports, as [8443]")
    _each(values, "allow_hosts", lambda host: isinstance(host, str) and bool(host), 'hosts, as ["wiki.internal:8080"]')
    _each(values, "providers", lambda table: isinstance(table, Mapping), "tables [[web.providers]]")
    if not str(values["contact"]).isprintable() or not str(values["contact"]).isascii():
        raise ConfigError("web.contact must be plain text, an address that a site may turn to.")
    return values


def _each(values: Mapping[str, Any], name: str, good: Callable[[Any], bool], expected: str) -> None:
    for value in values[name]:
        if not good(value):
            raise ConfigError(f"web.{name} holds {value!r}; give {expected}.")


def _hosts(names: Iterable[str]) -> frozenset[tuple[str, int]]:
    allowed: set[tuple[str, int]] = set()
    for name in names:
        try:
            target = parse(f"http://{name}")
        except Refused:
            raise ConfigError(f"web.allow_hosts holds {name!r}; give host or host:port, without a scheme.") from None
        if target.target != "/":
            raise ConfigError(f"web.allow_hosts holds {name!r}; give host or host:port, without a path.")
        ports = [target.port] if name.endswith(f":{target.port}") else PORTS.values()
        allowed |= {(target.host, port) for port in ports}
    return frozenset(allowed)


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return tls(Path(ca_file) if ca_file else None)
    except OSError as error:
        raise ConfigError(f"web.ca_file = {ca_file!r} cannot be used: {error.strerror or error}.") from None
