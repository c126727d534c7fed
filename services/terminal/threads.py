"""Threads that are there before they are needed, and work in them that nobody leaves before its end."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from services.common.config import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

COUNT = 16  # launches, ends of commands, and reads of files at once; each waits for the disk most of its time


def started(count: int = COUNT) -> ThreadPoolExecutor:
    """Returns an executor whose threads all run, so that nothing given to it ever needs a new one.

    An executor that starts a thread when it is asked for loses what it was asked when there can be no more threads:
    the work stays in its queue, and whoever asked hears of a failure. Raises ConfigError when they cannot be had now.
    """
    pool = ThreadPoolExecutor(count, "terminal")
    all_run = threading.Event()
    try:
        for _ in range(count):
            pool.submit(all_run.wait)  # none is idle, so each starts one more
    except RuntimeError:
        raise ConfigError(
            f"The Terminal needs {count} threads and the system gives it fewer: raise the limit of processes "
            "(pids_limit of its container, or ulimit -u)."
        ) from None
    finally:
        all_run.set()
    return pool


async def to_its_end(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls in a thread. Waits for the end even when cancelled, so that nothing is closed that the call still uses."""
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        work.exception()  # nobody else will ask for it
        raise
