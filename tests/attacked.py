"""A parser that does what a document says, and what it is asked for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.researcher.documents import Text, Unreadable
from services.researcher.extract.parsers import Parsers
from services.researcher.extract.reading import document, documents
from services.researcher.watch import Watch

# A parser that does what the document says, Python, and answers with what came of it.
ATTACK = """
import sys; sys.path.insert(0, sys.argv[1])
from services.researcher.extract import worker, parts
import ctypes, mmap, os, resource, signal, socket, subprocess, time
def attack(name, data, bounds):
    seen = {}
    try:
        exec(data.decode(), globals(), seen)
        answer = repr(seen.get("answer"))
    except (OSError, ValueError) as error:  # ValueError: of setrlimit
        answer = type(error).__name__
    yield parts.Part("", answer)
worker.main(attack)
"""


@pytest.fixture
def attacked() -> Iterator[Parsers]:
    parsers = Parsers(ATTACK)
    yield parsers
    parsers.close()


def do(parsers: Parsers, code: str) -> str:
    ((_, found),) = documents("a.html", code.encode(), parsers, Watch(60))
    assert isinstance(found, Text), found
    return found.text


def children(parsers: Parsers) -> list[int]:
    """The processes that read documents now."""
    found: list[int] = []
    for pid in parsers.pids:
        with contextlib.suppress(FileNotFoundError):  # it ends just now
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def at_work(parsers: Parsers) -> int:
    """The one process that reads a document, as soon as it does."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for pid in children(parsers):
            if Path(f"/proc/{pid}/wchan").exists() and "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text():
                return pid
        time.sleep(0.01)
    raise AssertionError("no document is read")


def gone(pid: int) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + 20
    while not (over := _over(pid)) and time.monotonic() < end:
        time.sleep(0.01)
    return over


def _over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # its parent has not looked
    except (FileNotFoundError, ProcessLookupError):
        return True


def do_all(parsers: Parsers, code: bytes, watch: Watch) -> list[tuple[str, Text | Unreadable]]:
    return list(documents("a.html", code, parsers, watch))


def idle(parsers: Parsers) -> bool:
    """Whether all processes that read documents end in time."""
    return all(gone(pid) for pid in children(parsers))


def usual(parsers: Parsers, page: str) -> str:
    """Reads a page as it is read for the index."""
    ((_, found),) = documents("a.html", page.encode(), parsers, Watch(60))
    assert isinstance(found, Text), found
    return found.text


def alone(parsers: Parsers, page: str) -> str:
    """Reads a page as it is read to check a quote."""
    return document("a.html", "", page.encode(), parsers, Watch(60)).text


def ended(parsers: Parsers, work: Callable[[], object]) -> BaseException | None:
    """What a thread that works ends with; it must end."""
    problem: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, it is looked at below
            problem.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    assert idle(parsers)
    return problem[0] if problem else None
