"""Waiting for a call in a thread that can stop at once, whatever the call is doing."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any, TypeVar

from services.researcher.watch import POLL_S

Result = TypeVar("Result")


class Background:
    """An event loop in a thread of its own, started at the first use. Thread-safe.

    A loop in the caller's thread would not do: it ends only when every name lookup it began has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait(self, work: Coroutine[Any, Any, Result], check: Callable[[], None]) -> Result:
        """Runs `work` and returns its result; calls `check` all the while, and gives the work up when that raises."""
        future: Future[Result] = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            while True:
                try:
                    return future.result(POLL_S)
                except NotYet:
                    if future.done():
                        return future.result()
                    check()
        finally:
            future.cancel()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="model", daemon=True).start()
            return self._loop
