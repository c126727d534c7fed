"""robots.txt as RFC 9309 has it."""

import threading
import time
from pathlib import Path

import pytest

from services.researcher.documents import Kind, Unreadable
from services.researcher.web import robots, sites
from services.researcher.web.guard import Refused
from services.researcher.web.wire import Limits
from tests.web_servers import Act, answer, fetcher, raw, reaching, redirect, serving, void, watch


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/a", True),
        ("User-agent: *\nDisallow:", "/a", True),
        ("User-agent: *\nDisallow: /", "/a", False),
        ("user-AGENT :  *  # all\r\ndisALLOW:/a", "/abc", False),
        ("User-agent: *\rDisallow: /a", "/b", True),
        ("User-agent: other\nDisallow: /", "/a", True),
        ("User-agent: ConductorResearcher/2.0\nDisallow: /", "/a", False),
        ("User-agent: ConductorResearcherPro\nDisallow: /", "/a", True),
        ("User-agent: *\nDisallow: /\nUser-agent: conductorresearcher\nAllow: /", "/a", True),
        ("User-agent: conductorresearcher\nDisallow: /x\n\nUser-agent: *\nDisallow: /", "/a", True),
        ("User-agent: conductorresearcher\nUser-agent: other\nDisallow: /", "/a", False),
        ("User-agent: conductorresearcher\nDisallow: /a\nUser-agent: x\nDisallow: /\n"
         "User-agent: conductorresearcher\nDisallow: /b", "/b", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a/b\nDisallow: /a", "/a/c", False),
        ("User-agent: *\nAllow: /page\nDisallow: /page", "/page", True),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf", False),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf?z", True),
        ("User-agent: *\nDisallow: /a*b*c", "/axxbxxc", False),
        ("User-agent: *\nDisallow: /a*b*c", "/axxcxxb", True),
        ("User-agent: *\nDisallow: /a$", "/a", False),
        ("User-agent: *\nDisallow: /a$", "/ab", True),
        ("User-agent: *\nDisallow: /*a*a$", "/a", True),
        ("User-agent: *\nDisallow: /?q=", "/?q=1", False),
        ("User-agent: *\nDisallow: /ü", "/%C3%BC", False),
        ("User-agent: *\nDisallow: /%7Ejoe", "/~joe/", False),
        ("User-agent: *\nDisallow: /a%2Fb", "/a/b", True),
        ("Disallow: /\nUser-agent: *\nSitemap: https://x/\nDisallow: /b", "/a", True),
        ("User-agent: *\nCrawl-delay: 5\nUser-agent: other\nDisallow: /", "/a", False),
        ("\ufeffUser-agent: *\nDisallow: /a", "/a", False),
        ("<html><body>User-agent: *\nDisallow: /", "/a", True),
        ("\x00\xff\nUser-agent *\nDisallow /", "/a", True),
    ],
)  # fmt: skip
def test_rules(text: str, path: str, allowed: bool) -> None:
    assert robots.read(text.encode()).allow(path) is allowed


def test_hostile_files_are_read_in_bounded_time() -> None:
    star = "User-agent: *\nDisallow: /" + "a*" * 200 + "b$\n"
    many = star + "Disallow: /" + "*a" * 100 + "$\n" * 20_000
    began = time.process_time()
    for text in (star, many, "User-agent: *\n" * 30_000, "User-agent: *\nDisallow: /" + "x" * 400_000, ":" * 400_000):
        robots.read(text.encode()).allow("/" + "a" * 2000)
    assert time.process_time() - began < 2


def allowed(act: Act | None, tmp_path: Path) -> tuple[bool, str, int]:
    """Returns whether a page may be read, why not, and how often robots.txt was asked for by two looks."""
    acts = {"/page": answer("page")} | ({"/robots.txt": act} if act else {})
    with serving(acts) as server:
        one = fetcher(reaching(server), tmp_path)
        why = ""
        for _ in range(2):
            try:
                one.page(server.url + "/page", watch(), lambda: True, past_cache=True)
            except Refused as refused:
                why = str(refused)
                assert refused.kind == Kind.GAP_KIND_REFUSED
        assert bool(server.asked) is not bool(why)
        return not why, why, server.robots


NOTHING = answer("User-agent: *\nDisallow: /", kind="text/plain")


def test_what_is_forbidden_is_not_asked_for(tmp_path: Path) -> None:
    may, why, times = allowed(NOTHING, tmp_path)
    assert not may and "does not let robots read it" in why and times == 1


@pytest.mark.parametrize("status", ["400 Bad", "401 No", "403 No", "404 No", "410 Gone", "429 Slow"])
def test_no_file_forbids_nothing(status: str, tmp_path: Path) -> None:
    assert allowed(answer("", status=status), tmp_path)[::2] == (True, 1)


@pytest.mark.parametrize(
    "act",
    [answer("", status="500 Oops"), answer("", status="503 Busy"), raw(b""), raw(b"garbage\r\n\r\n"),
     redirect("http://169.254.169.254/robots.txt"), redirect("file:///dev/null"), answer(b"x", Content_Encoding="br")],
)  # fmt: skip
def test_a_file_that_cannot_be_had_forbids_everything(act: Act, tmp_path: Path) -> None:
    may, why, times = allowed(act, tmp_path)
    assert not may and "could not be had" in why and times == 1


def test_a_silent_site_is_left_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "LIMITS", Limits(seconds=0.5, bytes=1000, cut=True))
    began = time.monotonic()
    assert not allowed(lambda asked: void(asked.over.wait(10)), tmp_path)[0]
    assert time.monotonic() - began < 3


def test_a_file_that_is_too_large_is_read_in_part(tmp_path: Path) -> None:
    large = b"User-agent: *\nDisallow: /page\n" + b"# filling\n" * 200_000
    assert not allowed(answer(large, kind="text/plain"), tmp_path)[0]
    late = b"# filling\n" * 200_000 + b"User-agent: *\nDisallow: /page\n"
    assert allowed(answer(late, kind="text/plain"), tmp_path)[0]


def test_redirects_lead_to_the_file_and_too_many_to_none(tmp_path: Path) -> None:
    acts = {"/robots.txt": redirect("/r"), "/r": NOTHING, "/page": answer("page")}
    with serving(acts) as server, pytest.raises(Refused, match="does not let robots"):
        fetcher(reaching(server), tmp_path).page(server.url + "/page", watch(), lambda: True)
    assert allowed(redirect("/robots.txt"), tmp_path)[0]


def test_each_hop_asks_its_own_site(tmp_path: Path) -> None:
    with (
        serving({"/robots.txt": NOTHING, "/page": answer("page")}) as closed,
        serving({"/page": redirect(closed.url + "/page")}) as open_,
    ):
        with pytest.raises(Refused, match="does not let robots"):
            fetcher(reaching(open_, closed), tmp_path).page(open_.url + "/page", watch(), lambda: True)
        assert not closed.asked


def test_many_at_once_ask_for_the_file_once(tmp_path: Path) -> None:
    def act(asked: object) -> None:
        time.sleep(0.1)
        answer("", status="404 No")(asked)  # type: ignore[arg-type]

    pages = {f"/{number}": answer("page") for number in range(6)}
    with serving(pages | {"/robots.txt": act}) as server:
        one = fetcher(reaching(server), tmp_path)
        threads = [threading.Thread(target=one.page, args=(server.url + path, watch(), lambda: True)) for path in pages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (server.robots, len(server.asked)) == (1, 6)


def test_an_address_that_is_refused_is_told_as_such(tmp_path: Path) -> None:
    with serving({}) as server, pytest.raises(Unreadable, match="not a public address"):
        fetcher(reaching(server), tmp_path).page("http://127.0.0.1/page", watch(), lambda: True)
