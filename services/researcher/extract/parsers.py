"""Has each document that is native or complex parsed by a process of its own, and ends it when it must (worker.py)."""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from services.researcher.extract import wire
from services.researcher.extract.forking import STATUS
from services.researcher.extract.kept import Kept
from services.researcher.extract.worker import BOOT
from services.researcher.watch import POLL_S, Watch

log = logging.getLogger(__name__)

ROOT = str(Path(__file__).parents[3])  # where the process finds its modules
PROCESSES = 2  # at once
SILENCE_S = 180.0  # a process that says nothing for so long hangs; its CPU limit ends it earlier when it works
STARTS = 2  # after so many in vain there is no other
END_S = 1.0  # a process that closed its output has ended by then, or is ended
CLOSE_S = 5.0  # what parsers are forked from has ended by then, or is ended
READ_BYTES = 1024 * 1024
_OVERTIME = (-signal.SIGPROF, -signal.SIGXCPU)

Frame = tuple[dict[str, Any], bytes]


class ParserDied(Exception):
    """The process ended in the middle of a document; the text says which limit it met, a sentence.

    `lasting` is false when the document is not why, so that trying again may be of use.
    """

    def __init__(self, detail: str, *, lasting: bool = True) -> None:
        super().__init__(detail)
        self.lasting = lasting


class Parsers:
    """Up to PROCESSES parsing processes at once, one for each document. Thread-safe; a call waits until one may start.

    They are forked from a process that is started when it is first needed (0.3 CPU seconds) and ends when nothing was
    read for a while (forking.py). After a parser that broke, another takes its place: all that are forked from one
    process have their memory laid out alike, and who may break many could learn how.

    Args:
        boot: the program, for `python -c`.

    Attributes:
        kept: texts they made, for who reads the same bytes again.
    """

    def __init__(self, boot: str = BOOT) -> None:
        self.kept = Kept()
        self._boot = boot
        self._free = threading.Semaphore(PROCESSES)
        self._lock = threading.Lock()  # held for moments
        self._origin: _Origin | None = None
        self._past: list[_Origin] = []  # those that end with the last of their parsers
        self._told = False
        self._closed = False

    def parse(self, head: dict[str, Any], data: bytes, watch: Watch) -> Iterator[Frame]:
        """Yields the frames of an answer. Raises ParserDied; Cancelled and OutOfTime end the process at once."""
        while not self._free.acquire(timeout=POLL_S):
            watch.check()
        try:
            origin, parser = self._begin(watch)
            try:
                yield from _frames(parser, head, data, watch)
            except (EOFError, OSError, ValueError) as error:
                died = _death(parser, error)
                if not (isinstance(error, TimeoutError) or parser.status in _OVERTIME):
                    self._renew(origin)
                raise died from None
            finally:
                parser.close()
        finally:
            self._free.release()
            if self._closed:
                self.close()

    def close(self) -> None:
        """Ends what parsers are forked from; waits for those at work, at most CLOSE_S."""
        with self._lock:
            past, self._past, self._closed = [*self._past, *filter(None, [self._origin])], [], True
            self._origin = None
        for origin in past:
            origin.end()

    @property
    def pids(self) -> list[int]:
        """Returns the id of the process that parsers are forked from, if there is one."""
        with self._lock:
            return [self._origin.process.pid] if self._origin and self._origin.process.poll() is None else []

    def _begin(self, watch: Watch) -> "tuple[_Origin, _Parser]":
        """Returns a new parser that waits for its document, and where it comes from."""
        failed = 0
        while True:
            origin, new = self._started()
            parser = None
            try:
                parser = origin.fork()
                self._hear(parser, watch)
            except BaseException as error:  # whatever it is, a cancel too: nothing stays open
                if parser is not None:
                    parser.close()
                if not isinstance(error, EOFError | OSError):
                    raise
                self._renew(origin)
                failed += new
                if failed == STARTS:
                    raise ParserDied("Its parser does not start. The service's log may say why.") from None
                # else it had gone to rest, or somebody ended it
            else:
                return origin, parser

    def _started(self) -> "tuple[_Origin, bool]":
        """Returns the process that parsers are forked from, and whether it is new. Raises ParserDied."""
        with self._lock:
            self._past = [each for each in self._past if each.process.poll() is None]
            new = self._origin is None
            if self._origin is None:
                try:
                    self._origin = _Origin(self._boot)
                except OSError as error:
                    raise ParserDied(f"Its parser cannot be started: {error.strerror}.", lasting=False) from None
            return self._origin, new

    def _renew(self, origin: "_Origin") -> None:
        """Forks no more from a process; it ends with the last of its parsers."""
        with self._lock:
            if self._origin is origin:
                self._origin = None
                self._past.append(origin)
            origin.forsake()

    def _hear(self, parser: "_Parser", watch: Watch) -> None:
        """Takes in what a new process says of its sandbox; what does not hold is logged once."""
        head, _ = wire.unpack(_reader(parser, watch))
        with self._lock:
            told, self._told = self._told, True
        if not told:
            for sentence in head.get("missing", ()):
                log.warning("parsers of documents are held less: %s", sentence)


class _Parser:
    """A process that reads one document, by descriptors; `life` is explained in forking.py."""

    def __init__(self, document: int, answers: int, life: socket.socket) -> None:
        self.document = document
        self.answers = answers
        self.life = life
        self.status: int | None = None  # its exit code, or the signal's number below zero; None while unknown

    def wait(self) -> bool:
        """Sees how it ended; one that goes on is ended. Returns False when nobody can say."""
        self.life.settimeout(END_S)
        for last in (False, True):
            try:
                said = self.life.recv(STATUS.size)
            except TimeoutError:
                if last:
                    return False
                self.life.shutdown(socket.SHUT_WR)
            except OSError:
                return False
            else:
                self.status = STATUS.unpack(said)[0] if len(said) == STATUS.size else None
                return self.status is not None
        return False

    def close(self) -> None:
        """Lets go of it: it is ended if it still lives."""
        os.close(self.document)
        os.close(self.answers)
        self.life.close()


class _Origin:
    """The process that parsers are forked from. Raises OSError when it cannot be started."""

    def __init__(self, boot: str) -> None:
        self._asking, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", boot, ROOT],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={},
            )

    def fork(self) -> _Parser:
        """Asks for a parser. Raises OSError when it is gone; that nothing comes of it shows at the parser."""
        document, give = os.pipe()
        take, answers = os.pipe()
        life, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parser = _Parser(give, take, life)
        try:
            with other:
                socket.send_fds(self._asking, [b"1"], [document, answers, other.fileno()])
        except BaseException:  # whatever it is, nothing stays open
            parser.close()
            raise
        finally:
            os.close(document)
            os.close(answers)
        return parser

    def forsake(self) -> None:
        """Asks for no more parsers."""
        self._asking.close()

    def end(self) -> None:
        """Ends it with its parsers, which get a moment to end by themselves."""
        self.forsake()
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _frames(parser: _Parser, head: dict[str, Any], data: bytes, watch: Watch) -> Iterator[Frame]:
    _send(parser, head, data, watch)
    while (frame := wire.unpack(_reader(parser, watch)))[0].get("kind") != "end":
        yield frame


def _death(parser: _Parser, error: Exception) -> ParserDied:
    """Says why it ended by itself, or is ended now."""
    if isinstance(error, TimeoutError):
        return ParserDied(f"Its parser took nothing in, or said nothing, for {SILENCE_S:.0f} s and was ended.")
    if isinstance(error, ValueError):
        return ParserDied("Its parser answered with what is no answer; it may have been taken over.")
    if not parser.wait():
        return ParserDied("Its parser was ended from outside. Ask again.", lasting=False)
    if parser.status in _OVERTIME:
        return ParserDied("It takes too long to parse: more CPU time than a parser may use for its size.")
    return ParserDied("It takes more memory than the parser may use, or breaks it.")


def _send(parser: _Parser, head: dict[str, Any], data: bytes, watch: Watch) -> None:
    """Writes one document. A sound parser reads all of it before it begins; one that was taken over may never.

    Raises TimeoutError after SILENCE_S in all, OSError when the process is gone.
    """
    os.set_blocking(parser.document, False)
    room = select.poll()
    room.register(parser.document, select.POLLOUT)
    until = time.monotonic() + SILENCE_S
    for piece in wire.pack(head, data):
        rest = memoryview(piece)
        while rest:
            watch.check()
            if time.monotonic() > until:
                raise TimeoutError
            if room.poll(POLL_S * 1000):
                rest = rest[os.write(parser.document, rest) :]


def _reader(parser: _Parser, watch: Watch) -> Callable[[int], bytes]:
    answers = select.poll()  # unlike select(), it takes descriptors above 1023
    answers.register(parser.answers, select.POLLIN)

    def exactly(length: int) -> bytes:
        answer = bytearray()
        silent_until = time.monotonic() + SILENCE_S
        while len(answer) < length:
            watch.check()
            if answers.poll(POLL_S * 1000):
                answer += _some(parser.answers, length - len(answer))
                silent_until = time.monotonic() + SILENCE_S
            elif time.monotonic() > silent_until:
                raise TimeoutError
        return bytes(answer)

    return exactly


def _some(descriptor: int, most: int) -> bytes:
    chunk = os.read(descriptor, min(READ_BYTES, most))
    if not chunk:
        raise EOFError
    return chunk
