"""One HTTP/1.1 exchange with one address that was judged: bounded in time, in bytes and in patience.

The library is h11, which only turns bytes into events: where we connect, how long we wait and how much we take stays in
our hands.
"""

import contextlib
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import h11

from services.researcher.documents import Kind, Unreadable
from services.researcher.watch import Watch
from services.researcher.web.coding import ACCEPTED, decoded
from services.researcher.web.guard import Target
from services.researcher.web.pipe import PIECE_BYTES, Patience, Pipe, connect, reason_of

MAX_HEADER_BYTES = 64 * 1024  # of an answer, interim answers included; more is refused
FRAMING = 2  # times the most bytes of a body may come over the wire: chunk sizes are framing too
MIN_RATE = 512  # bytes a second, on average
RATE_AFTER_S = 5.0  # seconds of body before the rate is looked at
MANY_PIECES = 5_000  # chunks of a body before their size is looked at: each costs time, however small
LEAST_PIECE = 128  # bytes over the wire, on average


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        seconds: in all.
        connect_seconds: for one address to accept, TLS included.
        first_byte_seconds: from the request to the first byte of the answer.
        bytes: of the body, after its content encoding is undone.
        cut: whether a body that is larger is cut there, instead of refused.
    """

    seconds: float = 20.0
    connect_seconds: float = 5.0
    first_byte_seconds: float = 10.0
    bytes: int = 16 * 1024 * 1024
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. Host, Accept-Encoding and Connection are added.

    `look` gets the headers of a 200 before its body is read, and may raise.
    """

    headers: Mapping[str, str]
    method: str = "GET"
    body: bytes = b""
    look: Callable[[Mapping[str, str]], object] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Names of headers are lower case; of repeated ones the values are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(
    target: Target, addresses: list[str], request: Request, limits: Limits, tls: ssl.SSLContext, watch: Watch
) -> Answer:
    """Asks the first address that accepts a connection. Raises Unreadable, Cancelled, OutOfTime.

    The body of any answer but 200 is not read, nor one whose headers `request.look` refuses.
    """
    patience = Patience(watch, limits.seconds)
    with contextlib.closing(connect(target, addresses, limits.connect_seconds, tls, patience)) as pipe:
        try:
            return _Exchange(pipe, target, request, limits, patience).answer()
        except (h11.ProtocolError, zlib.error, ValueError) as error:
            raise Unreadable(f"The server's answer is not sound HTTP: {error}.", lasting=False) from None
        except OSError as error:  # after the checks of time, which raise other classes
            raise Unreadable(f"The connection broke: {reason_of(error)}.", lasting=False) from None


class _Exchange:
    """One request and its answer over an open connection."""

    def __init__(self, pipe: Pipe, target: Target, request: Request, limits: Limits, patience: Patience) -> None:
        self._pipe = pipe
        self._target = target
        self._request = request
        self._limits = limits
        self._patience = patience
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._taken = 0  # bytes over the wire

    def answer(self) -> Answer:
        self._send()
        seconds = self._limits.first_byte_seconds
        self._patience.phase(seconds, f"did not begin to answer within {seconds:g} s")
        response = self._response()
        headers = _headers(response)
        if response.status_code != HTTPStatus.OK:
            return Answer(response.status_code, headers, b"")
        if self._request.look is not None:
            self._request.look(headers)
        return Answer(response.status_code, headers, self._body(headers))

    def _send(self) -> None:
        request = self._request
        headers = {
            "Host": self._target.authority,
            **request.headers,
            "Accept-Encoding": ACCEPTED,
            "Connection": "close",
        }
        if request.body:
            headers["Content-Length"] = str(len(request.body))
        head = h11.Request(method=request.method, target=self._target.target, headers=list(headers.items()))
        out = self._connection.send(head) or b""
        if request.body:
            out += self._connection.send(h11.Data(data=request.body)) or b""
        self._pipe.send(out + (self._connection.send(h11.EndOfMessage()) or b""))

    def _response(self) -> h11.Response:
        while True:
            event = self._next(MAX_HEADER_BYTES + PIECE_BYTES, "Its headers are too large")
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("it closed the connection without an answer")

    def _next(self, most: int, excess: str) -> object:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            piece = self._pipe.receive()
            self._taken += len(piece)
            if self._taken > most:
                raise _too_large(f"{excess}: more than {most} bytes came")
            self._connection.receive_data(piece)
        return event

    def _body(self, headers: Mapping[str, str]) -> bytes:
        body = bytearray()
        for piece in decoded(self._pieces(headers), headers.get("content-encoding", "")):
            body += piece
            if len(body) > self._limits.bytes:
                if self._limits.cut:
                    return bytes(body[: self._limits.bytes])
                raise _too_large(f"It is larger than the {self._limits.bytes} bytes that are read of one page")
        return bytes(body)

    def _pieces(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yields the body as it came, its framing undone."""
        declared = headers.get("content-length", "")
        most = self._limits.bytes
        if declared.isdecimal() and int(declared) > most and not self._limits.cut:
            raise _too_large(f"It is {int(declared)} bytes, more than the {most} that are read of one page")
        self._patience.whole()
        began, before, pieces = time.monotonic(), self._taken, 0
        while isinstance(
            event := self._next(most * FRAMING + MAX_HEADER_BYTES + PIECE_BYTES, "It is too large"), h11.Data
        ):
            yield bytes(event.data)
            pieces += 1
            if pieces > MANY_PIECES and self._taken - before < pieces * LEAST_PIECE:
                raise Unreadable("The server sends it in pieces too small to be worth reading.", lasting=False)
            seconds = time.monotonic() - began
            if seconds > RATE_AFTER_S and self._taken - before < seconds * MIN_RATE:
                raise Unreadable(f"The server sends less than {MIN_RATE} bytes a second.", lasting=False)


def _too_large(detail: str) -> Unreadable:
    return Unreadable(f"{detail}.", Kind.GAP_KIND_TRUNCATED)


def _headers(response: h11.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw, value in response.headers:
        name, text = raw.decode("ascii"), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers
