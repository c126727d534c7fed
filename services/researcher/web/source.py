"""The web as a source: search providers name pages, pages are fetched and searched like documents.

Pages are data. Nothing in them is followed: no link, no refresh, no script; only what a provider or the request named
is fetched, and where redirects of HTTP lead.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conductor.v1 import researcher_pb2

from services.researcher.documents import Document, Kind, Original, SourceKind, Text, Unreadable
from services.researcher.protocol import Candidate, Inquiry, Notes, Term, View
from services.researcher.watch import OutOfTime, Watch
from services.researcher.web.cache import Page
from services.researcher.web.fetch import Fetcher, Spent
from services.researcher.web.guard import Refused, parse
from services.researcher.web.media import name_of, utf8
from services.researcher.web.providers import Provider
from services.researcher.web.searching import SEARCHES_SHARE, Searching
from services.researcher.web.spool import Spool
from services.researcher.web.spread import spread

THREADS = 8  # pages fetched at once for one inquiry
LAST_S = 0.5  # seconds to index what was fetched when the time ended


class Index(Protocol):
    """An index in memory of the pages of one inquiry."""

    def add(self, document: Document, text: Text, watch: Watch) -> None:
        """Takes a page in. Raises Cancelled, OutOfTime."""

    def view(self, original: Callable[[str, Watch], Original]) -> View:
        """Returns a view of all that was taken in, and reads originals as it is told."""


class Extract(Protocol):
    """Reads documents: as services.researcher.extract does."""

    def documents(self, name: str, data: bytes, watch: Watch) -> Iterable[tuple[str, Text | Unreadable]]:
        """Yields ("", text) and what could not be read."""

    def document(self, name: str, data: bytes, watch: Watch) -> Text:
        """Returns the text, read where nothing was read before. Raises Unreadable."""


@dataclass(frozen=True, slots=True)
class Read:
    """A page that was fetched and read."""

    document: Document
    text: Text
    name: str  # as the extractor was told
    charset: str
    place: tuple[int, int]  # of its bytes in the spool


class WebSource:
    """Pages of the web. Thread-safe.

    Args:
        most_pages: fetched for one inquiry besides those it names.
        spools: folder for the bytes of pages while a view of them is open.
    """

    kind: SourceKind.ValueType = SourceKind.SOURCE_KIND_WEB

    def __init__(
        self,
        name: str,
        fetcher: Fetcher,
        providers: Sequence[Provider],
        extract: Extract,
        index: Callable[[], Index],
        most_pages: int,
        spools: Path,
    ) -> None:
        self.name = name
        self.fetcher = fetcher
        self.providers = tuple(providers)
        self.extract = extract
        self.index = index
        self.most_pages = most_pages
        self.spools = spools

    def open(self, inquiry: Inquiry, watch: Watch, notes: Notes) -> "WebView":
        """Searches, fetches and reads pages, and returns a view of them. Raises Cancelled.

        Time or a budget that ends makes the view incomplete; what fails becomes a gap.
        """
        self.spools.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool = Spool(self.spools)
        try:
            return _Opening(self, inquiry, watch, notes, spool).view()
        except BaseException:  # whatever it is, a cancel too: nothing stays open, and it goes on up
            spool.close()
            raise

    def original(self, uri: str, watch: Watch) -> Original:
        """Fetches a page anew, past the cache. Raises Unreadable, Cancelled, OutOfTime."""
        # In a thread of its own: a name server that is silent cannot be told to stop.
        [(_, ended)] = spread(lambda each: self._anew(each, watch), [uri], 1, watch)
        if isinstance(ended, Exception):
            raise ended
        return ended

    def _anew(self, uri: str, watch: Watch) -> Original:
        page = self.fetcher.page(uri, watch, lambda: True, past_cache=True)
        name = name_of(page.url, page.type)
        return Original(self.again(name, page.body, page.charset, watch), page.sha256)

    def describe(self) -> researcher_pb2.Source:
        """Returns the source; it holds nothing while no inquiry is open."""
        return researcher_pb2.Source(name=self.name, kind=self.kind, configured=True)

    def again(self, name: str, body: bytes, charset: str, watch: Watch) -> Text:
        """Returns the text of a page, read where nothing was read before. Raises Unreadable when there is none."""
        return self.extract.document(name, utf8(name, body, charset), watch)

    def text_of(self, name: str, body: bytes, charset: str, watch: Watch) -> tuple[Text, list[Unreadable]]:
        """Returns the text of a page, and what of it could not be read. Raises Unreadable when there is none."""
        text: Text | None = None
        problems: list[Unreadable] = []
        for member, read in self.extract.documents(name, utf8(name, body, charset), watch):
            if isinstance(read, Unreadable):
                problems.append(read)
            elif not member:
                text = read
        if text is None:
            raise problems[0] if problems else Unreadable("Nothing in it can be read.")
        return text, problems


class _Opening:
    """One inquiry on its way from questions to a view."""

    def __init__(self, source: WebSource, inquiry: Inquiry, watch: Watch, notes: Notes, spool: Spool) -> None:
        self._source = source
        self._inquiry = inquiry
        self._watch = watch
        self._notes = notes
        self._spool = spool
        self._lock = threading.Lock()
        self._bytes = 0
        self._complete = True

    def view(self) -> "WebView":
        read: dict[int, Read] = {}
        try:
            self._read(self._pages(), read)
            watch = self._watch
        except OutOfTime:
            self._spend("wall_time", "The time was over before all pages of the web were read.")
            watch = Watch(LAST_S)
        pages = [read[index] for index in sorted(read)]  # as ranked, whichever came first
        return self._indexed(pages, watch)

    def _pages(self) -> list[str]:
        """Returns the addresses to fetch: those named, then those that the providers name."""
        inquiry = self._inquiry
        named = [path for path in dict.fromkeys(inquiry.paths) if path]
        if len(named) == len(inquiry.paths) and named:
            return self._affordable(named)
        source = self._source
        if not source.providers:
            detail = "No search provider is configured: add web.providers, or name the addresses of pages."
            self._notes.miss(Kind.GAP_KIND_PROVIDER_FAILED, source.name, detail)
            return named
        self._notes.say(f"Asking {len(source.providers)} search providers.")
        most = max(1, int(inquiry.limits.max_fetches * SEARCHES_SHARE))
        hits = Searching(source.providers, self._watch, self._notes).search(inquiry.queries, most)
        known = {_normal(url) for url in named}
        found = [hit.url for hit in hits if hit.url not in known]
        return self._affordable(named + found[: source.most_pages])

    def _affordable(self, urls: list[str]) -> list[str]:
        most = self._inquiry.limits.max_documents
        if len(urls) > most:
            self._spend("max_documents", f"{len(urls) - most} pages are more than may be read, and were left out.")
        return urls[:most]

    def _read(self, urls: Sequence[str], read: dict[int, Read]) -> None:
        if urls:
            self._notes.say(f"Reading {len(urls)} pages of the web.")
        order = by_turns([host_of(url) for url in urls])
        for turn, ended in spread(self._page, [urls[index] for index in order], THREADS, self._watch):
            if isinstance(ended, Read):
                read[order[turn]] = ended
            elif isinstance(ended, Unreadable):
                self._notes.miss(ended.kind, urls[order[turn]], str(ended))
            elif isinstance(ended, Spent):
                self._spend("max_fetches", "The budget of requests was used up before all pages were read.")
            elif ended is not None:
                raise ended

    def _page(self, url: str) -> Read | None:
        """Fetches and reads one page; None when it does not fit into the budget."""
        page = self._source.fetcher.page(url, self._watch, self._notes.fetched)
        if not self._fits(page):
            return None
        name = name_of(page.url, page.type)
        text, problems = self._source.text_of(name, page.body, page.charset, self._watch)
        for problem in problems:
            self._notes.miss(problem.kind, page.url, str(problem))
        if not any(text.text[start:end].strip() for start, end in text.visible):
            raise Unreadable("It holds no text that a reader sees; it may be built by scripts, which are not run.")
        title = page.url if text.title in (name, "") else text.title
        document = Document(page.url, title, page.sha256, len(page.body), page.retrieved_ns)
        self._watch.check()
        self._notes.read(document)
        return Read(document, text, name, page.charset, self._spool.put(page.body))

    def _fits(self, page: Page) -> bool:
        with self._lock:
            fits = self._bytes + len(page.body) <= self._inquiry.limits.max_bytes
            self._bytes += len(page.body) if fits else 0
        if not fits:
            self._spend("max_bytes", "The budget of bytes was used up before all pages were read.")
        return fits

    def _indexed(self, pages: Iterable[Read], watch: Watch) -> "WebView":
        index = self._source.index()
        kept: dict[str, Read] = {}
        bodies: set[str] = set()
        try:
            for page in pages:
                self._still()
                if page.document.uri in kept or page.document.sha256 in bodies:
                    continue  # the same page under another address
                bodies.add(page.document.sha256)
                index.add(page.document, page.text, watch)
                kept[page.document.uri] = page
        except OutOfTime:
            self._spend("wall_time", "The time was over before all pages of the web were indexed.")
        return WebView(self._source, index, kept, self._spool, self._complete)

    def _still(self) -> None:
        """Raises Cancelled; the time may be over."""
        try:
            self._watch.check()
        except OutOfTime:
            return

    def _spend(self, budget: str, detail: str) -> None:
        self._complete = False
        self._notes.spend(budget, detail)


class WebView:
    """The pages of one inquiry. `original` reads their bytes again as they were fetched for it."""

    def __init__(
        self, source: WebSource, index: Index, pages: Mapping[str, Read], spool: Spool, complete: bool
    ) -> None:
        self._source = source
        self._pages = pages
        self._spool = spool
        self._view = index.view(self.original)
        self.documents = len(pages)
        self.passages = self._view.passages
        self.bytes = sum(page.document.size for page in pages.values())
        self.complete = complete

    def counts(self, stems: Sequence[str]) -> Mapping[str, int]:
        """Returns how many passages hold each stem."""
        return self._view.counts(stems)

    def search(self, question: str, terms: Sequence[Term], limit: int, watch: Watch) -> list[Candidate]:
        """Returns the passages that match best."""
        return self._view.search(question, terms, limit, watch)

    def original(self, uri: str, watch: Watch) -> Original:
        """Reads a page again from the bytes that were fetched. Raises Unreadable.

        The host is not asked a second time: what is verified here is that a quote stands in what was fetched.
        """
        page = self._pages.get(uri)
        if page is None:
            raise Unreadable("It is not among the pages that were read.")
        body = self._spool.get(page.place)
        return Original(self._source.again(page.name, body, page.charset, watch), page.document.sha256)

    def close(self) -> None:
        """Lets go of the pages."""
        self._view.close()
        self._spool.close()


def by_turns(hosts: Sequence[str]) -> list[int]:
    """Returns indices so that hosts take turns: one that is slow, or not to be hurried, holds up no other."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for index, host in enumerate(hosts):
        turns.append((seen[host], index))
        seen[host] += 1
    return [index for _, index in sorted(turns)]


def host_of(url: str) -> str:
    """Returns scheme, host and port of an address."""
    try:
        return parse(url).origin
    except Refused:
        return ""


def _normal(url: str) -> str:
    try:
        return parse(url).url
    except Refused:
        return url  # it is refused when it is fetched, and told then
