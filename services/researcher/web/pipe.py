"""A connection to one address, whose every wait ends at a cancel, at the end of the time, or of its own patience."""

import contextlib
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.researcher.documents import Unreadable
from services.researcher.watch import POLL_S, Watch
from services.researcher.web.guard import Target

PIECE_BYTES = 64 * 1024  # received at once

T = TypeVar("T")


@dataclass(slots=True)
class Patience:
    """When to stop waiting: at a cancel, at the end of the research's time, at the end of the request's own."""

    watch: Watch
    seconds: float
    started: float = field(default_factory=time.monotonic)
    _until: float = math.inf
    _what: str = ""

    def phase(self, seconds: float, what: str) -> None:
        """Begins a phase that has its own, shorter time."""
        self._until, self._what = time.monotonic() + seconds, what

    def whole(self) -> None:
        """Ends the phase: only the time of the whole request counts now."""
        self._until = math.inf

    def check(self) -> None:
        """Raises Cancelled, OutOfTime, or Unreadable that says what took too long."""
        self.watch.check()
        now = time.monotonic()
        if now >= self._until:
            raise Unreadable(f"The server {self._what}.", lasting=False)
        if now >= self.started + self.seconds:
            raise Unreadable(f"The server did not finish within {self.seconds:g} s.", lasting=False)


class Pipe:
    """A non-blocking socket, with TLS or without. Its waits raise Unreadable, Cancelled and OutOfTime."""

    def __init__(self, bare: socket.socket, patience: Patience) -> None:
        self.bare = bare
        self._patience = patience
        bare.setblocking(False)

    def connect(self, address: str, port: int) -> None:
        """Connects to a numeric address. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            self.bare.connect((address, port))
        self._wait(select.POLLOUT)
        if error := self.bare.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))

    def secure(self, tls: ssl.SSLContext, name: str) -> None:
        """Begins TLS and verifies that the server is `name`. Raises ssl.SSLError."""
        secured = tls.wrap_socket(self.bare, server_hostname=name, do_handshake_on_connect=False)
        self.bare = secured
        self._until(secured.do_handshake)

    def send(self, data: bytes) -> None:
        """Sends all of it. Raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._until(lambda: self.bare.send(rest), select.POLLOUT) :]  # noqa: B023 - called at once

    def receive(self) -> bytes:
        """Returns what came, at most PIECE_BYTES; nothing at the end. Raises OSError."""
        return self._until(lambda: self.bare.recv(PIECE_BYTES))

    def close(self) -> None:
        """Closes the connection."""
        self.bare.close()

    def _until(self, attempt: Callable[[], T], event: int = select.POLLIN) -> T:
        while True:
            self._patience.check()
            try:
                return attempt()
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except BlockingIOError:
                self._wait(event)

    def _wait(self, event: int) -> None:
        ready = select.poll()
        ready.register(self.bare, event)
        while not ready.poll(POLL_S * 1000):
            self._patience.check()


def connect(target: Target, addresses: Sequence[str], seconds: float, tls: ssl.SSLContext, patience: Patience) -> Pipe:
    """Connects to the first address that accepts within `seconds`, TLS included; the name stays the host's.

    Raises Unreadable, Cancelled, OutOfTime.
    """
    problem = "it has no address"
    for address in addresses:
        patience.phase(seconds, f"did not accept a connection within {seconds:g} s")
        pipe = Pipe(_socket(address), patience)
        try:
            pipe.connect(address, target.port)
            if target.scheme == "https":
                pipe.secure(tls, target.host)
            return pipe
        except ssl.SSLCertVerificationError as error:
            pipe.close()
            raise Unreadable(f"The server's certificate is not valid: {error.verify_message}.", lasting=False) from None
        except OSError as error:
            pipe.close()
            problem = reason_of(error)
        except Unreadable as late:  # another address may be quicker
            pipe.close()
            problem = str(late).rstrip(".")
        except BaseException:  # whatever it is, a cancel too: nothing stays open, and it goes on up
            pipe.close()
            raise
    raise Unreadable(f"{target.host} could not be reached: {problem}.", lasting=False)


def _socket(address: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)


def reason_of(error: OSError) -> str:
    """Returns what the system or TLS says went wrong, in a few words."""
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
