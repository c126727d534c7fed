"""The four services and Envoy as processes, a system for each test: any of them killed at any moment."""

import asyncio
import signal
from collections import Counter

import pytest
from conductor.v1 import conductor_pb2, error_pb2, task_pb2

from ops.stack import Stack
from services.conductor.events import TERMINAL_TYPES
from tests.conftest import until
from tests.system.served import (
    all_ended,
    check_promises,
    check_reports,
    end_of,
    history,
    request,
    stub_of,
)

TASKS = 100


@pytest.mark.timeout(180)
async def test_a_hundred_tasks_survive_kill_9_of_the_conductor(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    accepted = await asyncio.gather(*(stub.Execute(request(f"Does water boil? {i}")) for i in range(TASKS)))
    await stack.kill("conductor", signal.SIGKILL)
    await channel.close()
    await stack.start_one("conductor")
    channel, stub = stub_of(stack)
    await until(lambda: all_ended(stub, TASKS), 90)
    events = await history(stub)
    check_promises(events)
    ends = Counter(event.type for event in events if event.type in TERMINAL_TYPES)
    assert ends == {"conductor.task.completed": TASKS}
    assert {event.task_id for event in events} == {answer.task_id for answer in accepted}
    assert check_reports(stack, events) == TASKS
    await channel.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["researcher", "report_writer"])
async def test_a_worker_killed_in_the_middle_costs_no_task(stack: Stack, name: str) -> None:
    channel, stub = stub_of(stack)
    hints = task_pb2.Hints(max_attempts=5)
    await asyncio.gather(*(stub.Execute(request(f"Water {i}", hints=hints)) for i in range(40)))
    await stack.kill(name, signal.SIGKILL)
    await stack.start_one(name)
    await until(lambda: all_ended(stub, 40), 90)
    events = await history(stub)
    check_promises(events)
    assert check_reports(stack, events) == 40
    await channel.close()


async def test_envoy_killed_cuts_only_itself(stack: Stack) -> None:
    channel, stub = stub_of(stack, "envoy")
    stream = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=0))
    answer = await stub.Execute(request())
    seen = [await stream.read()]
    await stack.kill("envoy", signal.SIGKILL)
    await channel.close()
    await stack.start_one("envoy")
    channel, stub = stub_of(stack, "envoy")
    await end_of(stub, answer.task_id)
    rest = stub.SubscribeEvents(conductor_pb2.SubscribeEventsRequest(after_sequence=seen[-1].sequence))
    while seen[-1].type not in TERMINAL_TYPES:
        seen.append(await rest.read())
    check_promises(seen)
    rest.cancel()
    await channel.close()


async def test_the_report_writer_down_is_a_typed_failure_without_a_trace(stack: Stack) -> None:
    channel, stub = stub_of(stack)
    await stack.kill("report_writer", signal.SIGTERM)
    answer = await stub.Execute(request(hints=task_pb2.Hints(max_attempts=1)))
    task = await end_of(stub, answer.task_id)
    assert task.status == task_pb2.TASK_STATUS_FAILED
    assert task.error.reason == error_pb2.ERROR_REASON_WORKER_UNAVAILABLE
    assert not list((stack.run_dir / "reports").iterdir())
    await channel.close()
