"""The only writer: takes messages, decide → append → tell → start effects.

Each task and each project has a mailbox of its own and is worked on one message at a time; different ones go on side by
side and meet in the store's group commit. Nothing is remembered, answered or started before its events are durable.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from conductor.v1 import event_pb2, task_pb2
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal
from services.conductor.idempotency import key_of, repeat, request_key
from services.conductor.machines import MACHINES, Machine
from services.conductor.protocol import (
    CallWorker,
    CancelCall,
    Command,
    Effect,
    Expire,
    ExpireLater,
    Given,
    Proceed,
    ProceedLater,
    Resume,
    Submit,
)
from services.conductor.store.base import Answer, Append, Appended, Key, RequestKey, Store, StoreUnavailable, View

log = logging.getLogger(__name__)

SERVICE = "conductor"
CONFLICT_TRIES = 5  # how often a lost race is decided anew before the caller hears of it
STORE_RETRY_S = 0.5  # pause before a message from inside is tried again on a store that cannot be written
IDLE_PROJECTS = 1000  # project states kept in memory


class Router(Protocol):
    """Calls workers. Every call ends in exactly one Answered, unless it was cancelled."""

    def call(self, call: CallWorker, deliver: Callable[[Command], None]) -> None:
        """Starts a call; its progress and its outcome are delivered as commands."""

    def cancel(self, call_id: str) -> None:
        """Stops a call; nothing more is delivered. An unknown or ended call is ignored."""

    async def stop(self) -> None:
        """Stops all calls and starts no more."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the request's correlation id and scope, and its idempotency key."""

    correlation_id: str
    scope: task_pb2.Scope = field(default_factory=task_pb2.Scope)
    request_id: str = ""


@dataclass(slots=True, eq=False)
class _Message:
    command: Command | None  # None: only find out from the log how things stand
    caller: Caller
    reply: asyncio.Future[Message] | None  # None: from inside, nobody waits


@dataclass(frozen=True, slots=True)
class _Unsure:
    """An append of which the store did not say whether it was kept, and what was to follow."""

    event_id: str
    effects: Sequence[Effect]


@dataclass(slots=True)
class _Mailbox:
    key: Key
    machine: Machine
    state: Any = None  # None until loaded
    version: int = 0
    epoch: int = 0
    unsure: _Unsure | None = None
    waiting: deque[_Message] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class Actor:
    """Owns every task and project of this replica.

    Args:
        clock: nanoseconds since the epoch.
        new_id: gives a fresh unique id.
        instance: this replica's name in events.
        max_in_flight: tasks being worked on at once; the others wait in the order they came.
        max_queued: tasks that may wait; more are refused with OVER_CAPACITY.
    """

    def __init__(
        self,
        store: Store,
        router: Router,
        *,
        clock: Callable[[], int],
        new_id: Callable[[], str],
        instance: str,
        max_in_flight: int,
        max_queued: int,
    ) -> None:
        self._store = store
        self._router = router
        self._clock = clock
        self._new_id = new_id
        self._instance = instance
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._mailboxes: dict[Key, _Mailbox] = {}
        self._idle_projects: OrderedDict[Key, None] = OrderedDict()
        self._in_flight: set[Key] = set()
        self._queued: dict[Key, None] = {}  # in the order they came
        self._arriving = 0  # submitted, not yet durable
        self._deadlines: dict[Key, asyncio.TimerHandle] = {}
        self._stopping = False

    async def recover(self) -> int:
        """Takes up every unfinished task. Returns how many there are."""
        unfinished = await self._store.claim(self._instance)
        for task_id in unfinished:
            self._tell(("task", task_id), Resume())
        return len(unfinished)

    async def ask(self, key: Key, command: Command, caller: Caller) -> Message:
        """Carries out a command and returns the new state once it is durable.

        The command is carried out even if the caller goes away meanwhile.

        Raises:
            Refusal: WRITE_CONFLICT, OVER_CAPACITY, SHUTTING_DOWN and what the state machine refuses change nothing;
                after STORE_UNAVAILABLE the command may or may not have been carried out.
        """
        if self._stopping:
            raise Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, "The service is stopping; ask again in a moment.")
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._post(key, _Message(command, caller, reply))
        return await asyncio.shield(reply)

    async def stop(self) -> None:
        """Takes no more messages and stops all worker calls. Unfinished tasks stay as the log has them."""
        self._stopping = True
        await self._router.stop()
        workers = [box.worker for box in self._mailboxes.values() if box.worker is not None]
        if workers:
            await asyncio.wait(workers, timeout=STORE_RETRY_S * 2)

    # ---- mailboxes ----

    def _tell(self, key: Key, command: Command | None) -> None:
        """Puts a message from inside into a mailbox. Nobody waits for an answer."""
        if not self._stopping:
            self._post(key, _Message(command, Caller(correlation_id=""), None))

    def _post(self, key: Key, message: _Message) -> None:
        box = self._mailboxes.get(key)
        if box is None:
            box = self._mailboxes[key] = _Mailbox(key, MACHINES[key[0]])
        box.waiting.append(message)
        if box.worker is None:
            box.worker = asyncio.create_task(self._work(box))

    async def _work(self, box: _Mailbox) -> None:
        while box.waiting:
            message = box.waiting[0]
            try:
                answer = await self._handle(box, message)
            except StoreUnavailable as error:
                box.state = None  # what was remembered may be older than what was kept
                if box.unsure is not None and message.reply is not None:
                    self._tell(box.key, None)
                if message.reply is None and not self._stopping:
                    log.error("store unavailable, %s %s waits: %s", *box.key, error.cause)
                    _refuse_callers(box, error)
                    await asyncio.sleep(STORE_RETRY_S)
                    continue
                _refuse(message, error)
            except Refusal as refusal:
                _refuse(message, refusal)
            except Exception as error:  # a bug must cost one message, not the mailbox and all that wait in it
                log.exception("message to %s %s failed: %s", *box.key, type(message.command).__name__)
                _refuse(message, error)
            else:
                if message.reply is not None:
                    message.reply.set_result(answer)
            box.waiting.popleft()
        box.worker = None
        self._put_away(box)

    def _put_away(self, box: _Mailbox) -> None:
        """Forgets what is finished, never came to be, or is long idle; the log has it all."""
        if box.key[0] == "project":
            self._idle_projects[box.key] = None
            self._idle_projects.move_to_end(box.key)
            while len(self._idle_projects) > IDLE_PROJECTS:
                key, _ = self._idle_projects.popitem(last=False)
                if self._mailboxes[key].worker is None:
                    del self._mailboxes[key]
        elif box.state is not None and (box.version == 0 or box.machine.finished(box.state)):
            del self._mailboxes[box.key]
            self._release(box.key)
        elif box.state is None and box.unsure is None:
            del self._mailboxes[box.key]  # the log has it; a slot it may hold stays taken

    # ---- one message ----

    async def _handle(self, box: _Mailbox, message: _Message) -> Message:
        command, caller = message.command, message.caller
        if command is None:
            await self._load(box)
            return _shown(box, 0)
        given = Given(self._clock(), self._new_id(), caller.correlation_id)
        if caller.request_id:
            earlier = await self._store.answer(key_of(command, caller.request_id))
            if earlier is not None:
                return repeat(command, caller.request_id, earlier)
        if isinstance(command, Submit):
            return await self._admitted(box, command, caller, given)
        return await self._decided(box, command, caller, given)

    async def _admitted(self, box: _Mailbox, command: Submit, caller: Caller, given: Given) -> Message:
        """Lets a new task in, unless too many wait already. Nothing of it can be in the log yet."""
        if len(self._queued) + self._arriving >= self._max_queued:
            text = f"{self._max_queued} tasks are waiting already; submit again when some have ended."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._max_queued)
        box.state = box.machine.initial(box.key[1])
        self._arriving += 1
        try:
            return await self._decided(box, command, caller, given)
        finally:
            self._arriving -= 1

    async def _decided(self, box: _Mailbox, command: Command, caller: Caller, given: Given) -> Message:
        for _ in range(CONFLICT_TRIES):
            await self._load(box)
            decision = box.machine.decide(box.state, command, given)
            if not decision.events:
                self._start(box, decision.effects)
                return _shown(box, 0)
            after = self._stamped(box, decision.events, given, caller)
            view = box.machine.view(after)
            request = request_key(command, caller.request_id, view.state, given.at) if caller.request_id else None
            append = self._append(box, view, decision.events, request)
            box.unsure = _Unsure(decision.events[-1].event_id, decision.effects)
            outcome = await self._store.append(append)
            box.unsure = None
            if isinstance(outcome, Appended):
                box.state, box.version, box.epoch = after, outcome.version, append.epoch
                self._start(box, decision.effects)
                return _shown(box, outcome.pos)
            box.state = None
            if isinstance(outcome, Answer):
                return repeat(command, caller.request_id, outcome)
        raise _lost_race(box.key)

    async def _load(self, box: _Mailbox) -> None:
        """Folds the state from the log, unless it is known, and catches up on an append that was kept after all."""
        if box.state is not None:
            return
        stream = await self._store.stream(box.key)
        state = box.machine.initial(box.key[1])
        for event in stream.events:
            state = box.machine.evolve(state, event)
        box.state, box.version, box.epoch = state, stream.version, stream.epoch
        unsure, box.unsure = box.unsure, None
        if unsure is not None and any(event.event_id == unsure.event_id for event in stream.events):
            self._start(box, unsure.effects)

    def _stamped(self, box: _Mailbox, events: Sequence[event_pb2.Event], given: Given, caller: Caller) -> Any:
        """Adds to events what only the actor knows: id, time, recorder, and for projects the caller.

        Returns the state they lead to.
        """
        state = box.state
        for event in events:
            event.event_id = self._new_id()
            event.occurred_at.FromNanoseconds(given.at)
            event.actor.service, event.actor.instance = SERVICE, self._instance
            if not event.task_id:
                event.correlation_id = caller.correlation_id
                event.scope.CopyFrom(caller.scope)
            state = box.machine.evolve(state, event)
        return state

    def _append(
        self, box: _Mailbox, view: View, events: Sequence[event_pb2.Event], request: RequestKey | None
    ) -> Append:
        epoch = box.epoch or box.machine.first_epoch
        return Append(box.key, box.version, epoch, self._instance if epoch else None, events, view, request)

    # ---- effects ----

    def _start(self, box: _Mailbox, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CallWorker):
                self._router.call(effect, lambda command: self._tell(box.key, command))
            elif isinstance(effect, CancelCall):
                self._router.cancel(effect.call_id)
            elif isinstance(effect, ExpireLater):
                self._deadlines[box.key] = self._later(effect.after, box.key, Expire())
            else:
                self._proceed_later(box.key, effect)

    def _later(self, seconds: float, key: Key, command: Command) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(0.0, seconds), self._tell, key, command)

    def _proceed_later(self, key: Key, effect: ProceedLater) -> None:
        if effect.needs_slot and key not in self._in_flight:
            self._queued[key] = None
            self._admit()
        else:
            self._later(effect.after, key, Proceed())

    def _admit(self) -> None:
        while self._queued and len(self._in_flight) < self._max_in_flight and not self._stopping:
            key = next(iter(self._queued))
            del self._queued[key]
            self._in_flight.add(key)
            self._later(0, key, Proceed())  # not at once: the message being handled has its answer to give first

    def _release(self, key: Key) -> None:
        self._in_flight.discard(key)
        self._queued.pop(key, None)
        if deadline := self._deadlines.pop(key, None):
            deadline.cancel()
        self._admit()


def _shown(box: _Mailbox, pos: int) -> Message:
    """Returns a state as its caller sees it: Task or ProjectState, current through `pos`."""
    shown = task_pb2.Task() if box.key[0] == "task" else type(box.state)()
    shown.CopyFrom(box.state.task if box.key[0] == "task" else box.state)
    shown.as_of_sequence = pos
    return shown


def _refuse_callers(box: _Mailbox, error: Refusal) -> None:
    """Answers the callers behind a message that has to wait for the store; they shall not wait with it."""
    callers = [message for message in box.waiting if message.reply is not None]
    for message in callers:
        box.waiting.remove(message)
        _refuse(message, error)


def _refuse(message: _Message, error: Exception) -> None:
    if message.reply is not None:
        message.reply.set_exception(error)


def _lost_race(key: Key) -> Refusal:
    text = f"Others keep changing {key[0]} {key[1]}. Read it again and decide anew."
    return Refusal(Reason.ERROR_REASON_WRITE_CONFLICT, text, id=key[1])
