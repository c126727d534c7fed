"""Keeps what sites' robots.txt say, and asks for it when it is not known: once for each site, whoever waits."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urljoin

from services.researcher.documents import Unreadable
from services.researcher.watch import Watch
from services.researcher.web import robots
from services.researcher.web.client import Client
from services.researcher.web.guard import Guard, Refused, Target
from services.researcher.web.robots import Rules
from services.researcher.web.wire import Answer, Limits, Request

KEPT_S = 6 * 3600.0  # seconds rules are kept (RFC 9309 2.4: at most a day)
FAILED_S = 60.0  # seconds until a robots.txt that could not be had is asked for again
MAX_SITES = 256  # remembered; each up to half a megabyte
MAX_REDIRECTS = 5  # RFC 9309 2.3.1.2
LIMITS = Limits(seconds=10.0, first_byte_seconds=8.0, bytes=robots.MAX_BYTES, cut=True)
REDIRECTS = frozenset(
    (
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    )
)


@dataclass(slots=True)
class _Site:
    turn: threading.Lock = field(default_factory=threading.Lock)
    rules: Rules | None = None
    until: float = 0.0
    why: str = ""  # the file could not be had


class Sites:
    """Says whether a page may be read by robots. Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._sites: OrderedDict[str, _Site] = OrderedDict()

    def check(self, target: Target, watch: Watch) -> None:
        """Raises Refused when the site's robots.txt forbids the page, or cannot be had."""
        site = self._site(target.origin)
        with watch.holding(site.turn):
            if site.rules is None or time.monotonic() >= site.until:
                self._learn(site, target, watch)
            rules, why = site.rules or robots.ALL_FORBIDDEN, site.why
        if not rules.allow(target.target):
            raise Refused(
                f"The robots.txt of {target.authority} could not be had, so nothing is read there: {why}"
                if why
                else f"The robots.txt of {target.authority} does not let robots read it."
            )

    def _site(self, origin: str) -> _Site:
        with self._lock:
            site = self._sites.setdefault(origin, _Site())
            self._sites.move_to_end(origin)
            while len(self._sites) > MAX_SITES:
                self._sites.popitem(last=False)
            return site

    def _learn(self, site: _Site, target: Target, watch: Watch) -> None:
        site.why, kept = "", KEPT_S
        try:
            site.rules = self._rules(target, watch)
        except Refused:
            raise  # the host itself is refused; that is what the caller must hear
        except Unreadable as problem:
            site.rules, site.why, kept = robots.ALL_FORBIDDEN, str(problem), FAILED_S
        site.until = time.monotonic() + kept

    def _rules(self, target: Target, watch: Watch) -> Rules:
        answer = self._ask(self._client.guard.target(target.origin + "/robots.txt"), watch)
        try:
            at = target
            for _ in range(MAX_REDIRECTS):
                if answer.status not in REDIRECTS:
                    break
                at = redirected(at, answer, self._client.guard)
                answer = self._ask(at, watch)
        except Refused as problem:  # of where the site sends us, not of the site
            raise Unreadable(str(problem), lasting=False) from None
        return _judge(answer)

    def _ask(self, at: Target, watch: Watch) -> Answer:
        return self._client.ask(at, Request({"Accept": "text/plain"}), LIMITS, watch)


def redirected(at: Target, answer: Answer, guard: Guard) -> Target:
    """Returns where an answer redirects to. Raises Refused for what is not asked, and for leaving TLS."""
    try:
        url = urljoin(at.url, _utf8(answer.headers["location"]))
    except (KeyError, ValueError):
        raise Unreadable("The server redirects to nowhere.", lasting=False) from None
    to = guard.target(url)
    if at.scheme == "https" and to.scheme == "http":
        raise Refused("It redirects from https to http.")
    return to


def _utf8(value: str) -> str:
    """Returns a header's value as what most servers mean by bytes outside ASCII."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _judge(answer: Answer) -> Rules:
    """RFC 9309 2.3.1: a file is obeyed; 4xx and redirects without end count as none; all else forbids everything."""
    if answer.status == HTTPStatus.OK:
        return robots.read(answer.body)
    if answer.status in REDIRECTS or HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return robots.NOTHING_FORBIDDEN
    raise Unreadable(f"the server answered {answer.status}.", lasting=False)
