"""What one command writes: its beginning for the log, pieces for those who watch, the whole as files of its task."""

import asyncio
from collections.abc import Callable, Mapping

from conductor.v1 import event_pb2, report_writer_pb2, terminal_pb2

from services.conductor.pieces import Pieces
from services.conductor.telling import Telling
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
        self._telling = Telling(pieces, tell)
        self._uploads = uploads
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
        self._telling.go_on()
        if self._uploads:
            await self._uploads[chunk.stream].add(chunk.data)

    async def end(self, record: report_writer_pb2.CommandRecord | None) -> None:
        """Tells the last piece, and completes the record with what was written and where it is kept.

        Args:
            record: of how the command ended; None when that is not known.
        """
        self._telling.end()
        if record is None:
            return
        record.stdout, record.stderr = (bytes(kept) for kept in self._kept.values())
        record.stdout_cut_bytes, record.stderr_cut_bytes = self._cut.values()
        files = await asyncio.gather(*(upload.finish() for upload in self._uploads.values()))
        record.artifacts.extend(file for file in files if file is not None)

    def close(self) -> list[report_writer_pb2.WriteArtifactRequest]:
        """Ends everything. Returns what is to be sent to the ReportWriter so that no half file is left there."""
        self._telling.stop()
        given_up = (upload.give_up() for upload in self._uploads.values())
        return [request for request in given_up if request is not None]
