"""The router's promises: every call ends once, in its time, with the worker's own reason, and is really stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from conductor.v1 import (
    error_pb2,
    task_pb2,
)

from services.common.errors import Reason
from services.conductor.router import GrpcRouter
from tests.conftest import until
from tests.fakes import Workers, finding, finds, hangs, research_result
from tests.routed import (
    ANY_WORKER,
    REQUESTS,
    RESEARCHER,
    SCRIPTS,
    TERMINAL,
    WRITER,
    ask,
    begin,
    results,
    router,
    workers,
)

__all__ = ["router", "workers"]


ROOT = Path(__file__).resolve().parent.parent

GONE = {
    RESEARCHER: Reason.ERROR_REASON_WORKER_UNAVAILABLE,
    TERMINAL: Reason.ERROR_REASON_OUTCOME_UNKNOWN,  # the command may have done its work
    WRITER: Reason.ERROR_REASON_WORKER_UNAVAILABLE,
}


def script(capability: int, what: Callable[[Any], Awaitable[Sequence[Any]]], workers: Workers) -> None:
    setattr(workers, SCRIPTS[capability], what)


# ---- one call ----


@ANY_WORKER
async def test_a_worker_that_hangs_is_given_up_in_time_and_told(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    begun = time.monotonic()
    answer = await ask(router, capability, seconds=0.3)
    assert 0.25 < time.monotonic() - begun < 2
    assert answer.error.reason == Reason.ERROR_REASON_WORKER_TIMEOUT and answer.error.retryable
    assert answer.error.kind == error_pb2.ERROR_KIND_TIMEOUT
    assert answer.error.metadata == {"capability": task_pb2.Capability.Name(capability), "timeout_s": "0.3"}
    await until(lambda: workers.cancelled)


async def test_workers_that_are_down_are_unavailable_and_found_again_when_they_return(workers: Workers) -> None:
    router = GrpcRouter(workers.targets())
    await workers.stop()
    for capability, answer in zip(SCRIPTS, await asyncio.gather(*(ask(router, c) for c in SCRIPTS)), strict=True):
        assert answer.error.reason == Reason.ERROR_REASON_WORKER_UNAVAILABLE and answer.error.retryable
        assert answer.error.metadata == {"capability": task_pb2.Capability.Name(capability)}
    await workers.start(workers.port)
    begun = time.monotonic()
    assert not (await ask(router, RESEARCHER)).HasField("error")
    assert time.monotonic() - begun < 2
    await router.close()


@ANY_WORKER
async def test_a_worker_that_stops_during_the_call_is_told_apart(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    heard = begin(router, capability)
    await until(lambda: workers.seen)
    await workers.stop()
    await until(lambda: results(heard))
    assert [answer.error.reason for answer in results(heard)] == [GONE[capability]]


CHILD = """
import asyncio
from tests.fakes import Workers
async def tell_and_hang(_):
    print("called", flush=True)
    await asyncio.Event().wait()
async def main():
    workers = await Workers(tell_and_hang, tell_and_hang, tell_and_hang).start()
    print(workers.port, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@ANY_WORKER
async def test_a_worker_killed_during_the_call_is_told_apart(capability: int) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    port = int(await worker.stdout.readline())
    router = GrpcRouter(dict.fromkeys(SCRIPTS, f"127.0.0.1:{port}"))
    heard = begin(router, capability)
    assert await worker.stdout.readline() == b"called\n"
    worker.send_signal(signal.SIGKILL)
    assert await worker.wait() == -signal.SIGKILL
    await until(lambda: results(heard))
    assert [answer.error.reason for answer in results(heard)] == [GONE[capability]]
    await router.close()


@ANY_WORKER
async def test_a_cancelled_call_stops_the_worker_and_delivers_nothing(
    router: GrpcRouter, workers: Workers, capability: int
) -> None:
    setattr(workers, SCRIPTS[capability], hangs)
    heard = begin(router, capability)
    await until(lambda: workers.seen)
    router.cancel("call-1")
    router.cancel("call-1")
    router.cancel("never-made")
    await until(lambda: workers.cancelled == [REQUESTS[capability]])
    workers.research = finds
    assert not (await ask(router, RESEARCHER)).HasField("error")  # others go on, and by now anything late had arrived
    assert heard == []


async def test_an_answer_that_comes_with_the_cancel_delivers_nothing(router: GrpcRouter, workers: Workers) -> None:
    release = asyncio.Event()

    async def answers_late(_: Any) -> Sequence[Any]:
        await release.wait()
        return [research_result(finding())]

    workers.research = answers_late
    heard = begin(router, RESEARCHER)
    await until(lambda: workers.seen)
    release.set()
    router.cancel("call-1")
    workers.research = finds
    assert not (await ask(router, RESEARCHER)).HasField("error")
    assert heard == []


async def test_closing_ends_every_call_at_the_worker_and_delivers_nothing(workers: Workers) -> None:
    router = GrpcRouter(workers.targets())
    workers.research = workers.run = workers.write = hangs
    heard = [begin(router, capability, call_id=f"call-{capability}") for capability in SCRIPTS]
    await until(lambda: len(workers.seen) == 3)
    await asyncio.wait_for(router.close(), 5)
    await until(lambda: len(workers.cancelled) == 3)
    assert heard == [[], [], []]
