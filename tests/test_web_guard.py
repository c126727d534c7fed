"""Which addresses of the web are asked."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.researcher.documents import Kind, Unreadable
from services.researcher.web.client import Client, agent
from services.researcher.web.guard import Guard, Refused, Resolve, parse
from services.researcher.web.wire import Limits, Request
from tests.web_servers import answer, serving, trusting, watch

PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "169.254.169.254"),  # noqa: S104
    *("172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1"),
    *(
        "0.1.2.3",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ),
    *(
        "168.63.129.16",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
    ),
    *(
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
    ),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1"),
]
PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"]


def guard(*addresses: str, allow: Sequence[tuple[str, int]] = ()) -> Guard:
    return Guard(frozenset(allow), resolve=lambda host, port: list(addresses))


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    with pytest.raises(Refused, match="not a public address") as refusal:
        guard(address).addresses(parse("http://host.example/"))
    assert refusal.value.kind == Kind.GAP_KIND_REFUSED


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_asked(address: str) -> None:
    assert len(guard(address).addresses(parse("http://host.example/"))) == 1


def test_a_refusal_says_what_the_operator_can_do() -> None:
    with pytest.raises(Refused, match=r"list host\.example:80 in web\.allow_hosts"):
        guard("10.0.0.1").addresses(parse("http://host.example/"))
    with pytest.raises(Refused, match="not a public address and never asked"):
        guard("169.254.169.254").addresses(parse("http://host.example/"))


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    with pytest.raises(Refused):
        guard("1.1.1.1", "10.0.0.1").addresses(parse("http://host.example/"))


def test_a_private_host_is_allowed_by_exact_name_and_port_only() -> None:
    allowing = guard("10.0.0.1", allow=[("wiki.internal", 8080)])
    assert allowing.addresses(allowing.target("http://wiki.internal:8080/")) == ["10.0.0.1"]
    assert allowing.addresses(allowing.target("http://WIKI.internal.:8080/")) == ["10.0.0.1"]
    for url in ("http://wiki.internal/", "http://a.wiki.internal:8080/", "http://10.0.0.1:8080/"):
        with pytest.raises(Refused):
            allowing.addresses(allowing.target(url))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "0.1.2.3",
        "fd00:ec2::254",
        "2002:a9fe:a9fe::",
        "::a9fe:a9fe",
        "192.0.0.192",
    ],
)
def test_an_allowed_name_that_leads_to_metadata_is_refused_all_the_same(address: str) -> None:
    with pytest.raises(Refused):
        guard(address, allow=[("wiki.internal", 80)]).addresses(parse("http://wiki.internal/"))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://host.example/",
            "file:///etc/passwd",
            "gopher://host.example/",
            "javascript:alert(1)",
            "data:text/html,a",
        ),
        *(
            "//host.example/",
            "host.example",
            "",
            "http://",
            "http:///path",
            "http://user@host.example/",
            "http://a:b@c/",
        ),
        *("http://host.example:99999/", "http://host.example:x/", "http://[::1", "http://[fe80::1%25eth0]/"),
        *(
            "http://host.example\\@evil.example/",
            "http://host.example/\r\nX: y",
            "http://ho st/",
            "http://" + "a" * 300 + "/",
        ),
        *("http://host.example/" + "a" * 3000, "http://\x00/", "http://-host.example/", "http://host.example:22/"),
        *("http://host.example:6379/", "http://host.example:0/"),
    ],
)
def test_urls_that_are_no_plain_web_address_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        Guard().target(url)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "0x7f.1",
            "2130706433",
            "017700000001",
            "127.1",
            "localhost",
            "localhost.",
            "[::1]",
            "１２７.0.0.1",
        ),
        *(
            "0",
            "0.0.0.0",  # noqa: S104
            "[::]",
            "169.254.169.254",
            "169.254.169.254.",
            "2852039166",
            "0xa9fea9fe",
            "0251.0376.0251.0376",
        ),
        *("169.16689662", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "169。254。169。254"),
        *("%31%32%37.0.0.1", "a@169.254.169.254", "169.254.169.254%20", "1.1.1.1\\@127.0.0.1"),
    ],
)
def test_no_spelling_of_this_machine_or_of_metadata_gets_through(host: str) -> None:
    refusing = Guard()
    with pytest.raises(Unreadable) as refused:
        refusing.addresses(refusing.target(f"http://{host}/"))
    assert isinstance(refused.value, Refused) or "has no address" in str(refused.value)


def test_urls_are_normalised() -> None:
    assert parse("HTTP://Bücher.Example:80/ä b".replace(" ", "%20") + "?q=ü#part").url == (
        "http://xn--bcher-kva.example/%C3%A4%20b?q=%C3%BC"
    )
    assert parse("https://host.example").url == "https://host.example/"
    assert parse("https://[2606:4700::1]:8443/a").authority == "[2606:4700::1]:8443"


def test_a_name_without_an_address_is_unreadable() -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    with pytest.raises(Unreadable, match="Name or service not known"):
        Guard(resolve=nowhere).addresses(parse("http://host.example/"))
    with pytest.raises(Unreadable, match="no address"):
        guard().addresses(parse("http://host.example/"))


def turning(*answers: str) -> Resolve:
    """Returns a resolver that gives another address each time."""
    turns = iter(answers)
    return lambda host, port: [next(turns)]


def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    with serving({"/": answer("here")}) as server:
        # A second look would fail: whoever resolved again to connect would see no address any more.
        allow = frozenset([("rebind.example", server.port)])
        client = Client(Guard(allow, resolve=turning("127.0.0.1")), trusting(), agent(""))
        target = client.guard.target(f"http://rebind.example:{server.port}/")
        assert client.ask(target, Request({}), Limits(), watch()).body == b"here"
        assert server.asked[0].headers["host"] == f"rebind.example:{server.port}"


def test_a_name_that_turns_private_is_refused_at_its_next_use() -> None:
    with serving({"/": answer("secret")}) as server:
        guard = Guard(ports=frozenset([server.port]), resolve=turning("93.184.215.14", "127.0.0.1"))
        target = guard.target(f"http://rebind.example:{server.port}/")
        assert guard.addresses(target) == ["93.184.215.14"]
        with pytest.raises(Refused):
            Client(guard, trusting(), agent("")).ask(target, Request({}), Limits(), watch())
        assert not server.asked


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving({"/": answer("direct")}) as server:
        client = Client(Guard(frozenset([("127.0.0.1", server.port)])), trusting(), agent(""))
        assert client.ask(client.guard.target(server.url + "/"), Request({}), Limits(), watch()).body == b"direct"
