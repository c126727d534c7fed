"""What idle and slow subscribers cost: nothing to a writer, and memory within bounds."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, task_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.conductor import subscribe
from services.conductor.store.sqlite import SqliteStore
from services.conductor.subscribe import Filter, Tail
from tests.conftest import Running, refused, start_conductor, until
from tests.fakes import Workers
from tests.memory_store import MemoryStore
from tests.stores import an_append


def wanted(**scope: str) -> Filter:
    return Filter(scope=task_pb2.Scope(**scope))


NOT_CONCERNED = {
    "task": Filter(task_id="t-other"),
    "project": Filter(project_id="p-other"),
    "correlation": Filter(correlation_id="c-other"),
    "desktop": wanted(desktop_id="d-other"),
    "types": Filter(types=frozenset({"PLAN_APPROVED", "PLAN_PROPOSED"})),
}


@pytest.mark.parametrize("name", NOT_CONCERNED)
async def test_a_commit_wakes_only_those_it_concerns(name: str, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "log.db")
    tail = Tail(store)
    await tail.start()
    everything = Filter()
    with tail.bell(NOT_CONCERNED[name].interests) as idle, tail.bell(everything.interests) as busy:
        woken = asyncio.create_task(idle.heard())
        await store.append(an_append("t-1"))
        await asyncio.wait_for(busy.heard(), 5)
        assert not woken.done()  # the few there are are woken in one turn of the loop
        woken.cancel()
    assert not tail._bells
    await tail.close()
    await store.close()


async def test_a_bell_waits_to_be_rung_once_however_much_is_committed(tmp_path: Path) -> None:
    store = MemoryStore()
    tail = Tail(store)
    await tail.start()
    with contextlib.ExitStack() as subscribers:
        for _ in range(200):
            subscribers.enter_context(tail.bell(Filter().interests))
        for number in range(40):
            await store.append(an_append(f"t-{number}"))
            assert len(tail._to_ring) <= 200
        await until(lambda: not tail._to_ring)
    await tail.close()


async def test_the_tail_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe, "TAIL_BYTES", 200_000)
    store = SqliteStore(tmp_path / "log.db")
    tail = Tail(store)
    await tail.start()
    append = an_append("t-1", count=20)
    for event in append.events:
        event.task_progress.message = "x" * 50_000
    await store.append(append)
    await until(lambda: tail.head == 20)
    assert 0 < len(tail._events) < 5 and tail._events[-1].sequence == 20
    assert tail._bytes == sum(event.ByteSize() for event in tail._events)
    assert tail.after(0) is None and tail.after(20) is not None
    await tail.close()
    await store.close()


async def test_over_the_limit_of_streams_nothing_is_sent_but_the_refusal(tmp_path: Path, workers: Workers) -> None:
    running = await start_conductor(tmp_path / "log.db", workers, max_streams=1)
    request = conductor_pb2.SubscribeEventsRequest(project_id="p")
    first = running.stub.SubscribeEvents(request)
    await first.read()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await running.stub.SubscribeEvents(request).read()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
        await running.stub.StreamEvents(conductor_pb2.StreamEventsRequest(project_id="p")).read()
    first.cancel()
    await running.kill()


async def test_open_reflection_streams_silence_nobody(conductor: Running) -> None:
    method = conductor.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    streams: list[Any] = [method() for _ in range(20)]
    for stream in streams:
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await asyncio.wait_for(stream.read(), 5)
        assert answer.list_services_response.service
    for stream in streams:
        stream.cancel()


async def test_an_error_is_taken_only_with_failed(conductor: Running) -> None:
    error = error_pb2.TypedError(reason=error_pb2.ERROR_REASON_WORKER_FAILED, message="x")
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await conductor.stub.TransitionTo(conductor_pb2.TransitionToRequest(project_id="p", stage_id=1, error=error))
    state = await conductor.stub.TransitionTo(
        conductor_pb2.TransitionToRequest(project_id="p", stage_id=1, status=5, error=error)
    )
    assert state.stages[0].error.reason == error.reason
