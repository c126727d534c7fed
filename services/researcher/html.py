"""Starts, feeds and, when it must, kills the process that parses HTML (see hypertext.py)."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, cast

from services.researcher.watch import POLL_S, Watch

PROGRAM = Path(__file__).with_name("hypertext.py")
LENGTH_BYTES = 8
READ_BYTES = 1024 * 1024


class ParserFailed(Exception):
    """The markup could not be parsed within the limits of time and memory."""


class HtmlParser:
    """One parsing process, started when first needed and again after it was killed. Thread-safe: calls take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def parse(self, markup: str, watch: Watch) -> dict[str, Any]:
        """Returns what `hypertext.extract` returns. Raises ParserFailed; Cancelled and OutOfTime end it at once."""
        with watch.holding(self._turn):
            process = self._running()
            try:
                _send(process, markup.encode())
                return cast(dict[str, Any], json.loads(_receive(process, watch)))
            except (EOFError, OSError):
                raise ParserFailed(self._death(process)) from None
            except BaseException:
                self._kill()  # it is in the middle of an answer that nobody will read
                raise

    def close(self) -> None:
        """Ends the process."""
        with self._turn:
            self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                bufsize=0,
            )
        return self._process

    def _death(self, process: subprocess.Popen[bytes]) -> str:
        """Says why the process ended by itself."""
        status = process.wait()
        self._kill()
        if status == -signal.SIGPROF:
            return "Its markup takes too long to parse."
        return "Its markup takes more memory than the parser may use, or breaks it."

    def _kill(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        with contextlib.suppress(OSError):
            process.communicate()


def _send(process: subprocess.Popen[bytes], markup: bytes) -> None:
    """Writes one document. The parser reads all of it before it begins, so this ends soon."""
    stdin = cast(IO[bytes], process.stdin)  # a pipe, as it was started
    rest = memoryview(len(markup).to_bytes(LENGTH_BYTES, "big") + markup)
    while rest:
        rest = rest[stdin.write(rest) or 0 :]


def _receive(process: subprocess.Popen[bytes], watch: Watch) -> bytes:
    descriptor = cast(IO[bytes], process.stdout).fileno()  # a pipe, as it was started
    answers = select.poll()  # unlike select(), it takes descriptors above 1023
    answers.register(descriptor, select.POLLIN)

    def exactly(length: int) -> bytes:
        answer = bytearray()
        while len(answer) < length:
            watch.check()
            if answers.poll(POLL_S * 1000):
                answer += _some(descriptor, length - len(answer))
        return bytes(answer)

    return exactly(int.from_bytes(exactly(LENGTH_BYTES), "big"))


def _some(descriptor: int, most: int) -> bytes:
    chunk = os.read(descriptor, min(READ_BYTES, most))
    if not chunk:
        raise EOFError
    return chunk
