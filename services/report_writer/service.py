"""The ReportWriter servicer: requests → report and files, their outcomes → answers and refusals."""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable

from conductor.v1 import report_writer_pb2, report_writer_pb2_grpc

from services.common.boundary import Context, correlation_id
from services.common.errors import Reason, Refusal
from services.report_writer import report, run_found, run_report
from services.report_writer.artifacts import MAX_BYTES, Artifacts, Different, Gap
from services.report_writer.files import Folder, NotAReport
from services.report_writer.findings import NAME as FINDINGS
from services.report_writer.findings import findings_json
from services.report_writer.run_values import MAX_RESULT_BYTES, parsed

log = logging.getLogger(__name__)

FULL_NAME = "conductor.v1.ReportWriter"
CHUNK_BYTES = 64 * 1024  # of a file in one message
RESULT = "result.json"  # what a stage found


class ReportWriter(report_writer_pb2_grpc.ReportWriterServicer):
    """Serves conductor.v1.ReportWriter over one reports folder.

    Args:
        folder: where reports are stored.
        max_bytes: size of the largest report, in bytes.
        keep_files: seconds that a task's files, not its report, are kept; None: for ever.
    """

    def __init__(self, folder: Folder, max_bytes: int, keep_files: float | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._artifacts = Artifacts(folder, keep_files)

    async def WriteReport(
        self, request: report_writer_pb2.WriteReportRequest, context: Context
    ) -> report_writer_pb2.WriteReportResponse:
        """Renders and stores a report; answers when it is durable."""
        return _logged(await asyncio.to_thread(self._write, request))

    async def WriteRunReport(
        self, request: report_writer_pb2.WriteRunReportRequest, context: Context
    ) -> report_writer_pb2.WriteReportResponse:
        """Renders and stores the report of a run; answers when it is durable."""
        return _logged(await asyncio.to_thread(self._write_run, request))

    async def GetReport(
        self, request: report_writer_pb2.GetReportRequest, context: Context
    ) -> report_writer_pb2.GetReportResponse:
        """Reads a report back."""
        return await asyncio.to_thread(self._read, request.path)

    async def WriteArtifact(
        self, request: report_writer_pb2.WriteArtifactRequest, context: Context
    ) -> report_writer_pb2.WriteArtifactResponse:
        """Takes a piece of a task's file."""
        if request.offset + len(request.data) > MAX_BYTES:
            raise _too_large("file", request.offset + len(request.data), MAX_BYTES)
        response = await asyncio.to_thread(self._write_artifact, request)
        if response.HasField("artifact"):
            path, size = report.artifact_path(request.task_id, request.name), response.artifact.size_bytes
            log.info("%s, %d bytes, correlation_id=%s", path, size, correlation_id.get())
        return response

    async def GetArtifact(
        self, request: report_writer_pb2.GetArtifactRequest, context: Context
    ) -> AsyncIterator[report_writer_pb2.GetArtifactResponse]:
        """Reads a task's file back."""
        descriptor = await asyncio.to_thread(self._open_artifact, request)
        try:
            position = 0  # a read that goes on after its caller has left must not move anybody's
            while data := await asyncio.to_thread(os.pread, descriptor, CHUNK_BYTES, position):
                position += len(data)
                yield report_writer_pb2.GetArtifactResponse(data=data)
        except OSError as error:
            raise _disk_refusal("read", error) from error
        finally:
            os.close(descriptor)

    def _write_artifact(
        self, request: report_writer_pb2.WriteArtifactRequest
    ) -> report_writer_pb2.WriteArtifactResponse:
        place = request.task_id, request.name
        path = report.artifact_path(*place)
        try:
            if request.discard:
                self._artifacts.discard(*place, request.sha256)
            elif not request.sha256:
                self._artifacts.add(*place, request.offset, request.data)
            else:
                whole, existed = self._artifacts.finish(*place, request.offset, request.data, request.sha256)
                return report_writer_pb2.WriteArtifactResponse(artifact=whole, already_existed=existed)
        except Gap as gap:
            what = f"must be at most {gap.size}, which is what came before"
            raise Refusal(
                Reason.ERROR_REASON_INVALID_REQUEST, f"offset: {what}.", [("offset", what)], field="offset"
            ) from gap
        except Different as found:
            raise _conflict(path, f"What was sent for {path}, or stands there, has another SHA-256") from found
        except NotAReport as found:
            raise _conflict(path, f"What stands at {path} is {found}") from found
        except OSError as error:
            raise _disk_refusal("stored", error) from error
        return report_writer_pb2.WriteArtifactResponse()

    def _open_artifact(self, request: report_writer_pb2.GetArtifactRequest) -> int:
        path = report.artifact_path(request.task_id, request.name)
        try:
            return self._artifacts.open(request.task_id, request.name, request.sha256)
        except (FileNotFoundError, NotAReport) as error:
            text = f"There is no file at {path}. It was removed, or never written."
            raise Refusal(Reason.ERROR_REASON_REPORT_NOT_FOUND, text, path=path) from error
        except Different as found:
            text = f"What stands at {path} is not what was stored there: its SHA-256 is another."
            raise Refusal(Reason.ERROR_REASON_REPORT_CONFLICT, text, path=path) from found
        except OSError as error:
            raise _disk_refusal("read", error) from error

    def _write(self, request: report_writer_pb2.WriteReportRequest) -> report_writer_pb2.WriteReportResponse:
        content = report.render(request)
        self._check_size(content)
        try:
            findings = self._store_findings(request) if request.research_id else None
        except OSError as error:
            raise _disk_refusal("stored", error) from error
        return self._write_content(request, lambda: content, findings)

    def _write_run(self, request: report_writer_pb2.WriteRunReportRequest) -> report_writer_pb2.WriteReportResponse:
        def make() -> bytes:
            content = report.sealed(request, run_report.body(request, self._left(request)))
            self._check_size(content)
            return content

        return self._write_content(request, make, None)

    def _left(self, request: report_writer_pb2.WriteRunReportRequest) -> run_found.Left:
        """Reads what the stages left, None where that is nothing to be read.

        Raises Refusal when a file is gone, or has no name that a file of a task can have.
        """
        left = {}
        for file in (*request.run.artifacts, *request.outcome.artifacts):
            if file.name == RESULT and not file.stale:
                if not run_found.linkable(file):
                    raise _nameless()
                wanted = report_writer_pb2.GetArtifactRequest(task_id=file.task_id, name=file.name, sha256=file.sha256)
                with os.fdopen(self._open_artifact(wanted), "rb") as opened:
                    left[file.stage_id] = parsed(opened.read(MAX_RESULT_BYTES + 1))
        return left

    def _check_size(self, content: bytes) -> None:
        if len(content) > self._max_bytes:
            raise _too_large("report", len(content), self._max_bytes)

    def _write_content(
        self, request: report.AnyRequest, make: Callable[[], bytes], findings: report_writer_pb2.Artifact | None
    ) -> report_writer_pb2.WriteReportResponse:
        try:
            content, existed = self._store(request, make)
        except OSError as error:
            raise _disk_refusal("stored", error) from error
        return report_writer_pb2.WriteReportResponse(
            path=report.path_of(request.task_id),
            sha256=_sha256(content),
            size_bytes=len(content),
            already_existed=existed,
            findings=findings,
        )

    def _store_findings(self, request: report_writer_pb2.WriteReportRequest) -> report_writer_pb2.Artifact:
        """Stores what the research found, before the report: where there is a report, there is this too."""
        with contextlib.suppress(FileNotFoundError):
            self._standing(request)  # of another report nothing is stored
        content = findings_json(request)
        path = report.artifact_path(request.task_id, FINDINGS)
        try:
            whole, _ = self._artifacts.finish(request.task_id, FINDINGS, 0, content, _sha256(content))
        except Different as found:
            raise _conflict(path, f"{path} holds other findings, or changed ones") from found
        except NotAReport as found:
            raise _conflict(path, f"What stands at {path} is {found}") from found
        return whole

    def _store(self, request: report.AnyRequest, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        """Returns what stands under the report's name, and whether it was there before. Looks first: a repeat must
        succeed on a full disk too, and when what the report was made of is gone."""
        with contextlib.suppress(FileNotFoundError):
            return self._standing(request), True
        content = make()
        if self._folder.publish(report.file_name(request.task_id), content):
            return content, False
        return self._standing(request), True  # another call for the same task was faster

    def _standing(self, request: report.AnyRequest) -> bytes:
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


def _logged(response: report_writer_pb2.WriteReportResponse) -> report_writer_pb2.WriteReportResponse:
    again = " as before" if response.already_existed else ""
    log.info("%s, %d bytes%s, correlation_id=%s", response.path, response.size_bytes, again, correlation_id.get())
    return response


def _nameless() -> Refusal:
    field, what = "run.artifacts.task_id", "must be the id of a task"
    return Refusal(Reason.ERROR_REASON_INVALID_REQUEST, f"{field}: {what}.", [(field, what)], field=field)


def _too_large(what: str, size: int, limit: int) -> Refusal:
    text = f"The {what} would have {size} bytes, and {limit} is the most. Ask for fewer findings or less output."
    return Refusal(Reason.ERROR_REASON_REPORT_TOO_LARGE, text, size_bytes=size, limit_bytes=limit)


def _conflict(path: str, found: str) -> Refusal:
    text = f"{found}. It was left as it is: move it away, or use another task."
    return Refusal(Reason.ERROR_REASON_REPORT_CONFLICT, text, path=path)


def _disk_refusal(done: str, error: OSError) -> Refusal:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    text = f"The report or file could not be {done} ({name}). Check the disk of the reports folder, then try again."
    return Refusal(Reason.ERROR_REASON_REPORT_WRITE_FAILED, text, errno=name)
