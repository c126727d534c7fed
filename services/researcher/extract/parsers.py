"""Starts, feeds and, when it must, kills the processes that parse what is native or complex (see worker.py)."""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from services.researcher.extract import wire
from services.researcher.extract.worker import BOOT
from services.researcher.watch import POLL_S, Watch

log = logging.getLogger(__name__)

ROOT = str(Path(__file__).parents[3])  # where the process finds its modules
PROCESSES = 2  # at once
SILENCE_S = 180.0  # a process that says nothing for so long hangs; its CPU limit ends it earlier when it works
READ_BYTES = 1024 * 1024
_NO_FAULT = (0, -signal.SIGKILL)  # a process that waited had gone to rest, or somebody else ended it

Frame = tuple[dict[str, Any], bytes]


class ParserDied(Exception):
    """The process ended in the middle of a document; the text says which limit it met, a sentence."""


@dataclass(slots=True)
class _Parser:
    process: subprocess.Popen[bytes]
    fresh: bool = True  # it has not said yet what holds it
    rested: bool = False  # it waited for work, and may have ended for want of it
    alone: bool = False  # it reads one document and is ended


class Parsers:
    """Up to PROCESSES parsing processes, started when needed. Thread-safe; a call waits until one is free.

    A process reads one document after another. One that a document took over could answer falsely about those that come
    after it. What is read to check a quote is therefore read alone, by a process that has read nothing before; while it
    works the next of its kind starts, which costs about 0.3 CPU seconds.

    Args:
        boot: the program, for `python -c`.
    """

    def __init__(self, boot: str = BOOT) -> None:
        self._boot = boot
        self._free = threading.Semaphore(PROCESSES)
        self._lock = threading.Lock()  # held for moments
        self._idle: list[_Parser] = []
        self._unused: _Parser | None = None  # has read nothing
        self._told = False
        self._closed = False

    def parse(self, head: dict[str, Any], data: bytes, watch: Watch, *, alone: bool = False) -> Iterator[Frame]:
        """Yields the frames of an answer. Raises ParserDied; Cancelled and OutOfTime end the process at once.

        Args:
            alone: by a process that has read nothing before, and will read nothing after.
        """
        self._acquire(watch)
        try:
            yield from self._parse(head, data, watch, alone)
        finally:
            self._free.release()

    def close(self) -> None:
        """Ends the processes that are idle, and those at work as soon as they have answered."""
        with self._lock:
            idle, self._idle, self._closed = self._waiting(), [], True
            self._unused = None
        for parser in idle:
            _end(parser)

    @property
    def pids(self) -> list[int]:
        """Returns the ids of the processes that wait for work."""
        with self._lock:
            return [parser.process.pid for parser in self._waiting()]

    def _waiting(self) -> list[_Parser]:
        return [*self._idle, self._unused] if self._unused else [*self._idle]

    def _acquire(self, watch: Watch) -> None:
        while not self._free.acquire(timeout=POLL_S):
            watch.check()

    def _parse(self, head: dict[str, Any], data: bytes, watch: Watch, alone: bool) -> Iterator[Frame]:
        parser, answered = self._take(head, data, watch, alone), False
        try:
            while True:
                try:
                    frame = wire.unpack(_reader(parser, watch))
                except EOFError:
                    if answered or not parser.rested or _status(parser) not in _NO_FAULT:
                        raise
                    parser = self._again(parser, head, data, watch)
                    continue
                answered = True
                if frame[0].get("kind") == "end":
                    break
                yield frame
        except (EOFError, OSError) as error:
            raise ParserDied(_death(parser, error)) from None
        except ValueError:
            _end(parser)
            raise ParserDied("Its parser answered with what is no answer; it may have been taken over.") from None
        except BaseException:
            _end(parser)  # it is in the middle of an answer that nobody will read
            raise
        self._give(parser)

    def _again(self, parser: _Parser, head: dict[str, Any], data: bytes, watch: Watch) -> _Parser:
        """Gives the document to another process: the first had gone to rest before it came."""
        _end(parser)
        again = self._take(head, data, watch, parser.alone)
        again.rested = False  # once is enough: a document may end its parser so
        return again

    def _take(self, head: dict[str, Any], data: bytes, watch: Watch, alone: bool) -> _Parser:
        """Returns a process that has been given the document."""
        while True:
            try:
                parser = self._waited(alone) or self._start()
            except OSError as error:
                raise ParserDied(f"Its parser cannot be started: {error.strerror}.") from None
            parser.alone = alone
            try:
                self._hear(parser, watch)
                _send(parser, head, data, watch)
            except TimeoutError as error:
                raise ParserDied(_death(parser, error)) from None
            except (EOFError, OSError):
                _end(parser)
                if parser.rested:
                    continue  # it had gone to rest
                raise ParserDied("Its parser does not start. The service's log may say why.") from None
            except BaseException:  # whatever it is, a cancel too: nothing stays open, and it goes on up
                _end(parser)
                raise
            if alone:
                self._prepare()
            return parser

    def _waited(self, alone: bool) -> _Parser | None:
        """Returns a process that waits for work, None when there is none."""
        with self._lock:
            if alone:
                parser, self._unused = self._unused, None
            else:
                parser = self._idle.pop() if self._idle else None
        if parser:
            parser.rested = True
        return parser

    def _prepare(self) -> None:
        """Starts the process that will read the next document alone, if none waits."""
        with self._lock:
            if self._closed or self._unused:
                return
            with contextlib.suppress(OSError):  # then it is started when it is needed, or said that it cannot be
                self._unused = self._start()

    def _give(self, parser: _Parser) -> None:
        with self._lock:
            if not self._closed and not parser.alone:
                self._idle.append(parser)
                return
        _end(parser)

    def _start(self) -> _Parser:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", self._boot, ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            bufsize=0,
        )
        return _Parser(process)

    def _hear(self, parser: _Parser, watch: Watch) -> None:
        """Takes in what a new process says of its sandbox; what does not hold is logged once."""
        if not parser.fresh:
            return
        head, _ = wire.unpack(_reader(parser, watch))
        parser.fresh = False
        if not self._told:
            self._told = True
            for sentence in head.get("missing", ()):
                log.warning("parsers of documents are held less: %s", sentence)


def _end(parser: _Parser) -> None:
    parser.process.kill()
    with contextlib.suppress(OSError):
        parser.process.communicate()


def _death(parser: _Parser, error: Exception) -> str:
    """Says why the process ended by itself."""
    if isinstance(error, TimeoutError):
        _end(parser)
        return f"Its parser took nothing in, or said nothing, for {SILENCE_S:.0f} s and was ended."
    if _status(parser) in (-signal.SIGPROF, -signal.SIGXCPU):
        return "It takes too long to parse: more CPU time than a parser may use for its size."
    return "It takes more memory than the parser may use, or breaks it."


def _status(parser: _Parser) -> int:
    """Returns how a process ended that closed its output. One that goes on without is ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        parser.process.wait(1)
    _end(parser)
    return parser.process.returncode


def _send(parser: _Parser, head: dict[str, Any], data: bytes, watch: Watch) -> None:
    """Writes one document. A sound parser reads all of it before it begins; one that was taken over may never.

    Raises TimeoutError after SILENCE_S in all, OSError when the process is gone.
    """
    descriptor = cast(IO[bytes], parser.process.stdin).fileno()  # a pipe, as it was started
    os.set_blocking(descriptor, False)
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    until = time.monotonic() + SILENCE_S
    for piece in wire.pack(head, data):
        rest = memoryview(piece)
        while rest:
            watch.check()
            if time.monotonic() > until:
                raise TimeoutError
            if room.poll(POLL_S * 1000):
                rest = rest[os.write(descriptor, rest) :]


def _reader(parser: _Parser, watch: Watch) -> Any:
    descriptor = cast(IO[bytes], parser.process.stdout).fileno()  # a pipe, as it was started
    answers = select.poll()  # unlike select(), it takes descriptors above 1023
    answers.register(descriptor, select.POLLIN)

    def exactly(length: int) -> bytes:
        answer = bytearray()
        silent_until = time.monotonic() + SILENCE_S
        while len(answer) < length:
            watch.check()
            if answers.poll(POLL_S * 1000):
                answer += _some(descriptor, length - len(answer))
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
