"""Three Conductors on one PostgreSQL behind Envoy, with two of each worker: any may stop, nobody sees an error."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, conductor_pb2_grpc, task_pb2
from google.protobuf import duration_pb2

from ops.stack import Stack
from tests.conftest import MARKDOWN, until

CALLERS = 6
CONDUCTORS = ("conductor", "conductor-2", "conductor-3")


@pytest.fixture
async def replicas(tmp_path: Path, documents: Path) -> AsyncIterator[Stack]:
    environ = {"RESEARCHER_ROOTS": str(documents)}
    async with Stack(tmp_path / "run", replicas=3, workers=2, postgres=True, environ=environ) as stack:
        yield stack


def stub_of(stack: Stack, name: str = "envoy") -> Any:
    return conductor_pb2_grpc.ConductorStub(grpc.aio.insecure_channel(stack.addresses[name]))


async def execute(stub: Any) -> str:
    """Runs one objective to its end, without a request id, and finds its report; any error is raised."""
    request = conductor_pb2.ExecuteRequest(
        objective="At what temperature does water boil?", output_mode=MARKDOWN, wait=duration_pb2.Duration(seconds=30)
    )
    answer = await stub.Execute(request, timeout=60)
    # Asked of whichever replica: it shows at least what another has told.
    task = await stub.GetTask(conductor_pb2.GetTaskRequest(task_id=answer.task_id), timeout=30)
    assert task.as_of_sequence >= answer.as_of_sequence
    report = await stub.GetReport(conductor_pb2.GetTaskReportRequest(task_id=answer.task_id), timeout=30)
    assert (task.status, b"100 degrees" in report.data) == (task_pb2.TASK_STATUS_COMPLETED, True)
    return str(task.task_id)


async def test_conductors_and_workers_are_stopped_one_by_one_under_load_and_no_call_fails(replicas: Stack) -> None:
    done: list[str] = []
    over = asyncio.Event()

    async def load() -> None:
        stub = stub_of(replicas)
        while not over.is_set():
            done.append(await execute(stub))

    async with asyncio.TaskGroup() as callers:  # any error of a caller is raised here
        for _ in range(CALLERS):
            callers.create_task(load())
        for name in ("conductor-2", "researcher", "report_writer-2", "conductor"):
            count = len(done)
            await until(lambda count=count: len(done) > count + CALLERS, seconds=30)
            assert await replicas.kill(name, signal.SIGTERM) == 0
            await replicas.start_one(name)
        over.set()
    assert len(set(done)) == len(done)
    for name in CONDUCTORS:
        listed = await stub_of(replicas, name).ListTasks(conductor_pb2.ListTasksRequest(page_size=100))
        assert {task.task_id for task in listed.tasks} >= set(done[-20:])
