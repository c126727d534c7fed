"""Stores a file of a task as it comes: what a command writes to one stream, while it writes, or what a stage left.

The ReportWriter takes it piece by piece; whatever becomes of that, the command's outcome stays what it is. Nothing here
grows with the output.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from conductor.v1 import error_pb2, report_writer_pb2

from services.common.errors import Reason, Refusal, typed

PIECE_BYTES = 256 * 1024
BUFFER_BYTES = 2 * PIECE_BYTES  # not sent yet, before the command has to wait
PIECE_S = 3.0  # for a piece to be stored: the longest a ReportWriter that hangs can hold a command up
FINISH_S = 20.0  # for the last piece: the whole file is read once more, and synced
AWAY_S = 5.0  # for a ReportWriter that is away to come back
REPEAT_S = 0.1  # before a piece is sent again

# Sends one request to the ReportWriter; raises Refusal.
Send = Callable[[report_writer_pb2.WriteArtifactRequest, float], Awaitable[report_writer_pb2.WriteArtifactResponse]]


class Upload:
    """One file of a task on its way to the ReportWriter: a stream of a command, or what a stage left."""

    def __init__(self, send: Send, task_id: str, name: str) -> None:
        self._send = send
        self._task_id = task_id
        self._name = name
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._sent = 0
        self._waiting = bytearray()
        self._room = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._error: error_pb2.TypedError | None = None
        self._begun = False  # something of it may be at the ReportWriter, under no final name
        self._tried = False
        self._over = False

    @property
    def sha256(self) -> str:
        """SHA-256 of what was added so far, or until there was an error."""
        return self._sha256.hexdigest()

    @property
    def tried(self) -> bool:
        """Whether something of it may be at the ReportWriter: some pieces, or all of it."""
        return self._tried

    @property
    def error(self) -> error_pb2.TypedError | None:
        """Why it cannot be stored, once that is known."""
        return self._error

    async def add(self, data: bytes) -> None:
        """Takes what was read. Waits when too much is on its way, until it is stored or given up."""
        self._size += len(data)
        if self._error is not None:
            return
        self._sha256.update(data)
        self._waiting += data
        if self._sender is None and len(self._waiting) >= PIECE_BYTES:
            self._sender = asyncio.create_task(self._send_pieces())
        while len(self._waiting) > BUFFER_BYTES:
            self._room.clear()
            await self._room.wait()

    async def finish(self) -> report_writer_pb2.Artifact | None:
        """Stores the rest. Returns the file, with the reason when it is missing; None when nothing was written."""
        if self._size == 0:
            return None
        if self._sender is None and len(self._waiting) >= PIECE_BYTES:
            self._sender = asyncio.create_task(self._send_pieces())
        if self._sender is not None:
            await self._sender
        sha256 = self._sha256.hexdigest()
        stored = await self._put(bytes(self._waiting), sha256, FINISH_S) if self._error is None else None
        if stored is not None:
            self._over = True
            if (stored.artifact.name, stored.artifact.size_bytes, stored.artifact.sha256) == (
                self._name,
                self._size,
                sha256,
            ):
                return stored.artifact
        error = self._error or typed(Reason.ERROR_REASON_WORKER_PROTOCOL, "The ReportWriter stored something else.")
        return report_writer_pb2.Artifact(name=self._name, size_bytes=self._size, error=error)

    def give_up(self) -> report_writer_pb2.WriteArtifactRequest | None:
        """Stops sending. Returns what is to be sent so that nothing is left behind, if anything."""
        if self._sender is not None:
            self._sender.cancel()
        if self._over or not self._begun:
            return None
        self._over = True
        return report_writer_pb2.WriteArtifactRequest(task_id=self._task_id, name=self._name, discard=True)

    async def _send_pieces(self) -> None:
        while self._error is None and len(self._waiting) >= PIECE_BYTES:
            await self._put(bytes(self._waiting[:PIECE_BYTES]), "", PIECE_S)
            del self._waiting[: PIECE_BYTES if self._error is None else None]
            self._room.set()
        self._sender = None

    async def _put(self, data: bytes, sha256: str, seconds: float) -> report_writer_pb2.WriteArtifactResponse | None:
        """Sends a piece, again while that may help. Notes why when it was not taken."""
        request = report_writer_pb2.WriteArtifactRequest(
            task_id=self._task_id, name=self._name, offset=self._sent, data=data, sha256=sha256
        )
        self._begun, self._tried = self._begun or not sha256, True
        loop = asyncio.get_running_loop()
        end = loop.time() + AWAY_S
        while True:
            try:
                answer = await self._send(request, seconds)
            except Refusal as refusal:
                if not refusal.error.retryable or loop.time() >= end:
                    self._error = refusal.error
                    return None
                await asyncio.sleep(REPEAT_S)
            else:
                self._sent += len(data)
                return answer
