"""Pages kept on disk: expiry, revalidation, bounds, several processes, damage."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.researcher.web.cache import KEPT_STALE_S, LONGEST_S, Cache, Page
from services.researcher.web.client import retry_after
from services.researcher.web.fetch import Fetcher
from tests.conftest import Clock
from tests.web_servers import Server, always, answer, fetcher, reaching, redirect, serving, watch

URL = "https://host.example/a"


def page(body: bytes = b"body", **fields: object) -> Page:
    made = Page(URL, "text/html", "", hashlib.sha256(body).hexdigest(), 1, 2, {"If-None-Match": '"1"'}, (), body)
    return replace(made, **fields)  # type: ignore[arg-type]


def cache(folder: Path, most: int = 1_000_000, clock: Clock | None = None) -> Cache:
    return Cache(folder, most, 3600, clock or Clock())


def test_what_is_put_is_got_and_nothing_else(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    assert kept.get(URL) is None
    kept.put(URL, page(b"\n\x00 body \n"))
    assert cache(tmp_path).get(URL) == page(b"\n\x00 body \n")
    assert kept.get(URL + "b") is None


@pytest.mark.parametrize(
    "damage",
    [b"", b"\n", b"{}\n", b"[]\nbody", b'{"private": 1}\n', b"\xff\xff\nbody", b"9" * 5000 + b"\n", None],
)
def test_a_damaged_file_counts_as_absent(damage: bytes | None, tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put(URL, page())
    path = next(path for path in tmp_path.glob("??/*"))
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert kept.get(URL) is None
    kept.put(URL, page())
    assert kept.get(URL) == page()


def test_a_disk_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = cache(tmp_path / "file")
    kept.put(URL, page())
    assert kept.get(URL) is None


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        ("", 3600),
        ("max-age=60", 60),
        ("public, MAX-AGE=60", 60),
        ("private, max-age=\"60\"", 60),
        ("max-age=0", 0),
        ("no-cache", 0),
        ("no-cache, max-age=60", 0),
        ("max-age=99999999999", LONGEST_S),
        ("max-age=" + "9" * 400, LONGEST_S),
        ("max-age=-1", 3600),
        ("max-age=x", 3600),
        ("s-max-age=7", 3600),
        ("no-store", None),
        ("max-age=60, no-store", None),
    ],
)  # fmt: skip
def test_how_long_a_page_is_fresh(control: str, seconds: float | None, tmp_path: Path) -> None:
    until = cache(tmp_path).until({"cache-control": control}, 0)
    assert until == (None if seconds is None else seconds * 1_000_000_000)


def test_a_clock_that_was_set_back_makes_pages_stale(tmp_path: Path) -> None:
    clock = Clock()
    kept = cache(tmp_path, clock=clock)
    made = page(retrieved_ns=clock.now, fresh_until_ns=clock.now + 10_000_000_000)
    assert kept.fresh(made)
    clock.advance(11)
    assert not kept.fresh(made)
    clock.advance(-12)
    assert not kept.fresh(made)


def test_the_longest_unused_go_when_there_is_too_much(tmp_path: Path) -> None:
    kept = cache(tmp_path, 100_000)
    for number in range(30):
        kept.put(f"{URL}{number}", page(os.urandom(9_000), url=str(number)))
        kept.get(URL + "0")  # used again and again
        time.sleep(0.002)
    kept.clear()
    sizes = [path.stat().st_size for path in tmp_path.glob("??/*")]
    assert sum(sizes) <= 100_000 and len(sizes) > 5
    assert kept.get(URL + "0") is not None and kept.get(URL + "29") is not None
    assert kept.get(URL + "1") is None
    kept.put(URL, page(os.urandom(200_000)))
    assert kept.get(URL) is None  # larger than all there may be


def test_what_nobody_used_for_long_goes(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put(URL, page())
    path = next(path for path in tmp_path.glob("??/*"))
    os.utime(path, (time.time() - KEPT_STALE_S - 10,) * 2)
    kept.clear()
    assert not path.exists()


HAMMER = """
import hashlib, pathlib, sys
from services.researcher.web.cache import Cache, Page
seed, kept = int(sys.argv[2]), Cache(pathlib.Path(sys.argv[1]), 60_000, 3600)
for turn in range(150):
    url = str(turn * seed % 7)
    body = bytes([seed]) * 5_000
    kept.put(url, Page(url, "", "", hashlib.sha256(body).hexdigest(), 1, 2, {}, (), body))
    got = kept.get(url)
    assert got is None or len(set(got.body)) == 1
    if turn % 20 == 0:
        kept.clear()
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", HAMMER, str(tmp_path), str(seed)]) for seed in (1, 2, 3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert list(tmp_path.glob("??/*"))
    assert not [path for path in tmp_path.glob("??/*") if path.name.startswith("tmp")]


def test_a_page_that_is_written_again_is_whole_at_every_look(tmp_path: Path) -> None:
    kept, over = cache(tmp_path, 100_000_000), threading.Event()
    kept.put(URL, page(b"x" * 3_000_000))

    def write() -> None:
        while not over.is_set():
            kept.put(URL, page(b"x" * 3_000_000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(kept.get(URL) is not None for _ in range(60))
    finally:
        over.set()
        writer.join()


def two_looks(server: Server, one: Fetcher) -> list[Page]:
    return [one.page(server.url + "/page", watch(), always) for _ in range(2)]


def test_a_fresh_page_is_not_asked_for_again_and_costs_no_budget(tmp_path: Path) -> None:
    with serving({"/page": answer("one")}) as server:
        first = fetcher(reaching(server), tmp_path).page(server.url + "/page", watch(), always)
        again = fetcher(reaching(server), tmp_path).page(server.url + "/page#part", watch(), lambda: False)
        assert again == first and len(server.asked) == 1
        assert fetcher(reaching(server), tmp_path).page(server.url + "/page", watch(), always, past_cache=True)
        assert len(server.asked) == 2


def test_a_page_that_may_not_be_kept_is_not(tmp_path: Path) -> None:
    with serving({"/page": answer("one", Cache_Control="no-store")}) as server:
        two_looks(server, fetcher(reaching(server), tmp_path))
        assert len(server.asked) == 2
        assert not list(tmp_path.glob("??/*"))


def test_a_stale_page_is_asked_for_by_its_validators(tmp_path: Path) -> None:
    with serving({"/page": answer("one", Cache_Control="no-cache", ETag='"v1"', Last_Modified="yesterday")}) as server:
        one = fetcher(reaching(server), tmp_path)
        first = one.page(server.url + "/page", watch(), always)
        server.acts["/page"] = answer("", status="304 Not Modified", Cache_Control="max-age=60")
        second = one.page(server.url + "/page", watch(), always)
        assert server.asked[1].headers["if-none-match"] == '"v1"'
        assert server.asked[1].headers["if-modified-since"] == "yesterday"
        assert second.body == first.body and second.retrieved_ns > first.retrieved_ns
        one.page(server.url + "/page", watch(), always)
        assert len(server.asked) == 2  # it is fresh now
        server.acts["/page"] = answer("two")
        assert one.page(server.url + "/page", watch(), always, past_cache=True).body == b"two"
        assert "if-none-match" not in server.asked[2].headers


def test_a_redirected_page_is_kept_with_where_it_stands(tmp_path: Path) -> None:
    with serving({"/page": redirect("/there"), "/there": answer("one")}) as server:
        first, second = two_looks(server, fetcher(reaching(server), tmp_path))
        assert first == second and first.url == server.url + "/there"
        assert server.targets == ["/page", "/there"]


def test_a_private_page_is_not_given_out_when_its_host_is_no_longer_allowed(tmp_path: Path) -> None:
    with (
        serving({"/page": answer("secret")}) as inner,
        serving({"/page": redirect(inner.url + "/page")}) as outer,
    ):
        both = fetcher(reaching(inner, outer), tmp_path)
        assert both.page(outer.url + "/page", watch(), always).body == b"secret"
        fewer = fetcher(reaching(outer), tmp_path)
        with pytest.raises(Exception, match=r"Port|public address"):
            fewer.page(outer.url + "/page", watch(), always)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after({"retry-after": "120"}) == 120
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "-5"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "9" * 50}) is None
