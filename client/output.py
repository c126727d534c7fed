"""Where the command line writes: lines for a person, or JSON for a script, and what went wrong to standard error."""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console

from client.errors import ConductorError
from client.show import plain
from client.visible import visible

OK, FAILED, USAGE, REFUSED, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.NOT_FOUND: REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: REFUSED,
    grpc.StatusCode.ABORTED: REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: REFUSED,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
}


class Output:
    """Writes results to standard output and everything else to standard error.

    Args:
        as_json: results as protobuf JSON with the contract's field names, one object a line; nothing else is written
            to standard output then.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # Text is never markup, and lines are never broken: they may go to another program.
        self._out = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._err = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def message(self, message: Message, lines: Iterable[str]) -> None:
        """Writes one result: as JSON, or as the lines that show it."""
        fields = json_format.MessageToDict(message, preserving_proto_field_name=True) if self.as_json else {}
        self.fields(fields, lines)

    def fields(self, fields: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Writes one result that is no message of its own: its fields as JSON, or the lines that show it."""
        if self.as_json:
            sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
        else:
            for line in lines:
                self._out.print(line)
        sys.stdout.flush()

    def raw(self, data: bytes) -> None:
        """Writes bytes as they are; to a terminal only what shows and does nothing else."""
        if self._out.is_terminal:
            data = b"\n".join(visible(line).encode() for line in data.split(b"\n"))
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def note(self, text: str) -> None:
        """Writes a line to standard error."""
        self._err.print(text)

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Shows on a terminal that something is under way; elsewhere nothing."""
        if self.as_json or not self._out.is_terminal:
            yield
            return
        with self._out.status("working"):
            yield

    def error(self, error: ConductorError) -> int:
        """Writes an error to standard error, as one JSON object for scripts; returns the exit code for it."""
        if self.as_json:
            fields = {"reason": error.reason, "code": error.code.name, "message": error.message}
            sys.stderr.write(json.dumps({**fields, "metadata": error.metadata, "violations": error.violations}) + "\n")
        else:
            self.note(f"{error.reason}: {plain(error.message)}")
            for field, rule in error.violations.items():
                self.note(f"  {plain(field)}: {plain(rule)}")
        return EXIT_CODES.get(error.code, FAILED)
