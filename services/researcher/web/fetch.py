"""Fetches pages: each hop judged by the guard and the site's robots.txt, hosts not hurried, what is fresh from disk."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus

from services.researcher.documents import Unreadable
from services.researcher.watch import Watch
from services.researcher.web.cache import Cache, Page
from services.researcher.web.client import Client, plain, retry_after
from services.researcher.web.guard import Refused, Target
from services.researcher.web.manners import Manners
from services.researcher.web.media import ACCEPT, accepted
from services.researcher.web.sites import MAX_REDIRECTS, REDIRECTS, Sites, redirected
from services.researcher.web.wire import Answer, Limits, Request

LONGEST_DEFER_S = 10.0  # seconds a host is left alone at most after it asked for it
VALIDATORS = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
MAX_VALIDATOR = 1024  # characters of one that is kept


class Spent(Exception):
    """The budget allows no more requests."""


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches pages. Thread-safe. `limits` are those of one request."""

    client: Client
    cache: Cache
    manners: Manners
    sites: Sites
    limits: Limits

    def page(self, url: str, watch: Watch, may: Callable[[], bool], *, past_cache: bool = False) -> Page:
        """Returns the page at an address; `may` is asked before a request for it is made.

        Raises Unreadable, Refused, Spent, Cancelled, OutOfTime.
        """
        target = self.client.guard.target(url)
        kept = None if past_cache else self._kept(target)
        if kept is not None and self.cache.fresh(kept):
            return kept
        if not may():
            raise Spent
        return self._follow(target, kept, watch)

    def _kept(self, target: Target) -> Page | None:
        """Returns the page on disk, unless a private host on its way is no longer allowed."""
        page = self.cache.get(target.url)
        return page if page is not None and all(map(self.client.guard.still, page.private)) else None

    def _follow(self, asked: Target, kept: Page | None, watch: Watch) -> Page:
        at, private = asked, set[str]()
        for _ in range(MAX_REDIRECTS + 1):
            self.sites.check(at, watch)
            if self.client.guard.allowed(at):
                private.add(f"{at.host}:{at.port}")
            answer = self._ask(at, kept, watch)
            if answer.status not in REDIRECTS:
                return self._take(asked, at, answer, kept, private)
            at = redirected(at, answer, self.client.guard)
        raise Refused(f"It redirects more than {MAX_REDIRECTS} times.")

    def _ask(self, at: Target, kept: Page | None, watch: Watch) -> Answer:
        conditions = kept.validators if kept is not None and kept.url == at.url else {}
        request = Request({"Accept": ACCEPT, **conditions}, look=lambda headers: accepted(plain(headers)[0]))
        with self.manners.turn(at.origin, watch):
            answer = self.client.ask(at, request, self.limits, watch)
        if answer.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            self.manners.defer(at.origin, min(retry_after(answer.headers) or 0.0, LONGEST_DEFER_S))
        return answer

    def _take(self, asked: Target, at: Target, answer: Answer, kept: Page | None, private: set[str]) -> Page:
        now = time.time_ns()
        until = self.cache.until(answer.headers, now)
        if answer.status == HTTPStatus.NOT_MODIFIED and kept is not None:
            page = replace(kept, retrieved_ns=now, fresh_until_ns=until or 0)
        elif answer.status == HTTPStatus.OK:
            page = _page(at, answer, now, until or 0, tuple(sorted(private)))
        else:
            raise Unreadable(f"The server answered {_phrase(answer.status)}.", lasting=False)
        if until is not None:
            self.cache.put(asked.url, page)
        return page


def _page(at: Target, answer: Answer, now: int, until: int, private: tuple[str, ...]) -> Page:
    kind, charset = plain(answer.headers)
    return Page(
        url=at.url,
        type=kind,
        charset=charset,
        sha256=hashlib.sha256(answer.body).hexdigest(),
        retrieved_ns=now,
        fresh_until_ns=until,
        validators=_validators(answer.headers),
        private=private,
        body=answer.body,
    )


def _validators(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        condition: headers[name]
        for name, condition in VALIDATORS.items()
        if name in headers and len(headers[name]) <= MAX_VALIDATOR and headers[name].isascii()
    }


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
