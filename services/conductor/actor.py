"""The only writer: takes messages, decide → append → tell → start effects.

Each task and each project has a mailbox of its own and is worked on one message at a time; different ones go on side by
side and meet in the store's group commit. Nothing is remembered, answered or started before its events are durable.

Any replica may carry out a caller's command on any task. What follows from it, and whatever comes from inside, is for
the replica that owns the task alone.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from conductor.v1 import event_pb2, task_pb2
from google.protobuf.message import Message

from services.common.errors import Reason, Refusal
from services.conductor.errands import addressed
from services.conductor.idempotency import key_of, repeat, request_key
from services.conductor.lease import Lease
from services.conductor.machines import MACHINES
from services.conductor.mailbox import NOT_READ, Caller, Mailbox, Note, Unsure
from services.conductor.protocol import (
    CallWorker,
    CancelCall,
    Command,
    Decision,
    Effect,
    Errand,
    Expire,
    ExpireLater,
    Given,
    Proceed,
    Resume,
    Submit,
)
from services.conductor.slots import Slots, flow_of
from services.conductor.store.base import Answer, Append, Appended, Conflict, Key, Store, StoreUnavailable

log = logging.getLogger(__name__)

SERVICE = "conductor"
CONFLICT_TRIES = 5  # how often a lost race is decided anew before the caller hears of it
STORE_RETRY_S = 0.5  # pause before a message from inside is tried again on a store that cannot be written
IDLE_PROJECTS = 1000  # project states kept in memory
MAX_WAITING = 1000  # messages of callers that may wait for one task or project


class Router(Protocol):
    """Calls workers. Every call ends in exactly one Answered, unless it was cancelled."""

    def call(self, call: CallWorker, deliver: Callable[[Command], None]) -> None:
        """Starts a call; its progress and its outcome are delivered as commands."""

    def cancel(self, call_id: str) -> None:
        """Stops a call; nothing more is delivered. An unknown or ended call is ignored."""

    async def stop(self) -> None:
        """Stops all calls and starts no more."""


class Actor:
    """Carries out commands on tasks and projects, and owns the tasks of this replica's lease.

    Args:
        clock: nanoseconds since the epoch.
        new_id: gives a fresh unique id.
        instance: this replica's name in events; no other replica's.
        max_in_flight: tasks being worked on at once; the others wait, each desktop and project having its turn.
        max_queued: tasks that may wait; more are refused with OVER_CAPACITY.
    """

    def __init__(
        self,
        store: Store,
        router: Router,
        lease: Lease,
        *,
        clock: Callable[[], int],
        new_id: Callable[[], str],
        instance: str,
        max_in_flight: int,
        max_queued: int,
    ) -> None:
        self._store = store
        self._router = router
        self._lease = lease
        self._clock = clock
        self._new_id = new_id
        self._instance = instance
        self._max_queued = max_queued
        self._slots = Slots(max_in_flight, max_queued, self._proceed_at_once)
        self._mailboxes: dict[Key, Mailbox] = {}
        self._idle_projects: OrderedDict[Key, None] = OrderedDict()
        self._taken_over: set[Key] = set()  # tasks of which the first message has not been handled yet
        self._deadlines: dict[Key, asyncio.TimerHandle] = {}
        self._stopping = False

    async def start(self) -> int:
        """Takes up every unfinished task that nobody works on. Returns how many there are."""
        return await self._lease.start(self)

    async def ask(self, key: Key, command: Command, caller: Caller) -> Message:
        """Carries out a command and returns the new state once it is durable.

        The command is carried out even if the caller goes away meanwhile.

        Raises:
            Refusal: WRITE_CONFLICT, OVER_CAPACITY, SHUTTING_DOWN and what the state machine refuses change nothing;
                after STORE_UNAVAILABLE the command may or may not have been carried out.
        """
        if self._stopping:
            raise Refusal(Reason.ERROR_REASON_SHUTTING_DOWN, "The service is stopping; ask again in a moment.")
        box = self._mailboxes.get(key)
        if box is not None and len(box.waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} requests wait for {key[0]} {key[1]} already; ask again in a moment."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=MAX_WAITING)
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._post(key, Note(command, caller, reply))
        return await reply

    async def stop(self) -> None:
        """Takes no more messages, stops all worker calls, and hands unfinished tasks to other replicas."""
        self._stopping = True
        await self._router.stop()
        workers = [box.worker for box in self._mailboxes.values() if box.worker is not None]
        if workers:
            await asyncio.wait(workers, timeout=STORE_RETRY_S * 2)
        await self._lease.stop()

    def saw(self, events: Sequence[event_pb2.Event]) -> None:
        """Is told of events that may be another replica's, to forget what they have made old."""
        for event in events:
            key: Key = ("task", event.task_id) if event.task_id else ("project", event.project_id)
            box = self._mailboxes.get(key)
            if box is not None and event.actor.instance != self._instance and event.stream_sequence > box.version:
                box.stale = True
                if event.task_id:
                    self._tell(key, None)  # at once: a call of ours may have to be stopped

    # ---- the lease's holder ----

    @property
    def room(self) -> int:
        return self._slots.room - len(self._taken_over)

    def took(self, tasks: Sequence[str]) -> None:
        for task_id in tasks:
            key: Key = ("task", task_id)
            box = self._mailboxes.get(key)
            if box is not None:
                # The log has all of it; what an append under way leaves behind is from before.
                box.stale, box.unsure = True, None
            self._taken_over.add(key)
            self._tell(key, Resume())

    def lost(self) -> None:
        for box in self._mailboxes.values():
            if box.owner is not None:
                self._let_go(box)
        for deadline in self._deadlines.values():
            deadline.cancel()
        self._deadlines.clear()
        self._slots.clear()

    def _owns(self, box: Mailbox) -> bool:
        return box.owner == self._lease.name and self._lease.held

    def _let_go(self, box: Mailbox) -> None:
        """Stops working on a task that may be another replica's from here on."""
        self._router.cancel(box.call_id)
        box.state, box.owner = None, None

    # ---- mailboxes ----

    def _tell(self, key: Key, command: Command | None) -> None:
        """Puts a message from inside into a mailbox. Nobody waits for an answer."""
        if not self._stopping:
            self._post(key, Note(command, Caller(correlation_id=""), None))

    def _post(self, key: Key, note: Note) -> None:
        box = self._mailboxes.get(key)
        if box is None:
            box = self._mailboxes[key] = Mailbox(key, MACHINES[key[0]])
        box.waiting.append(note)
        if box.worker is None:
            box.worker = asyncio.create_task(self._work(box))

    async def _work(self, box: Mailbox) -> None:
        while box.waiting:
            note = box.waiting[0]
            try:
                answer = await self._handle(box, note)
            except StoreUnavailable as error:
                box.state = None  # what was remembered may be older than what was kept
                if box.unsure is not None and note.reply is not None:
                    self._tell(box.key, None)
                if note.reply is None and not self._stopping:
                    log.error("store unavailable, %s %s waits: %s", *box.key, error.cause)
                    box.refuse_callers(error)
                    await asyncio.sleep(STORE_RETRY_S)
                    continue
                note.refuse(error)
            except Refusal as refusal:
                note.refuse(refusal)
            except Exception as error:  # a bug must cost one message, not the mailbox and all that wait in it
                log.exception("message to %s %s failed: %s", *box.key, type(note.command).__name__)
                note.refuse(error)
            else:
                note.answer(answer)
            box.waiting.popleft()
        self._taken_over.discard(box.key)
        box.worker = None
        self._put_away(box)

    def _put_away(self, box: Mailbox) -> None:
        """Forgets what is finished, not ours, waiting for a slot, or long idle; the log has it all."""
        if box.key[0] == "project":
            self._idle_projects[box.key] = None
            self._idle_projects.move_to_end(box.key)
            while len(self._idle_projects) > IDLE_PROJECTS:
                key, _ = self._idle_projects.popitem(last=False)
                if self._mailboxes[key].worker is None:
                    del self._mailboxes[key]
        elif box.unsure is None and self._is_over(box):
            del self._mailboxes[box.key]
            self._release(box.key)
        elif box.unsure is None and (box.state is None or self._slots.waits(box.key)):
            del self._mailboxes[box.key]  # a slot or place it may have stays taken

    def _is_over(self, box: Mailbox) -> bool:
        ended = box.state is not None and (box.version == 0 or box.machine.finished(box.state))
        return ended or (box.owner != NOT_READ and not self._owns(box))

    # ---- one message ----

    async def _handle(self, box: Mailbox, note: Note) -> Message | None:
        command, caller = note.command, note.caller
        if command is None:
            await self._load(box)
            return None
        given = Given(self._clock(), self._new_id(), caller.correlation_id)
        try:
            if isinstance(command, Submit):
                return await self._admitted(box, command, note, given)
            return await self._decided(box, command, note, given)
        except StoreUnavailable:
            raise
        except Refusal:
            # The repeat of a request that was carried out is often refused: the state has moved on since.
            earlier = await self._store.answer(key_of(command, caller.request_id)) if caller.request_id else None
            if earlier is None:
                raise
            return repeat(command, caller.request_id, earlier)

    async def _admitted(self, box: Mailbox, command: Submit, note: Note, given: Given) -> Message | None:
        """Lets a new task in, unless too many wait already. Only that of a stage can be in the log yet."""
        if command.stage is not None:
            await self._load(box)
            if box.version:
                return box.shown(box.state, 0)
        flow = flow_of(command.request)
        at_once = self._slots.take(box.key)
        if not at_once and not self._slots.arrive(flow):
            text = f"Too many tasks of desktop {flow[0]} are waiting already; submit again when some have ended."
            raise Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text, limit=self._max_queued)
        box.state, box.owner = box.machine.initial(box.key[1]), self._lease.name
        try:
            return await self._decided(box, replace(command, at_once=at_once), note, given)
        finally:
            if not at_once:
                self._slots.arrived(flow)

    async def _decided(self, box: Mailbox, command: Command, note: Note, given: Given) -> Message | None:
        for _ in range(CONFLICT_TRIES):
            fresh = await self._load(box)
            if note.reply is None and box.machine.owned and not self._owns(box):
                self._let_go(box)
                return None
            try:
                decision = box.machine.decide(box.state, command, given)
            except Refusal:
                if fresh or self._store.exclusive:
                    raise
                box.stale = True  # another replica may have moved it: look again before refusing
                continue
            if not decision.events:
                self._start(box, decision.effects)
                return box.shown(box.state, 0)
            outcome = await self._append(box, command, decision, note, given)
            if isinstance(outcome, Message):
                return outcome
            box.state = None
            if isinstance(outcome, Answer):
                box.owner = None  # what was submitted anew has not come to be
                return repeat(command, note.caller.request_id, outcome)
        raise box.lost_race()

    async def _load(self, box: Mailbox) -> bool:
        """Folds the state from the log, unless it is known, and settles what was left open. True when it did."""
        if box.state is not None and not box.stale:
            return False
        box.stale = False
        stream = await self._store.stream(box.key)
        state = box.machine.initial(box.key[1])
        for event in stream.events:
            state = box.machine.evolve(state, event)
        box.state, box.version, box.epoch, box.owner = state, stream.version, stream.epoch, stream.owner
        if box.call_id != box.machine.open_call(state) or not self._owns(box):
            self._router.cancel(box.call_id)  # another replica has ended it
        unsure, box.unsure = box.unsure, None
        # Whoever wrote behind it has seen to what followed from it.
        if unsure is not None and stream.events and stream.events[-1].event_id == unsure.event_id:
            self._start(box, unsure.effects)
        return True

    async def _append(
        self, box: Mailbox, command: Command, decision: Decision, note: Note, given: Given
    ) -> Message | Conflict | Answer:
        """Makes a decision durable and starts its effects. Returns the answer to its caller, or why it was not kept."""
        events, caller = decision.events, note.caller
        self._stamp(events, caller)
        answer, covers = (decision.after, len(events)) if decision.accepted is None else (decision.accepted, 1)
        request = None
        if caller.request_id:
            request = request_key(command, caller.request_id, box.machine.view(answer).state, given.at, covers)
        epoch = box.epoch or box.machine.first_epoch
        view = box.machine.view(decision.after)
        box.unsure = Unsure(events[-1].event_id, decision.effects)
        outcome = await self._store.append(Append(box.key, box.version, epoch, box.owner, events, view, request))
        box.unsure = None
        if not isinstance(outcome, Appended):
            return outcome
        box.state, box.version, box.epoch = decision.after, outcome.version, epoch
        shown = box.shown(answer, outcome.pos - len(events) + covers)
        note.answer(shown)  # before the effects: to begin a call takes longer than to answer
        self._start(box, decision.effects)
        return shown

    def _stamp(self, events: Sequence[event_pb2.Event], caller: Caller) -> None:
        """Adds to events what only the actor knows: id, recorder, and for projects the caller."""
        for event in events:
            event.event_id = self._new_id()
            event.actor.service, event.actor.instance = SERVICE, self._instance
            if not event.task_id:
                event.correlation_id = caller.correlation_id
                event.scope.CopyFrom(caller.scope)

    # ---- effects ----

    def _start(self, box: Mailbox, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CancelCall):
                self._router.cancel(effect.call_id)
            elif isinstance(effect, Errand):
                self.mention(*addressed(effect))  # what is lost here, `driving` does again
            elif not self._owns(box):
                return  # its owner does the rest
            elif isinstance(effect, CallWorker):
                box.call_id = effect.call_id
                self._router.call(effect, lambda command: self._tell(box.key, command))
            elif isinstance(effect, ExpireLater):
                self._deadlines[box.key] = self._later(effect.after, box.key, Expire())
            elif effect.needs_slot:
                self._slots.queue(box.key, flow_of(box.state.task), effect.after)
            else:
                self._later(effect.after, box.key, Proceed())

    def mention(self, key: Key, command: Command, caller: Caller) -> None:
        """Has a command carried out whoever owns the task or project. Nobody waits; a refusal is no news."""
        if not self._stopping:
            self._post(key, Note.unheard(command, caller))

    def stages(self) -> Sequence[task_pb2.Task]:
        """Returns the tasks of stages that this replica is at work on."""
        return [box.state.task for box in self._mailboxes.values() if box.does_a_stage and self._owns(box)]

    def _later(self, seconds: float, key: Key, command: Command) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(0.0, seconds), self._tell, key, command)

    def _proceed_at_once(self, key: Key) -> None:
        # Not in this very moment: the message being handled has its answer to give first.
        asyncio.get_running_loop().call_soon(self._tell, key, Proceed())

    def _release(self, key: Key) -> None:
        if deadline := self._deadlines.pop(key, None):
            deadline.cancel()
        self._slots.leave(key)
