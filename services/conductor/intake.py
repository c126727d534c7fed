"""Takes in data that somebody uploads to a project: piece by piece to the ReportWriter, known only when it is whole."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from conductor.v1 import conductor_pb2, project_pb2, report_writer_pb2

from services.common.errors import Reason, Refusal
from services.conductor.upload import PIECE_S, Send, Upload

log = logging.getLogger(__name__)

UPLOADED = "data"  # how the ReportWriter calls the file of an upload

Requests = AsyncIterator[conductor_pb2.UploadDataRequest]


class Intake:
    """Stores uploads.

    Args:
        send: gives what stores a piece of a file, for a correlation id.
        max_bytes: of one upload.
        new_id: gives a fresh unique id.
    """

    def __init__(self, send: Callable[[str], Send], max_bytes: int, new_id: Callable[[], str]) -> None:
        self._send = send
        self._max_bytes = max_bytes
        self._new_id = new_id

    async def take(
        self, first: conductor_pb2.UploadDataRequest, rest: Requests, correlation_id: str
    ) -> project_pb2.DataUpload:
        """Returns the upload once it is durable. Raises Refusal; then nothing of it is left."""
        upload_id = self._new_id()
        upload = Upload(self._send(correlation_id), upload_id, UPLOADED)
        try:
            stored = await self._stored(upload, first, rest)
        except BaseException:  # also that its caller has left; it is raised on
            upload.give_up()
            if upload.tried:
                left = project_pb2.DataUpload(upload_id=upload_id, sha256=upload.sha256)
                await self.forget(left, correlation_id)
            raise
        return project_pb2.DataUpload(
            name=first.name, size_bytes=stored.size_bytes, sha256=stored.sha256, upload_id=upload_id
        )

    async def forget(self, upload: project_pb2.DataUpload, correlation_id: str) -> None:
        """Removes what is stored of an upload that no project lists. What cannot be removed stays, and is logged."""
        try:
            await self._send(correlation_id)(removal(upload), PIECE_S)
        except Refusal as refusal:
            log.warning("upload %s is left behind: %s", upload.upload_id, refusal)

    async def _stored(
        self, upload: Upload, first: conductor_pb2.UploadDataRequest, rest: Requests
    ) -> report_writer_pb2.Artifact:
        size = 0
        async for data in _pieces(first, rest):
            size += len(data)
            if size > self._max_bytes:
                text = f"The upload is larger than the {self._max_bytes} bytes that are taken (CONDUCTOR_MAX_UPLOAD)."
                raise _refused(text, limit_bytes=self._max_bytes)
            await upload.add(data)
            if upload.error is not None:  # the rest would be sent for nothing
                raise Refusal.passing_on(upload.error)
        if size == 0:
            raise _refused("The upload is empty. Send the file as the body.")
        if first.sha256 and first.sha256 != upload.sha256:
            text = f"The upload has the SHA-256 {upload.sha256}, not the one it should have. Send it again."
            raise _refused(text, sha256=upload.sha256)
        finishing = asyncio.ensure_future(upload.finish())
        try:
            stored = await asyncio.shield(finishing)
        finally:
            await asyncio.wait([finishing])  # what is still on its way could not be removed
        assert stored is not None  # noqa: S101  only nothing gives None
        if stored.HasField("error"):
            raise Refusal.passing_on(stored.error)
        return stored


def removal(upload: project_pb2.DataUpload) -> report_writer_pb2.WriteArtifactRequest:
    """Returns what tells the ReportWriter to remove an upload, whole or not."""
    return report_writer_pb2.WriteArtifactRequest(
        task_id=upload.upload_id, name=UPLOADED, sha256=upload.sha256, discard=True
    )


def _refused(text: str, **metadata: object) -> Refusal:
    return Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, text, (), **metadata)


async def _pieces(first: conductor_pb2.UploadDataRequest, rest: Requests) -> AsyncIterator[bytes]:
    if first.content.data:
        yield first.content.data
    async for request in rest:
        yield request.content.data
