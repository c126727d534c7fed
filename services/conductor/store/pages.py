"""What both engines hand out of the log."""

from conductor.v1 import event_pb2

PAGE_BYTES = 1024 * 1024  # of events in one page, whatever their number


def event(data: bytes, pos: int, seq: int) -> event_pb2.Event:
    """Returns a stored event with its positions."""
    read = event_pb2.Event.FromString(data)
    read.sequence, read.stream_sequence = pos, seq
    return read
