"""Fetching from servers that misbehave: bounded in time and bytes, nothing followed but judged redirects."""

import gzip
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.researcher.documents import Kind, Unreadable
from services.researcher.watch import Cancelled, OutOfTime, Watch
from services.researcher.web import wire
from services.researcher.web.cache import Page
from services.researcher.web.coding import PIECE_BYTES, decoded
from services.researcher.web.fetch import Fetcher, Spent
from services.researcher.web.guard import Refused
from services.researcher.web.wire import Limits
from tests.web_servers import HTML, Act, Asked, Server, always, answer, fetcher, raw, reaching, redirect, serving, watch

SHORT = Limits(seconds=2.0, connect_seconds=1.0, first_byte_seconds=0.6, bytes=1024 * 1024)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({}) as running:
        yield running


def fetch(server: Server, path: Path, act: Act | None = None, limits: Limits = SHORT, at: Watch | None = None) -> Page:
    if act is not None:
        server.acts["/page"] = act
    return fetcher(reaching(server), path, limits=limits).page(server.url + "/page", at or watch(), always)


def test_a_page_comes_with_its_address_type_and_time(server: Server, tmp_path: Path) -> None:
    before = time.time_ns()
    page = fetch(server, tmp_path, answer("<p>Ünicode", kind="Text/HTML; Charset=UTF-8"))
    assert (page.url, page.type, page.charset) == (server.url + "/page", "text/html", "utf-8")
    assert page.body == "<p>Ünicode".encode()
    assert before <= page.retrieved_ns <= time.time_ns()
    asked = server.asked[0].headers
    assert asked["user-agent"] == "ConductorResearcher/0.1 (+https://example.org/robots)"
    assert asked["host"] == f"127.0.0.1:{server.port}"
    assert "cookie" not in asked and "referer" not in asked


def test_compressed_and_chunked_bodies_are_read(server: Server, tmp_path: Path) -> None:
    text = b"word " * 10_000
    bodies = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "Deflate": zlib.compress(text)[2:-4],  # bare, as some servers send it
    }
    for name, body in bodies.items():
        one = fetcher(reaching(server), tmp_path / name)
        server.acts["/page"] = answer(body, Content_Encoding=name)
        assert one.page(server.url + "/page", watch(), always).body == text
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(text[i : i + 999]), text[i : i + 999]) for i in range(0, len(text), 999))
    server.acts["/page"] = raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
    assert fetcher(reaching(server), tmp_path / "chunked").page(server.url + "/page", watch(), always).body == text
    server.acts["/page"] = raw(HEAD + b"\r\n" + text)  # until the end of the connection
    assert fetcher(reaching(server), tmp_path / "until").page(server.url + "/page", watch(), always).body == text


def test_every_member_of_a_gzip_body_is_read(server: Server, tmp_path: Path) -> None:
    body = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + b"filling"
    assert fetch(server, tmp_path, answer(body, Content_Encoding="gzip")).body == b"one two"


def test_a_body_in_tiny_pieces_costs_little(server: Server, tmp_path: Path) -> None:
    tiny = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n"
    began = time.process_time()
    with pytest.raises(Unreadable, match="pieces too small"):
        fetch(server, tmp_path, raw(tiny), Limits())
    assert time.process_time() - began < 2


BOMB = gzip.compress(b"\0" * (64 * 1024 * 1024))


def test_a_body_of_many_empty_members_costs_little() -> None:
    began = time.process_time()
    with pytest.raises(zlib.error, match="too many members"):
        list(decoded(iter([gzip.compress(b"") * 50_000]), "gzip"))
    assert time.process_time() - began < 1


def test_a_bomb_is_inflated_in_small_pieces_and_no_further_than_asked() -> None:
    pieces = decoded(iter([BOMB]), "gzip")
    assert all(len(next(pieces)) <= PIECE_BYTES for _ in range(100))


UNSOUND = {
    "no http": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not sound HTTP"),
    "nothing": (b"", "not sound HTTP"),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Ty", "not sound HTTP"),
    "half a body": (HEAD + b"Content-Length: 100\r\n\r\nhalf", "not sound HTTP"),
    "broken chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", "not sound HTTP"),
    "cut chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\nab", "not sound HTTP"),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "not sound HTTP"),
    "negative length": (HEAD + b"Content-Length: -1\r\n\r\nabcd", "not sound HTTP"),
    "huge length": (HEAD + b"Content-Length: " + b"9" * 15 + b"\r\n\r\n", "more than the 1048576"),
    "length of 9000 digits": (HEAD + b"Content-Length: " + b"9" * 9000 + b"\r\n\r\n", "not sound HTTP"),
    "no gzip": (HEAD + b"Content-Encoding: gzip\r\n\r\nplain", "not sound HTTP"),
    "half gzip": (HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 999)[:20], "not sound HTTP"),
    "bomb": (HEAD + b"Content-Encoding: gzip\r\n\r\n" + BOMB, "larger than the 1048576 bytes"),
    "brotli": (HEAD + b"Content-Encoding: br\r\n\r\nabc", "'br', which was not asked for"),
    "zstd": (HEAD + b"Content-Encoding: zstd\r\n\r\nabc", "'zstd', which was not asked for"),
    "twice": (HEAD + b"Content-Encoding: gzip, gzip\r\n\r\nabc", "'gzip, gzip', which was not asked for"),
    "huge": (HEAD + b"\r\n" + b"x" * (3 * 1024 * 1024), "larger than the 1048576 bytes"),
    "large headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000, "(?i)headers are too large|not sound"),
    "one long header": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "(?i)headers are too large|not sound"),
    "no type": (b"HTTP/1.1 200 OK\r\n\r\nabc", "no type at all"),
    "404": (b"HTTP/1.1 404 Not Found\r\n\r\n", "answered 404 Not Found"),
    "500": (b"HTTP/1.1 500 Oops\r\n\r\n", "answered 500 Internal Server Error"),
    "799": (b"HTTP/1.1 799 Odd\r\n\r\n", "answered 799"),
    "304 unasked": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
    "switching": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not sound HTTP"),
    "redirect to nowhere": (b"HTTP/1.1 302 Found\r\n\r\n", "redirects to nowhere"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_answer_is_unreadable(name: str, server: Server, tmp_path: Path) -> None:
    data, says = UNSOUND[name]
    with pytest.raises(Unreadable, match=says):
        fetch(server, tmp_path, raw(data))


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "video/mp4", "application/json", "text/x;y"])
def test_other_types_are_refused_before_their_body_is_read(kind: str, server: Server, tmp_path: Path) -> None:
    def act(asked: Asked) -> None:
        asked.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode())
        asked.dawdle(b"x" * 65536, 0.001)

    with pytest.raises(Unreadable, match="only text, HTML"):
        fetch(server, tmp_path, act)


def slow_headers(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\n")
    asked.dawdle(b"X: y\r\n", 0.05)


def interim_for_ever(asked: Asked) -> None:
    asked.dawdle(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 0.001)


def slow_body(asked: Asked) -> None:
    asked.send(HEAD + b"\r\n")
    asked.dawdle(b"x", 0.05)


def nothing_compressed(asked: Asked) -> None:
    asked.send(HEAD + b"Content-Encoding: gzip\r\n\r\n")
    asked.send(gzip.compress(b"")[:10])
    asked.dawdle(b"\x00\x00\x00\xff\xff" * 10_000, 0.001)  # stored blocks of no bytes (RFC 1951 3.2.4)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda asked: asked.over.wait(10), "did not begin to answer within 0.6 s"),
        (slow_headers, "did not begin to answer within 0.6 s"),
        (interim_for_ever, "(?i)headers are too large"),
        (slow_body, "did not finish within 2 s"),
        (nothing_compressed, "It is too large"),
    ],
)
def test_a_slow_server_is_left(act: Act, says: str, server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Unreadable, match=says):
        fetch(server, tmp_path, act)
    assert time.monotonic() - began < 3.5


def test_a_rate_below_the_least_is_left_before_the_time_is_over(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "RATE_AFTER_S", 0.3)
    began = time.monotonic()
    with pytest.raises(Unreadable, match="less than 512 bytes a second"):
        fetch(server, tmp_path, slow_body, Limits(seconds=20))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("act", [slow_body, slow_headers, lambda asked: asked.over.wait(10)])
def test_a_cancel_ends_a_request_at_once(act: Act, server: Server, tmp_path: Path) -> None:
    at = watch()
    threading.Timer(0.3, at.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(server, tmp_path, act, Limits(), at)
    assert time.monotonic() - began < 3


def test_the_time_of_the_research_ends_a_request(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime):
        fetch(server, tmp_path, slow_body, Limits(), Watch(0.4))


def test_a_host_that_refuses_connections_is_unreadable(tmp_path: Path) -> None:
    with serving({}) as gone:
        one = fetcher(reaching(gone), tmp_path)
    with pytest.raises(Unreadable, match=r"could not be had.*could not be reached: Connection refused"):
        one.page(gone.url + "/page", watch(), always)


def test_redirects_are_followed_and_judged_each(server: Server, tmp_path: Path) -> None:
    server.acts |= {"/page": redirect("/two"), "/two": redirect(f"{server.url}/three", "308 Moved")}
    server.acts["/three"] = answer("here")
    page = fetch(server, tmp_path)
    assert (page.url, page.body) == (server.url + "/three", b"here")


def test_a_redirect_may_be_written_in_utf8(server: Server, tmp_path: Path) -> None:
    server.acts |= {"/page": redirect("/größe"), "/gr%C3%B6%C3%9Fe": answer("here")}
    assert fetch(server, tmp_path).url == server.url + "/gr%C3%B6%C3%9Fe"


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("http://127.0.0.1:{other}/secret", "Port|not a public address"),
        ("http://127.0.0.1/secret", "127.0.0.1, which is not a public address"),
        ("http://localhost/secret", "not a public address"),
        ("http://[::1]/secret", "not a public address"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254, which is not a public address"),
        ("http://10.0.0.1/", "not a public address"),
        ("http://2852039166/", "169.254.169.254, which is not a public address and never asked"),
        ("http://[::ffff:a9fe:a9fe]/", "169.254.169.254, which is not a public address and never asked"),
        ("//169.254.169.254./", "169.254.169.254, which is not a public address and never asked"),
        ("//0/", "not a public address"),
        ("file:///etc/passwd", "Only http and https"),
        ("ftp://host.example/", "Only http and https"),
        ("http://user:secret@127.0.0.1:{port}/page", "user name or password"),
        ("http://[::1", "redirects to nowhere|malformed"),
        ("/page", "redirects more than 5 times"),
        ("?again", "redirects more than 5 times"),
    ],
)
def test_a_redirect_to_where_nobody_may_go_is_refused(to: str, says: str, server: Server, tmp_path: Path) -> None:
    with serving({"/secret": answer("secret")}) as other:
        with pytest.raises(Unreadable, match=says):
            fetch(server, tmp_path, redirect(to.format(other=other.port, port=server.port)))
        assert not other.asked
    assert len(server.asked) <= 6


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key with its own signature for 127.0.0.1, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    pem, key = folder / "both.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:named.example"]
    subprocess.run([*command.split(), *names, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


def test_certificates_and_their_names_are_verified(certificate: Path, tmp_path: Path) -> None:
    with serving({"/page": answer("safe")}, certificate) as server:
        trusting = fetcher(reaching(server, ca=certificate), tmp_path / "1")
        assert trusting.page(server.url + "/page", watch(), always).body == b"safe"
        with pytest.raises(Unreadable, match="certificate is not valid: self-signed"):
            fetcher(reaching(server), tmp_path / "2").page(server.url + "/page", watch(), always)
        elsewhere = frozenset([("localhost", server.port)])
        other = fetcher(reaching(server, ca=certificate, allow=elsewhere), tmp_path / "3")
        with pytest.raises(Unreadable, match="certificate is not valid: Hostname mismatch"):
            other.page(f"https://localhost:{server.port}/page", watch(), always)


def test_a_redirect_from_https_to_http_is_refused(certificate: Path, server: Server, tmp_path: Path) -> None:
    server.acts["/page"] = answer("plain")
    with serving({"/page": redirect(server.url + "/page")}, certificate) as secure:
        one = fetcher(reaching(server, secure, ca=certificate), tmp_path)
        with pytest.raises(Refused, match="from https to http"):
            one.page(secure.url + "/page", watch(), always)
    assert not server.asked


def test_tls_spoken_to_a_plain_server_is_unreadable(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="could not be"):
        fetcher(reaching(server), tmp_path, limits=SHORT).page(
            server.url.replace("http:", "https:") + "/page", watch(), always
        )


def test_what_the_budget_does_not_allow_is_not_asked(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Spent):
        fetcher(reaching(server), tmp_path).page(server.url + "/page", watch(), lambda: False)
    assert not server.asked


def test_a_host_is_asked_by_two_at_once_and_with_a_pause(server: Server, tmp_path: Path) -> None:
    def act(asked: Asked) -> None:
        asked.over.wait(0.15)
        answer("page")(asked)

    server.acts |= {f"/{number}": act for number in range(6)}
    one: Fetcher = fetcher(reaching(server), tmp_path, pause=0.1)
    began = time.monotonic()
    threads = [
        threading.Thread(target=one.page, args=(f"{server.url}/{number}", watch(), always)) for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 6
    assert server.most_at_once <= 2
    assert time.monotonic() - began >= 0.5  # five pauses


def test_a_host_that_asks_for_a_rest_gets_it(server: Server, tmp_path: Path) -> None:
    one = fetcher(reaching(server), tmp_path)
    server.acts |= {"/busy": answer("", status="429 Too Many Requests", Retry_After="1"), "/page": answer("page")}
    with pytest.raises(Unreadable, match="429"):
        one.page(server.url + "/busy", watch(), always)
    began = time.monotonic()
    assert one.page(server.url + "/page", watch(), always).body == b"page"
    assert time.monotonic() - began > 0.8


def test_pages_of_every_type_that_is_read_are_accepted(server: Server, tmp_path: Path) -> None:
    for number, kind in enumerate((HTML, "text/plain", "text/markdown", "application/pdf", "application/xhtml+xml")):
        one = fetcher(reaching(server), tmp_path / str(number))
        server.acts["/page"] = answer(b"x", kind=kind)
        assert one.page(server.url + "/page", watch(), always).body == b"x"


def test_the_kind_of_gap_tells_refused_from_too_large(server: Server, tmp_path: Path) -> None:
    for act, kind in (
        (redirect("http://127.0.0.1/"), Kind.GAP_KIND_REFUSED),
        (raw(HEAD + b"\r\n" + b"x" * 2_000_000), Kind.GAP_KIND_TRUNCATED),
        (raw(b"garbage"), Kind.GAP_KIND_UNREADABLE),
    ):
        with pytest.raises(Unreadable) as problem:
            fetch(server, tmp_path, act)
        assert problem.value.kind == kind
