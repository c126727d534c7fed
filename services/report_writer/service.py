"""The ReportWriter servicer: requests → report and files, their outcomes → answers and refusals."""

import asyncio
import contextlib
import errno
import hashlib
import logging

from conductor.v1 import report_writer_pb2, report_writer_pb2_grpc

from services.common.boundary import Context, correlation_id
from services.common.errors import Reason, Refusal
from services.report_writer import report
from services.report_writer.files import Folder, NotAReport

log = logging.getLogger(__name__)

FULL_NAME = "conductor.v1.ReportWriter"


class ReportWriter(report_writer_pb2_grpc.ReportWriterServicer):
    """Serves conductor.v1.ReportWriter over one reports folder.

    Args:
        folder: where reports are stored.
        max_bytes: size of the largest report, in bytes.
    """

    def __init__(self, folder: Folder, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    async def WriteReport(
        self, request: report_writer_pb2.WriteReportRequest, context: Context
    ) -> report_writer_pb2.WriteReportResponse:
        """Renders and stores a report; answers when it is durable."""
        response = await asyncio.to_thread(self._write, request)
        log.info(
            "%s, %d bytes%s, correlation_id=%s",
            response.path,
            response.size_bytes,
            " as before" if response.already_existed else "",
            correlation_id.get(),
        )
        return response

    async def GetReport(
        self, request: report_writer_pb2.GetReportRequest, context: Context
    ) -> report_writer_pb2.GetReportResponse:
        """Reads a report back."""
        return await asyncio.to_thread(self._read, request.path)

    def _write(self, request: report_writer_pb2.WriteReportRequest) -> report_writer_pb2.WriteReportResponse:
        content = report.render(request)
        if len(content) > self._max_bytes:
            raise _too_large(len(content), self._max_bytes)
        try:
            content, existed = self._store(request, content)
        except OSError as error:
            raise _disk_refusal("stored", error) from error
        return report_writer_pb2.WriteReportResponse(
            path=report.path_of(request.task_id),
            sha256=_sha256(content),
            size_bytes=len(content),
            already_existed=existed,
        )

    def _store(self, request: report_writer_pb2.WriteReportRequest, content: bytes) -> tuple[bytes, bool]:
        """Returns what stands under the report's name, and whether it was there before. Looks first: a repeat must
        succeed on a full disk too."""
        with contextlib.suppress(FileNotFoundError):
            return self._standing(request), True
        if self._folder.publish(report.file_name(request.task_id), content):
            return content, False
        return self._standing(request), True  # another call for the same task was faster

    def _standing(self, request: report_writer_pb2.WriteReportRequest) -> bytes:
        """Returns the report that stands there when it answers the same request, and refuses otherwise.

        Raises FileNotFoundError when nothing does.
        """
        path = report.path_of(request.task_id)
        try:
            content = self._folder.read(report.file_name(request.task_id), self._max_bytes)
        except NotAReport as found:
            raise _conflict(path, f"What stands at {path} is {found}") from found
        if report.sealed_request(content) != report.request_sha256(request):
            raise _conflict(path, f"{path} holds another report, or a changed one")
        self._folder.sync()  # its writer may have died before it did this
        return content

    def _read(self, path: str) -> report_writer_pb2.GetReportResponse:
        name = report.name_in(path)
        if name is None:
            text = f"{path!r} is not the path of a report. Give it as WriteReport did: reports/<task_id>.md."
            raise Refusal(Reason.ERROR_REASON_REPORT_NAME_REFUSED, text, [("path", "reports/<task_id>.md")], path=path)
        try:
            content = self._folder.read(name, self._max_bytes)
        except (FileNotFoundError, NotAReport) as error:
            text = f"There is no report at {path}. Write it first with WriteReport."
            raise Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, text, path=path) from error
        except OSError as error:
            raise _disk_refusal("read", error) from error
        return report_writer_pb2.GetReportResponse(path=path, content=content, sha256=_sha256(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _too_large(size: int, limit: int) -> Refusal:
    text = f"The report would have {size} bytes, and {limit} is the most. Ask for fewer findings or less output."
    return Refusal(Reason.ERROR_REASON_REPORT_TOO_LARGE, text, size_bytes=size, limit_bytes=limit)


def _conflict(path: str, found: str) -> Refusal:
    text = f"{found}. It was left as it is: move it away, or use another task."
    return Refusal(Reason.ERROR_REASON_REPORT_CONFLICT, text, path=path)


def _disk_refusal(done: str, error: OSError) -> Refusal:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    text = f"The report could not be {done} ({name}). Check the disk of the reports folder, then try again."
    return Refusal(Reason.ERROR_REASON_REPORT_WRITE_FAILED, text, errno=name)
