"""Which addresses of the web may be asked: the URL is judged before a name is resolved, every address after.

A connection goes to the very address that was judged (see wire.py), so a name that changes its address between the look
and the use gains nothing, and each redirect is judged anew.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, urlsplit

from services.researcher.documents import Kind, Unreadable

MAX_URL = 2048  # characters
MAX_ADDRESSES = 8  # of one name that are judged and tried
PORTS = {"http": 80, "https": 443}

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve: TypeAlias = Callable[[str, int], Sequence[str]]  # host, port → addresses; raises OSError

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,252})")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is globally assigned (IANA)
# Not for the public, or a way round to another address, whatever this Python's `is_global` knows (IANA registries of
# special-purpose addresses).
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
# What even a host that is allowed by name must not turn out to be: other hosts' metadata, groups, no address at all.
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/128", "fe80::/10", "ff00::/8"),
        *("2002:a9fe::/32", "::a9fe:0/112"),  # other ways to write 169.254.0.0/16 (RFC 3056, RFC 4291)
    )
)
# Reached at addresses of clouds that are not link-local (AWS, Alibaba, Azure, Oracle).
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")))


class Refused(Unreadable):
    """An address is not asked. The text says why and, where configuration decides it, what to configure."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, Kind.GAP_KIND_REFUSED)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that may be asked for, in its parts. `target` is the path and query as they stand in a request."""

    scheme: str
    host: str  # lower case, ASCII; an IPv6 address without brackets
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The host as in a Host header, the port only when it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole address, normalised, without a fragment."""
        return self.origin + self.target


def resolve(host: str, port: int) -> list[str]:
    """Asks the system for the addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """Judges URLs and addresses.

    Args:
        allow: (host, port) of private hosts that may be asked all the same, by exact name.
        ports: ports of public hosts that may be asked besides 80 and 443.
    """

    def __init__(
        self,
        allow: frozenset[tuple[str, int]] = frozenset(),
        ports: frozenset[int] = frozenset(),
        resolve: Resolve = resolve,
    ) -> None:
        self._allow = allow
        self._ports = ports | frozenset(PORTS.values())
        self._resolve = resolve

    def target(self, url: str) -> Target:
        """Takes a URL apart. Raises Refused for all but plain http and https URLs of ports that may be asked."""
        target = parse(url)
        if target.port not in self._ports and not self.allowed(target):
            raise Refused(f"Port {target.port} is not asked; the operator can list it in web.ports.")
        return target

    def allowed(self, target: Target) -> bool:
        """Whether the operator named this very host and port."""
        return (target.host, target.port) in self._allow

    def still(self, host_and_port: str) -> bool:
        """Whether a `host:port` that was allowed once still is."""
        host, _, port = host_and_port.rpartition(":")
        return (host, int(port)) in self._allow

    def addresses(self, target: Target) -> list[str]:
        """Returns the addresses to connect to. Raises Refused unless every one of them may be asked."""
        try:
            texts = self._resolve(target.host, target.port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreadable(f"The name {target.host} has no address: {reason}.", lasting=False) from None
        found = [_address(text) for text in texts[:MAX_ADDRESSES]]
        if not found:
            raise Unreadable(f"The name {target.host} has no address.", lasting=False)
        may = permitted if self.allowed(target) else public
        for address in found:
            if not may(address):
                raise Refused(
                    f"{target.host} is at {address}, which is not a public address{_remedy(target, address)}."
                )
        return [str(address) for address in found]


def parse(url: str) -> Target:
    """Takes an http or https URL apart and normalises it (RFC 3986). Raises Refused."""
    if len(url) > MAX_URL or _UNSAFE.search(url):
        raise Refused("The address is too long, or holds spaces or control characters.")
    try:
        parts = urlsplit(url)
        if parts.scheme not in PORTS:
            raise Refused("Only http and https addresses are fetched.")
        port = parts.port
        host = _host(parts.hostname or "")
    except ValueError:
        raise Refused("The address is malformed.") from None
    if "@" in parts.netloc:
        raise Refused("An address with a user name or password in it is not fetched.")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(parts.query, safe='/?%:@!$&()*+,;=~-._')}" if parts.query else ""
    return Target(parts.scheme, host, PORTS[parts.scheme] if port is None else port, path + query)


def _host(name: str) -> str:
    """Returns the name as DNS knows it. Raises ValueError."""
    if ":" in name and "%" not in name:  # a zone is this machine's own affair
        return str(ipaddress.IPv6Address(name))
    host = name.encode("idna").decode("ascii").lower().rstrip(".")
    if not _HOST.fullmatch(host):
        raise ValueError(name)
    return host


def _address(text: str) -> Address:
    """Returns the address that a connection would reach in the end."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _remedy(target: Target, address: Address) -> str:
    """Says what the operator can do, where anything can be done."""
    if not permitted(address):
        return " and never asked"
    return f"; the operator can list {target.host}:{target.port} in web.allow_hosts"


def public(address: Address) -> bool:
    """Whether an address belongs to the public internet, for one host alone."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST:
            return False
    special = any(address.version == network.version and address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not special and address not in _METADATA


def permitted(address: Address) -> bool:
    """Whether a host that the operator named may be at an address: private ones too, never metadata or groups."""
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        return permitted(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    never = any(address.version == network.version and address in network for network in _NEVER)
    return not never and address not in _METADATA
