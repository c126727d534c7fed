"""Takes in data that somebody uploads to a project: piece by piece to the ReportWriter, known only when it is whole."""

from collections.abc import AsyncIterator, Callable

from conductor.v1 import conductor_pb2, project_pb2

from services.common.errors import Reason, Refusal
from services.conductor.upload import PIECE_S, Send, Upload

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
        upload_id, send = self._new_id(), self._send(correlation_id)
        upload, size = Upload(send, upload_id, UPLOADED), 0
        try:
            async for data in _pieces(first, rest):
                size += len(data)
                if size > self._max_bytes:
                    text = (
                        f"The upload is larger than the {self._max_bytes} bytes that are taken (CONDUCTOR_MAX_UPLOAD)."
                    )
                    raise Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, text, limit_bytes=self._max_bytes)
                await upload.add(data)
            if first.sha256 and first.sha256 != upload.sha256:
                text = f"The upload has the SHA-256 {upload.sha256}, not the one it should have. Send it again."
                raise Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, text, sha256=upload.sha256)
            stored = await upload.finish()
        finally:
            if (left := upload.give_up()) is not None:
                await send(left, PIECE_S)
        if stored is None:
            raise Refusal(Reason.ERROR_REASON_UPLOAD_REFUSED, "The upload is empty. Send the file as the body.")
        if stored.HasField("error"):
            raise Refusal.passing_on(stored.error)
        return project_pb2.DataUpload(
            name=first.name, size_bytes=stored.size_bytes, sha256=stored.sha256, upload_id=upload_id
        )


async def _pieces(first: conductor_pb2.UploadDataRequest, rest: Requests) -> AsyncIterator[bytes]:
    if first.content.data:
        yield first.content.data
    async for request in rest:
        yield request.content.data
