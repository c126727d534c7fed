"""What the clients of a chaos run did and saw, record by record, to be checked afterwards and kept as JSON lines."""

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from conductor.v1 import event_pb2
from google.protobuf import json_format
from google.protobuf.message import Message


def luck_of(*seed: object) -> random.Random:
    """Returns chance that repeats itself for the same seed."""
    return random.Random(repr(seed))  # noqa: S311 - no secret is made of it


def answer_of(token: str) -> str:
    """Returns the known answer to a token: what workers must find and what its report must say."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Call:
    """One try of a request and how it ended.

    Attributes:
        began, ended: seconds since the run's start.
        answer: what came back; None when nothing or a refusal did.
        code: name of the gRPC status, "OK" for an answer.
        reason: the ErrorReason's name in a refusal, empty when it had none.
        expects: what a definite reply must be: "OK", "REFUSED" or "EITHER".
    """

    who: str
    via: str
    method: str
    request: Any
    request_id: str
    began: float
    ended: float
    answer: Any
    code: str
    reason: str = ""
    expects: str = "OK"


@dataclass(frozen=True, slots=True)
class Opened:
    """A subscriber connected, behind a cursor. `project_id` is its filter, empty for the whole log."""

    who: str
    at: float
    after: int
    project_id: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """A subscriber received a message of its stream, checkpoints included."""

    who: str
    at: float
    event: event_pb2.Event


@dataclass(frozen=True, slots=True)
class Happened:
    """Something was done to the system, or went wrong with it."""

    at: float
    what: str


Record: TypeAlias = Call | Opened | Heard | Happened


@dataclass
class History:
    """The records of one run, in the order they were made."""

    records: list[Record] = field(default_factory=list)
    _zero: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds since the run's start."""
        return time.monotonic() - self._zero

    def add(self, record: Record) -> None:
        self.records.append(record)

    def happened(self, what: str) -> None:
        self.add(Happened(self.now(), what))

    def write(self, path: Path) -> None:
        """Writes one JSON object a line."""
        with path.open("w") as file:
            for record in self.records:
                file.write(json.dumps(_json_of(record), ensure_ascii=False) + "\n")


def _json_of(record: Record) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    plain = {name: _plain(value) for name, value in fields.items() if value not in ("", None)}
    return {"record": type(record).__name__, **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    return round(value, 4) if isinstance(value, float) else value


def heard_by(records: Sequence[Record]) -> dict[str, list[Opened | Heard]]:
    """Returns each subscriber's own history."""
    own: dict[str, list[Opened | Heard]] = {}
    for record in records:
        if isinstance(record, Opened | Heard):
            own.setdefault(record.who, []).append(record)
    return own


def calls_in(records: Sequence[Record], method: str = "") -> list[Call]:
    """Returns the calls, of one method or of all."""
    return [record for record in records if isinstance(record, Call) and method in ("", record.method)]
