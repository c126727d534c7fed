"""What a caller may read: tasks and projects as the log shows them, one or many."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from conductor.v1 import conductor_pb2, project_pb2, task_pb2

from services.common.errors import Reason, Refusal
from services.conductor.state import project
from services.conductor.store.base import Listing, Row, Store

PAGE_SIZE = 50  # when the request names none
PAGE_BYTES = 2 * 1024 * 1024  # gRPC clients take 4 MiB by default
MAX_INT = 2**63  # what the store can compare with
MAX_TOKEN = 1024


class Views:
    """Reads the newest states. Nothing here writes, and reading creates nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def task(self, task_id: str) -> task_pb2.Task:
        """Returns a task. Raises TASK_NOT_FOUND."""
        row = await self._store.row(("task", task_id))
        if row is None:
            text = f"There is no task {task_id}. ListTasks shows the tasks there are."
            raise Refusal(Reason.ERROR_REASON_TASK_NOT_FOUND, text, task_id=task_id)
        return _task(row)

    async def project(self, project_id: str) -> project_pb2.ProjectState:
        """Returns a project; the default state when nobody has written to it."""
        _, head = await self._store.bounds()
        row = await self._store.row(("project", project_id))
        if row is not None:
            return _project(row)
        state = project.initial(project_id)
        state.as_of_sequence = head
        return state

    async def tasks(self, request: conductor_pb2.ListTasksRequest) -> conductor_pb2.ListTasksResponse:
        """Returns a page of tasks, newest first. Raises INVALID_REQUEST for a page token of another list."""
        listing = Listing(
            "task",
            request.status,
            request.project_id if request.HasField("project_id") else None,
            request.desktop_id if request.HasField("desktop_id") else None,
        )
        rows, token = await self._page(listing, request.page_size, request.page_token)
        return conductor_pb2.ListTasksResponse(tasks=[_task(row) for row in rows], next_page_token=token)

    async def projects(self, request: conductor_pb2.ListProjectsRequest) -> conductor_pb2.ListProjectsResponse:
        """Returns a page of projects, newest first. Raises INVALID_REQUEST for a page token of another list."""
        rows, token = await self._page(Listing("project"), request.page_size, request.page_token)
        return conductor_pb2.ListProjectsResponse(projects=[_project(row) for row in rows], next_page_token=token)

    async def _page(self, listing: Listing, size: int, token: str) -> tuple[Sequence[Row], str]:
        size = size or PAGE_SIZE
        before = _read_token(token, listing) if token else None
        rows = await self._store.list(replace(listing, before=before, limit=size + 1))  # one more tells if it goes on
        page = _fitting(rows[:size])
        return page, _write_token(page[-1], listing) if len(page) < len(rows) else ""


def _fitting(rows: Sequence[Row]) -> Sequence[Row]:
    """Returns the first rows that fit into one answer, at least one."""
    size = 0
    for count, row in enumerate(rows):
        size += len(row.state)
        if count and size > PAGE_BYTES:
            return rows[:count]
    return rows


def _task(row: Row) -> task_pb2.Task:
    task = task_pb2.Task.FromString(row.state)
    task.as_of_sequence = row.through
    return task


def _project(row: Row) -> project_pb2.ProjectState:
    state = project_pb2.ProjectState.FromString(row.state)
    state.as_of_sequence = row.through
    return state


def _write_token(row: Row, listing: Listing) -> str:
    text = json.dumps([_list_id(listing), row.created_at, row.id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_token(token: str, listing: Listing) -> tuple[int, str]:
    try:
        list_id, created_at, row_id = json.loads(base64.urlsafe_b64decode(token.encode()))
        valid = (
            list_id == _list_id(listing)
            and type(created_at) is int
            and 0 <= created_at < MAX_INT
            and 0 < len(row_id.encode()) < MAX_TOKEN
            and "\0" not in row_id
        )
    except (binascii.Error, ValueError, TypeError, AttributeError):
        valid = False
    if not valid:
        what = "must be next_page_token of the page before, with the same filters"
        message = f"page_token: {what}."
        raise Refusal(Reason.ERROR_REASON_INVALID_REQUEST, message, [("page_token", what)], field="page_token")
    return created_at, row_id


def _list_id(listing: Listing) -> str:
    """Names the list a page token belongs to: the same filters, whatever the page."""
    filters = repr((listing.kind, listing.status, listing.project_id, listing.desktop_id))
    return hashlib.sha256(filters.encode()).hexdigest()[:12]
