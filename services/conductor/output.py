"""What one command writes: its beginning for the log, pieces for those who watch, the whole as files of its task."""

import asyncio
from collections.abc import Callable, Mapping

from conductor.v1 import event_pb2, report_writer_pb2, terminal_pb2

from services.conductor.pieces import Pieces
from services.conductor.upload import Upload

KEPT_BYTES = 256 * 1024  # of each stream, in the log and the report
SUFFIXES: Mapping[terminal_pb2.OutputStream.ValueType, str] = {
    terminal_pb2.OUTPUT_STREAM_STDOUT: "stdout",
    terminal_pb2.OUTPUT_STREAM_STDERR: "stderr",
}


class Output:
    """Follows a command from its first byte to its end.

    Args:
        tell: is given each piece; not after `close`.
        uploads: by stream; empty when the whole is not kept.
    """

    def __init__(
        self,
        pieces: Pieces,
        tell: Callable[[event_pb2.TaskProgress], None],
        uploads: Mapping[terminal_pb2.OutputStream.ValueType, Upload],
    ) -> None:
        self._pieces = pieces
        self._tell = tell
        self._uploads = uploads
        self._timer: asyncio.TimerHandle | None = None
        self._kept = {stream: bytearray() for stream in SUFFIXES}
        self._cut = dict.fromkeys(SUFFIXES, 0)

    async def add(self, chunk: terminal_pb2.OutputChunk) -> None:
        """Takes what was read; chunks of unknown streams are ignored."""
        if chunk.stream not in self._kept or not chunk.data:
            return
        kept = self._kept[chunk.stream]
        fits = chunk.data[: KEPT_BYTES - len(kept)]
        kept += fits
        self._cut[chunk.stream] += len(chunk.data) - len(fits)
        self._pieces.add(chunk)
        self._wait()
        if self._uploads:
            await self._uploads[chunk.stream].add(chunk.data)

    async def end(self, record: report_writer_pb2.CommandRecord | None) -> None:
        """Tells the last piece, and completes the record with what was written and where it is kept.

        Args:
            record: of how the command ended; None when that is not known.
        """
        self._stop()
        if last := self._pieces.take(last=True):
            self._tell(last)
        if record is None:
            return
        record.stdout, record.stderr = (bytes(kept) for kept in self._kept.values())
        record.stdout_cut_bytes, record.stderr_cut_bytes = self._cut.values()
        files = await asyncio.gather(*(upload.finish() for upload in self._uploads.values()))
        record.artifacts.extend(file for file in files if file is not None)

    def close(self) -> list[report_writer_pb2.WriteArtifactRequest]:
        """Ends everything. Returns what is to be sent to the ReportWriter so that no half file is left there."""
        self._stop()
        given_up = (upload.give_up() for upload in self._uploads.values())
        return [request for request in given_up if request is not None]

    def _wait(self) -> None:
        if self._timer is None and (pause := self._pieces.pause) is not None:
            self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if piece := self._pieces.take():
            self._tell(piece)
        self._wait()
