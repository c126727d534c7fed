"""The Conductor over a real loopback port, with scripted workers."""

from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, task_pb2, terminal_pb2
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.status import from_rpc_error
from tests.conftest import MARKDOWN, Running, refused
from tests.fakes import Workers

SECONDS_10 = duration_pb2.Duration(seconds=10)


def detail(error: grpc.aio.AioRpcError, kind: type) -> Any:
    """Returns the detail of a type from a refused call."""
    status = rpc_status.from_call(error)
    found = kind()
    assert any(d.Unpack(found) for d in status.details), f"no {kind.__name__} in {status}"
    return found


async def test_an_objective_becomes_a_report(conductor: Running, workers: Workers) -> None:
    answer = await conductor.execute(wait=SECONDS_10, desktop_id="desk-1", correlation_id="corr-1")
    assert answer.status == task_pb2.TASK_STATUS_COMPLETED
    assert answer.report_path == f"reports/{answer.task_id}.md"
    assert answer.writer_window_props.path == answer.report_path and answer.writer_window_props.preview_mode
    assert answer.correlation_id == "corr-1"
    types = [event.type for event in await conductor.events(answer.task_id)]
    assert types == [
        "conductor.task.started",
        "conductor.task.progress",
        "conductor.worker.call",
        "conductor.worker.result",
        "conductor.worker.call",
        "conductor.worker.result",
        "conductor.task.completed",
    ]
    assert workers.seen[-1].findings[0].statement == "Water boils at 100 °C."
