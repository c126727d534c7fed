"""Starts again what ends by itself, a little later each time, until it happens too often."""

import asyncio
import time
from collections.abc import Callable

from ops.stack import Stack, StartError

FIRST_PAUSE_S = 0.2
WINDOW_S = 60.0
MOST_ENDS = 5  # of one process within the window; then something is wrong that no restart mends


async def keep(stack: Stack, say: Callable[[str], None]) -> str:
    """Keeps the processes of a running stack alive, each on its own.

    Returns a sentence once one has ended too often; `say` gets one about everything before that.
    """
    keepers = [asyncio.create_task(_keep(stack, name, say)) for name in stack.names]
    try:
        done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)  # none may start anything from here


async def _keep(stack: Stack, name: str, say: Callable[[str], None]) -> str:
    ends: list[float] = []
    how = await stack.ended(name)
    while True:
        now = time.monotonic()
        ends = [*(end for end in ends if end > now - WINDOW_S), now]
        if len(ends) == MOST_ENDS:
            return f"{how} It ended {MOST_ENDS} times within {WINDOW_S:.0f} s."
        pause = FIRST_PAUSE_S * 2 ** (len(ends) - 1)
        say(f"{how} Starting it again in {pause:g} s.")
        await asyncio.sleep(pause)
        try:
            await stack.restart(name)
        except StartError as error:
            how = f"{error}."
        else:
            say(f"{name} serves again, as process {stack.pid(name)}.")
            how = await stack.ended(name)
