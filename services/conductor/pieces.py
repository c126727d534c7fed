"""What a command writes, cut into a few small pieces for those who watch it. Pure: whoever uses it keeps time."""

from collections import deque

from conductor.v1 import event_pb2, terminal_pb2

from services.conductor.protocol import MAX_OUTPUT_PROGRESS

PIECE_BYTES = 4096
INTERVAL_S = 0.5  # from the first byte of a piece until it is told
# Each piece lasts so much longer than the one before: 100 of them cover more than the hour a command may run.
GROWTH = 1.07


class Pieces:
    """Holds the newest bytes that were not told yet, both streams in the order they were read; counts older ones.

    Args:
        interval: seconds the first piece lasts.
    """

    def __init__(self, call_id: str, interval: float) -> None:
        self._call_id = call_id
        self._interval = interval
        self._waiting: deque[tuple[terminal_pb2.OutputStream.ValueType, bytes]] = deque()
        self._size = 0
        self._omitted = 0
        self._told = 0

    @property
    def pause(self) -> float | None:
        """Seconds until the next piece, from its first byte; None when there is nothing to tell before the end."""
        if not self._waiting or self._told >= MAX_OUTPUT_PROGRESS - 1:
            return None
        return float(self._interval * GROWTH**self._told)

    def add(self, chunk: terminal_pb2.OutputChunk) -> None:
        """Takes what was read."""
        data = chunk.data[-PIECE_BYTES:]
        self._omitted += len(chunk.data) - len(data)
        if self._waiting and self._waiting[-1][0] == chunk.stream:
            data = self._waiting.pop()[1] + data
        if data:
            self._waiting.append((chunk.stream, data))
            self._size += len(chunk.data[-PIECE_BYTES:])
        self._leave_out(self._size - PIECE_BYTES)

    def take(self, last: bool = False) -> event_pb2.TaskProgress | None:
        """Returns the next piece, None when there is none.

        A line that is still being written waits for the next piece, unless it is all there is or this is the last one.
        """
        self._begin_with_a_line()
        held = [] if last else self._unfinished()
        if not self._waiting:
            return None
        output = [terminal_pb2.OutputChunk(stream=stream, data=data) for stream, data in self._waiting]
        size, omitted = sum(len(chunk.data) for chunk in output), self._omitted
        self._waiting = deque(held)
        self._size, self._omitted = sum(len(data) for _, data in held), 0
        self._told += 1
        return event_pb2.TaskProgress(
            message=_message(size, omitted), call_id=self._call_id, output=output, omitted_bytes=omitted
        )

    def _leave_out(self, count: int) -> None:
        """Drops bytes at the front."""
        while count > 0:
            stream, data = self._waiting.popleft()
            if len(data) > count:
                self._waiting.appendleft((stream, data[count:]))
            dropped = min(count, len(data))
            count -= dropped
            self._size -= dropped
            self._omitted += dropped

    def _begin_with_a_line(self) -> None:
        """Drops the rest of a line whose beginning was dropped, if something is left then."""
        if not self._omitted or not self._waiting:
            return
        rest = self._waiting[0][1].find(b"\n") + 1
        if rest < self._size:
            self._leave_out(rest)

    def _unfinished(self) -> list[tuple[terminal_pb2.OutputStream.ValueType, bytes]]:
        """Takes away what follows the last line end, if there is one."""
        if not any(b"\n" in data for _, data in self._waiting):
            return []
        held: list[tuple[terminal_pb2.OutputStream.ValueType, bytes]] = []
        while b"\n" not in self._waiting[-1][1]:
            held.insert(0, self._waiting.pop())
        stream, data = self._waiting.pop()
        end = data.rindex(b"\n") + 1
        self._waiting.append((stream, data[:end]))
        return [(stream, data[end:]), *held] if data[end:] else held


def _message(size: int, omitted: int) -> str:
    before = f"; {omitted:,} before them are not shown" if omitted else ""
    return f"The command wrote {size:,} bytes{before}."
