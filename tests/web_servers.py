"""Real HTTP servers on loopback that do as a test says, soundly or not; and a client that may reach them."""

import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.researcher.watch import Watch
from services.researcher.web.cache import Cache
from services.researcher.web.client import Client, agent, tls
from services.researcher.web.fetch import Fetcher
from services.researcher.web.guard import Guard
from services.researcher.web.manners import Manners
from services.researcher.web.sites import Sites
from services.researcher.web.wire import Limits

HTML = "text/html; charset=utf-8"
TLS_HANDSHAKE = 22


@dataclass
class Asked:
    """A request as the server got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    over: threading.Event  # set when the server ends: whoever dawdles stops then

    def send(self, data: bytes) -> bool:
        """Sends; False when the client is gone."""
        try:
            self.connection.sendall(data)
            return True
        except OSError:
            return False

    def dawdle(self, data: bytes, seconds: float) -> None:
        """Sends the same again and again with a pause, for as long as the client listens."""
        while self.send(data) and not self.over.wait(seconds):
            pass


Act = Callable[[Asked], None]


def answer(body: bytes | str, kind: str = HTML, status: str = "200 OK", **headers: str) -> Act:
    """Returns what answers soundly."""
    data = body.encode() if isinstance(body, str) else body
    fields = {"Content-Type": kind, "Content-Length": str(len(data))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return lambda asked: void(asked.send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data))


def redirect(to: str, status: str = "302 Found") -> Act:
    """Returns what redirects."""
    return answer("", status=status, Location=to)


def raw(data: bytes) -> Act:
    """Returns what sends these bytes and hangs up."""
    return lambda asked: void(asked.send(data))


def void(_: object) -> None:
    """Drops a value."""


@dataclass
class Server:
    """A server whose paths act as given; all others answer 404. `asked` is what came, robots.txt left out."""

    acts: dict[str, Act] = field(default_factory=dict)
    certificate: Path | None = None
    asked: list[Asked] = field(default_factory=list)
    robots: int = 0  # times robots.txt was asked for
    at_once: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [asked.target for asked in self.asked]

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # or an accept under way would take one more
        self._accepting.join(5)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.certificate:
            context.load_cert_chain(self.certificate)
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, context), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.settimeout(10)
            if self.certificate:
                connection = context.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
            asked = _read(connection, self._over)
            if asked is not None:
                self._act(asked)

    def _act(self, asked: Asked) -> None:
        path = asked.target.partition("?")[0]
        with self._lock:
            if path == "/robots.txt":
                self.robots += 1
            else:
                self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.acts.get(path, answer("", status="404 Not Found"))(asked)
        finally:
            with self._lock:
                self.at_once -= 1


def _read(connection: socket.socket, over: threading.Event) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        data += piece
        if not piece or data[0] == TLS_HANDSHAKE:
            return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    method, target, _ = first.split(" ")
    return Asked(method, target, headers, body, connection, over)


@contextlib.contextmanager
def serving(acts: Mapping[str, Act], certificate: Path | None = None) -> Iterator[Server]:
    """Runs a server."""
    server = Server(dict(acts), certificate)
    try:
        yield server
    finally:
        server.close()


def reaching(*servers: Server, ca: Path | None = None, allow: frozenset[tuple[str, int]] = frozenset()) -> Client:
    """Returns a client that may ask these servers, as the operator would allow it."""
    hosts = frozenset(("127.0.0.1", server.port) for server in servers)
    return Client(Guard(hosts | allow), trusting(ca), agent("https://example.org/robots"))


@functools.cache
def trusting(ca: Path | None = None) -> ssl.SSLContext:
    """Returns what verifies certificates; to read the system's authorities takes a while."""
    return tls(ca)


def fetcher(client: Client, folder: Path, pause: float = 0.0, limits: Limits | None = None) -> Fetcher:
    """Returns a fetcher with a cache of its own."""
    cache = Cache(folder, 1024 * 1024 * 1024, 3600)
    return Fetcher(client, cache, Manners(pause), Sites(client), limits or Limits())


def watch(seconds: float = 30) -> Watch:
    """Returns a watch with time enough."""
    return Watch(seconds)


def always() -> bool:
    """Is a budget without a bound."""
    return True
