"""What waits for one task or project, and what is remembered of it."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from conductor.v1 import task_pb2
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal
from services.conductor.machines import Machine
from services.conductor.protocol import Command, Effect
from services.conductor.store.base import Key

NOT_READ = ""  # an owner that the log has not been asked for


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the request's correlation id and scope, and its idempotency key."""

    correlation_id: str
    scope: task_pb2.Scope = field(default_factory=task_pb2.Scope)
    request_id: str = ""


@dataclass(slots=True, eq=False)
class Note:
    """One message in a mailbox."""

    command: Command | None  # None: only find out from the log how things stand
    caller: Caller
    reply: asyncio.Future[Message] | None  # None: from inside, nobody waits

    @classmethod
    def unheard(cls, command: Command, caller: Caller) -> "Note":
        """Returns a message whose answer nobody waits for; a refusal is no news."""
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        reply.add_done_callback(lambda answered: answered.cancelled() or answered.exception())
        return cls(command, caller, reply)

    def refuse(self, error: Exception) -> None:
        """Answers with an error, if somebody still waits."""
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(error)

    def answer(self, message: Message | None) -> None:
        """Answers, if somebody still waits."""
        if message is not None and self.reply is not None and not self.reply.done():
            self.reply.set_result(message)


@dataclass(frozen=True, slots=True)
class Unsure:
    """An append of which the store did not say whether it was kept, and what was to follow."""

    event_id: str
    effects: Sequence[Effect]


@dataclass(slots=True, eq=False)
class Mailbox:
    """The messages for one task or project, its state as far as it is known, and what was started for it."""

    key: Key
    machine: Machine
    state: Any = None  # None until loaded
    stale: bool = False  # the log has moved on
    version: int = 0
    epoch: int = 0
    owner: str | None = NOT_READ  # name of the lease it is worked on under
    call_id: str = ""  # of the last call that was started for it
    unsure: Unsure | None = None
    waiting: deque[Note] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None

    @property
    def does_a_stage(self) -> bool:
        """Whether it is the mailbox of a task that does a stage of a run, and has not ended as far as is known."""
        known = self.key[0] == "task" and self.state is not None
        return known and self.state.stage is not None and not self.machine.finished(self.state)

    def shown(self, state: Any, pos: int) -> Message:
        """Returns a state of its machine as its caller sees it: Task or ProjectState, current through `pos`."""
        shown = task_pb2.Task() if self.key[0] == "task" else type(state)()
        shown.CopyFrom(state.task if self.key[0] == "task" else state)
        shown.as_of_sequence = pos
        return shown

    def lost_race(self) -> Refusal:
        """Returns why a command was not carried out though it might have been."""
        text = f"Others keep changing {self.key[0]} {self.key[1]}. Read it again and decide anew."
        return Refusal(Reason.ERROR_REASON_WRITE_CONFLICT, text, id=self.key[1])

    def refuse_callers(self, error: Refusal) -> None:
        """Answers the callers behind a message that has to wait for the store; they shall not wait with it."""
        callers = [note for note in self.waiting if note.reply is not None]
        for note in callers:
            self.waiting.remove(note)
            note.refuse(error)
