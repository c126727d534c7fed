"""Data uploaded to a Conductor by gRPC: checked piece by piece, and stored by a ReportWriter that may fail."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from conductor.v1 import conductor_pb2, error_pb2, project_pb2, report_writer_pb2, task_pb2
from google.api import httpbody_pb2

from services.common.errors import Reason, Refusal
from services.common.status import from_rpc_error
from services.conductor.upload import PIECE_BYTES
from tests.conftest import MAX_UPLOAD, Running, until
from tests.fakes import Workers, hangs

KIB = 1024
METHOD = "/conductor.v1.Conductor/UploadData"
Request = conductor_pb2.UploadDataRequest


class Keeper:
    """A ReportWriter that keeps pieces in memory; `failing` says from which offset on it fails."""

    def __init__(self, failing: int | None = None, reason: int = Reason.ERROR_REASON_REPORT_WRITE_FAILED) -> None:
        self.parts: dict[str, bytearray] = {}
        self.whole: dict[str, bytes] = {}
        self._failing = failing
        self._reason = reason

    async def __call__(self, request: report_writer_pb2.WriteArtifactRequest) -> Any:
        if request.discard:
            self.parts.pop(request.task_id, None)
            if self.whole.get(request.task_id) is not None and sha256(self.whole[request.task_id]) == request.sha256:
                del self.whole[request.task_id]
            return [report_writer_pb2.WriteArtifactResponse()]
        if self._failing is not None and request.offset >= self._failing:
            raise Refusal(self._reason, "The disk is full.")
        part = self.parts.setdefault(request.task_id, bytearray())
        assert len(part) == request.offset
        part += request.data
        if not request.sha256:
            return [report_writer_pb2.WriteArtifactResponse()]
        whole = self.whole[request.task_id] = bytes(self.parts.pop(request.task_id))
        assert sha256(whole) == request.sha256
        file = report_writer_pb2.Artifact(name=request.name, size_bytes=len(whole), sha256=request.sha256)
        return [report_writer_pb2.WriteArtifactResponse(artifact=file)]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces(data: bytes, size: int = 100 * KIB, **first: str) -> list[Request]:
    """Returns an upload as messages; the first may hold data, those behind it have nothing else."""
    cut = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    head = Request(**{"project_id": "p", "name": "data.csv", **first}, content=httpbody_pb2.HttpBody(data=cut[0]))
    return [head, *(Request(content=httpbody_pb2.HttpBody(data=each)) for each in cut[1:])]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ReportWriter that fails is not asked again for long."""
    monkeypatch.setattr("services.conductor.upload.AWAY_S", 0.2)


async def upload(conductor: Running, requests: Iterable[Request]) -> project_pb2.DataUpload:
    async def one_by_one() -> AsyncIterator[Request]:
        for request in requests:
            yield request

    answer: project_pb2.DataUpload = await conductor.stub.UploadData(one_by_one())
    return answer


async def refused(conductor: Running, requests: Iterable[Request]) -> error_pb2.TypedError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(conductor, requests)
    error = from_rpc_error(caught.value)
    assert error is not None, caught.value
    return error


async def listed(conductor: Running, project: str = "p") -> list[str]:
    state = await conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id=project))
    return [each.name for each in state.uploads]


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, MAX_UPLOAD])
async def test_all_pieces_are_stored_and_the_project_tells_of_it(
    conductor: Running, workers: Workers, size: int
) -> None:
    workers.store = keeper = Keeper()
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    answer = await upload(conductor, pieces(data, sha256=sha256(data)))
    assert (answer.name, answer.size_bytes, answer.sha256) == ("data.csv", size, sha256(data))
    assert keeper.whole == {answer.upload_id: data} and not keeper.parts
    (event,) = [each for each in await conductor.events(project_id="p") if each.HasField("data_uploaded")]
    assert event.data_uploaded.upload_id == answer.upload_id
    assert await listed(conductor) == ["data.csv"]


async def test_a_name_used_again_takes_the_place_of_the_older_one(conductor: Running, workers: Workers) -> None:
    workers.store = Keeper()
    first, second = [await upload(conductor, pieces(data)) for data in (b"old", b"new")]
    assert first.upload_id != second.upload_id
    assert await listed(conductor) == ["data.csv"]
    state = await conductor.stub.GetState(conductor_pb2.GetStateRequest(project_id="p"))
    assert state.uploads[0].sha256 == sha256(b"new")


@pytest.mark.parametrize(
    ("requests", "reason", "word"),
    [
        ([], "INVALID_REQUEST", "request"),
        ([Request(content=httpbody_pb2.HttpBody(data=b"x"))], "INVALID_REQUEST", "project_id"),
        (pieces(b"x", name=""), "INVALID_REQUEST", "name"),
        (pieces(b"x", name="../up"), "INVALID_REQUEST", "name"),
        (pieces(b"x", project_id="a/b"), "INVALID_REQUEST", "project_id"),
        (pieces(b"x", sha256="F" * 64), "INVALID_REQUEST", "sha256"),
        ([pieces(b"x")[0], Request(sha256="no")], "INVALID_REQUEST", "sha256"),
        (pieces(b""), "UPLOAD_REFUSED", "empty"),
        (pieces(b"") + pieces(b"")[1:] + [Request(), Request()], "UPLOAD_REFUSED", "empty"),
        (pieces(b"x" * 2, sha256="0" * 64), "UPLOAD_REFUSED", sha256(b"xx")),
        (pieces(b"x" * 700 * KIB, sha256="0" * 64), "UPLOAD_REFUSED", sha256(b"x" * 700 * KIB)),
        (pieces(bytes(MAX_UPLOAD + 1)), "UPLOAD_REFUSED", "CONDUCTOR_MAX_UPLOAD"),
        (pieces(bytes(3 * KIB * KIB), 3 * KIB * KIB), "INVALID_REQUEST", "2097152"),
        ([pieces(b"x")[0], *pieces(bytes(3 * KIB * KIB), 3 * KIB * KIB)], "INVALID_REQUEST", "2097152"),
    ],
)
async def test_what_is_refused_leaves_nothing(
    conductor: Running, workers: Workers, requests: list[Request], reason: str, word: str
) -> None:
    workers.store = keeper = Keeper()
    error = await refused(conductor, requests)
    assert Reason.Name(error.reason) == f"ERROR_REASON_{reason}", error
    assert word in error.message
    assert not keeper.whole and not keeper.parts
    assert await listed(conductor) == []


async def test_a_message_that_is_none_is_refused(conductor: Running, workers: Workers) -> None:
    workers.store = keeper = Keeper()
    for messages in ([b"\xff"], [pieces(b"x")[0].SerializeToString(), b"\xff"]):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await conductor.channel.stream_unary(METHOD)(iter(messages))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not keeper.whole and not keeper.parts


@pytest.mark.parametrize("failing", [0, 1, 2 * PIECE_BYTES, MAX_UPLOAD - MAX_UPLOAD % PIECE_BYTES])
async def test_a_full_disk_is_told_as_what_it_is(
    conductor: Running, workers: Workers, failing: int, impatient: None
) -> None:
    workers.store = keeper = Keeper(failing)
    error = await refused(conductor, pieces(b"x" * MAX_UPLOAD, sha256=sha256(b"x" * MAX_UPLOAD)))
    assert error.reason == Reason.ERROR_REASON_REPORT_WRITE_FAILED, error
    assert not keeper.whole and not keeper.parts
    assert await listed(conductor) == []


async def test_what_cannot_be_stored_is_not_asked_for_to_its_end(
    conductor: Running, workers: Workers, impatient: None
) -> None:
    workers.store = Keeper(0)

    async def endless() -> AsyncIterator[Request]:
        yield pieces(b"x")[0]
        while True:
            yield Request(content=httpbody_pb2.HttpBody(data=b"x" * KIB))

    async with asyncio.timeout(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await conductor.stub.UploadData(endless())
    error = from_rpc_error(caught.value)
    assert error is not None, caught.value
    assert error.reason == Reason.ERROR_REASON_REPORT_WRITE_FAILED


async def test_a_caller_who_leaves_takes_the_upload_with_him(conductor: Running, workers: Workers) -> None:
    workers.store = keeper = Keeper()

    async def half() -> AsyncIterator[Request]:
        for request in pieces(b"x" * 700 * KIB):
            yield request
        await asyncio.Event().wait()

    call = conductor.stub.UploadData(half())
    await until(lambda: keeper.parts)
    call.cancel()
    await until(lambda: not keeper.parts)
    assert not keeper.whole and await listed(conductor) == []


async def test_a_caller_who_leaves_before_the_answer_leaves_nothing(conductor: Running, workers: Workers) -> None:
    keeper, go = Keeper(), asyncio.Event()

    async def slow(request: report_writer_pb2.WriteArtifactRequest) -> Any:
        if request.sha256 and not request.discard:
            await go.wait()
        return await keeper(request)

    for size in (10, 3 * PIECE_BYTES):
        go.clear()
        workers.store = slow
        workers.pieces.clear()
        call = conductor.stub.UploadData(iter(pieces(b"x" * size)))
        await until(lambda: any(piece.sha256 for piece in workers.pieces))
        call.cancel()
        await asyncio.wait([asyncio.ensure_future(call.code())])
        for _ in range(5):  # by the time of these answers it is known that he has left
            await listed(conductor)
        go.set()  # it is stored when nobody waits for it any more
        await until(lambda: any(piece.discard for piece in workers.pieces))
        await until(lambda: not keeper.whole and not keeper.parts)
    assert await listed(conductor) == []


async def test_an_upload_is_on_somebodys_behalf(conductor: Running, workers: Workers) -> None:
    scope = task_pb2.Scope(desktop_id="desk", session_id="s", thread_id="t", user_id="ada")
    first = pieces(b"x")[0]
    first.scope.CopyFrom(scope)
    first.correlation_id = "c-7"
    await upload(conductor, [first])
    await upload(conductor, pieces(b"y"))
    with_scope, without = await conductor.events(project_id="p")
    assert with_scope.scope == scope and with_scope.correlation_id == "c-7"
    assert without.scope == task_pb2.Scope(desktop_id="default") and without.correlation_id


async def test_a_store_that_hangs_holds_up_no_other_upload(conductor: Running, workers: Workers) -> None:
    workers.store = hangs
    call = conductor.stub.UploadData(iter(pieces(b"x" * MAX_UPLOAD)))
    await until(lambda: workers.pieces)
    workers.store = Keeper()
    assert (await upload(conductor, pieces(b"y", name="other.csv"))).name == "other.csv"
    call.cancel()
