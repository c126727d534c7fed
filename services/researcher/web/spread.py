"""Several jobs at once in threads that nobody waits for: when the caller stops, it stops at once."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar

from services.researcher.watch import POLL_S, Watch

J = TypeVar("J")
R = TypeVar("R")
Done: TypeAlias = "queue.SimpleQueue[tuple[int, R | Exception]]"


class Late(Exception):
    """A job did not end in its time."""


def spread(
    work: Callable[[J], R], jobs: Sequence[J], threads: int, watch: Watch, seconds: float = float("inf")
) -> Iterator[tuple[int, R | Exception]]:
    """Yields (index of the job, what it returned or raised) as they end; Late for those that take over `seconds`.

    Raises Cancelled, OutOfTime. A job under way at that moment ends by itself, because it looks at the same watch; what
    it returns is dropped. Its thread does not hold up the end of the process, as a name server that is silent would.
    """
    waiting = iter(range(len(jobs)))
    lock, over = threading.Lock(), threading.Event()
    done: Done[R] = queue.SimpleQueue()

    def run() -> None:
        while not over.is_set():
            with lock:
                index = next(waiting, None)
            if index is None:
                return
            try:
                done.put((index, work(jobs[index])))
            except Exception as problem:  # all of them: the caller gets it, whatever it is
                done.put((index, problem))

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=run, name="web", daemon=True).start()
    missing = set(range(len(jobs)))
    until = time.monotonic() + seconds
    try:
        while missing and (ended := _next(done, watch, until)) is not None:
            missing.discard(ended[0])
            yield ended
        for index in sorted(missing):
            yield index, Late()
    finally:
        over.set()


def _next(done: "Done[R]", watch: Watch, until: float) -> tuple[int, R | Exception] | None:
    while time.monotonic() < until:
        watch.check()
        try:
            return done.get(timeout=POLL_S)
        except queue.Empty:
            continue
    return None
