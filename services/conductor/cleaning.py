"""Removes what nobody needs any more: the folders of ended runs, and uploads that neither a project nor its run lists.

What is to be removed follows from events. Every replica sees them all, and clears at the Terminal that it calls. What a
crash left undone is found among the newest events of the log, at the start. All of it may be done twice, and by several
at once. A folder that is missed all the same goes when the Terminal has kept it unused for long enough.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from conductor.v1 import event_pb2, project_pb2

from services.common.errors import Reason, Refusal
from services.conductor.intake import removal
from services.conductor.state import run
from services.conductor.store.base import Store, StoreUnavailable
from services.conductor.upload import PIECE_S, Send

log = logging.getLogger(__name__)

AGAIN_S = 2.0  # pause between two looks at what is due; doubles while there is something that cannot be removed …
MAX_AGAIN_S = 60.0  # … up to this
RECENT = 5000  # events of the log that are looked through at the start
PAGE = 500
MAX_DUE = 10_000  # runs and projects; the oldest are forgotten beyond
NEWEST = 50  # uploads of a project that are looked at: what it no longer lists goes one by one
ENDED, UPLOADED, STARTED = "RUN_ENDED", "DATA_UPLOADED", "RUN_STARTED"

# Removes the folder of a run, for a correlation id. Raises Refusal.
Clear = Callable[[str, str], Awaitable[None]]


class Cleaning:
    """Removes now and then what the events it is told of have made superfluous.

    Args:
        clear: removes the folder of a run at the Terminal.
        send: gives what sends a request about a file to the ReportWriter, for a correlation id.
        seconds: see AGAIN_S.
    """

    def __init__(self, store: Store, clear: Clear, send: Callable[[str], Send], seconds: float = AGAIN_S) -> None:
        self._store = store
        self._clear = clear
        self._send = send
        self._seconds = seconds
        self._runs: dict[str, event_pb2.Event] = {}  # that ended, by id
        self._projects: dict[str, event_pb2.Event] = {}  # whose uploads are to be looked at, by id
        self._due = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins."""
        self._work = asyncio.create_task(self._go_on())

    async def close(self) -> None:
        """Ends."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    def saw(self, events: Sequence[event_pb2.Event]) -> None:
        """Is told of events of the log, some of them perhaps twice."""
        for event in events:
            if event.type == ENDED:
                self._note(self._runs, event.run_ended.run_id, event)
            elif event.type in (UPLOADED, STARTED):
                self._note(self._projects, event.project_id, event)

    def _note(self, due: dict[str, event_pb2.Event], name: str, event: event_pb2.Event) -> None:
        due[name] = event
        if len(due) > MAX_DUE:
            del due[next(iter(due))]
        self._due.set()

    async def _go_on(self) -> None:
        recalled, pause = False, self._seconds
        while True:
            try:
                if not recalled:
                    await self._recall()
                recalled = True
                await self.look()
            except StoreUnavailable as error:
                log.warning("what is superfluous is not removed now: %s", error.cause)
            except Exception:  # whatever it is, the next look must come
                log.exception("what is superfluous is not removed now")
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_AGAIN_S) if self._due.is_set() else self._seconds
            if recalled:
                await self._due.wait()

    async def _recall(self) -> None:
        low, head = await self._store.bounds()
        after = max(low, head - RECENT)
        while after < head:
            page = await self._store.read(after, PAGE)
            self.saw(page.events)
            after = page.through

    async def look(self) -> None:
        """Removes what is due, and can be removed now. Raises StoreUnavailable."""
        self._due.clear()
        try:
            await self._each(self._runs, self._remove_folder)
            await self._each(self._projects, self._remove_uploads)
        finally:
            if self._runs or self._projects:
                self._due.set()

    async def _each(
        self, due: dict[str, event_pb2.Event], remove: Callable[[str, event_pb2.Event], Awaitable[None]]
    ) -> None:
        for name, event in list(due.items()):
            try:
                await remove(name, event)
            except Refusal as refusal:
                if isinstance(refusal, StoreUnavailable):
                    raise
                if refusal.error.reason != Reason.ERROR_REASON_OVER_CAPACITY:  # it may be the same with the others
                    log.warning("%s, and what else is due, is cleaned up later: %s", name, refusal)
                    due[name] = due.pop(name)  # behind them, if it is not
                    return
            else:
                if due.get(name) is event:
                    del due[name]

    async def _remove_folder(self, run_id: str, event: event_pb2.Event) -> None:
        state = await self._state(event.project_id)
        if state.run.run_id != run_id or not run.is_open(state):  # else somebody has taken it up again
            await self._clear(run_id, event.correlation_id)

    async def _remove_uploads(self, project_id: str, event: event_pb2.Event) -> None:
        """Removes the uploads that a project no longer lists. None that it does not list is listed again."""
        stream = await self._store.stream(("project", project_id))  # before the state, which then lists all of these
        uploads = [event.data_uploaded for event in stream.events if event.type == UPLOADED][-NEWEST:]
        state = await self._state(project_id)
        listed = {upload.upload_id for upload in (*state.uploads, *state.run.uploads)}
        for upload in uploads:
            if upload.upload_id not in listed:
                await self._send(event.correlation_id)(removal(upload), PIECE_S)

    async def _state(self, project_id: str) -> project_pb2.ProjectState:
        row = await self._store.row(("project", project_id))
        return project_pb2.ProjectState() if row is None else project_pb2.ProjectState.FromString(row.state)
