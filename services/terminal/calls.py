"""The idempotency key: remembers what each call id ran, and tells its story to whoever asks again.

An id is written down before its command is begun, and forgotten only when nothing ran or its time is over. So however
this process ends, a command of the same id does not run a second time (see stories.py for what a power cut may lose).
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.common.config import ConfigError
from services.common.errors import Reason, Refusal
from services.terminal import refusals
from services.terminal.stories import BLOCK_BYTES, HEADER, Folder, Header, Moment, State
from services.terminal.telling import Command, Follower, Telling, unknown

log = logging.getLogger(__name__)

MAX_STORIES = 50_000  # about 20 MiB of memory
SHARE = 4  # one story keeps at most this part of the room
SPARE = 8  # output never takes this part of it, so that no id is forgotten for the sake of output
SWEEP_S = 10.0
SWEEP_STORIES = 20  # removed before others have their turn
LARGE_BYTES = 1024 * 1024  # takes long to free
STRIP_STORIES = 32  # made smaller at once, to let another grow
NANOS = 1_000_000_000
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@dataclass(slots=True)
class Story:
    """What is held in memory of one id."""

    call_id: str
    fingerprint: bytes  # empty when it was lost: then every call is told that the outcome is unknown
    state: State
    disk_bytes: int
    ended_ns: int = 0  # on the clock of `_now`
    telling: Telling | None = None  # while it is running


class Calls:
    """Remembers what each call id ran. `start` first, `close` last.

    At most `max_bytes` of disk are used. When they are full the oldest stories lose their output, which their results
    then count as dropped; of more than `max_stories`, the oldest are forgotten before their time.

    Args:
        folder: the service's own; made, and open to nobody else.
        keep_s: how long a story is kept after its end, in seconds.
        max_bytes: disk space of all stories. One keeps at most a quarter of it, see telling.py.
        max_stories: how many ids are remembered, at most.
    """

    def __init__(self, folder: Path, keep_s: float, max_bytes: int, max_stories: int = MAX_STORIES) -> None:
        self._path = folder
        self._keep_ns = int(keep_s * NANOS)
        self._sweep_s = min(SWEEP_S, keep_s)
        self._max_bytes = max_bytes
        self._max_stories = max_stories
        self._folder: Folder
        self._stories: dict[str, Story] = {}
        self._ended: OrderedDict[str, Story] = OrderedDict()  # oldest first
        self._bulky: OrderedDict[str, Story] = OrderedDict()  # those of them that may become smaller
        self._used_bytes = 0
        self._forgotten = 0  # before their time, since the last sweep
        self._tasks: set[asyncio.Task[None]] = set()
        self._freeing: set[asyncio.Future[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Takes over what an earlier process left: what it did not see the end of is unknown for ever.

        Raises ConfigError when another process uses the folder or it cannot be used.
        """
        try:
            self._folder, found = await asyncio.to_thread(_take_over, self._path)
        except BlockingIOError:
            raise ConfigError(f"{self._path} is in use by another Terminal: give each its own folder.") from None
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be used for the records of calls: {error.strerror}.") from error
        for story in found:
            self._stories[story.call_id] = story
            self._used_bytes += story.disk_bytes
            self._keep(story)
        lost = sum(story.state == State.UNKNOWN for story in found)
        log.info("%d calls are remembered, %d of them with an unknown outcome", len(found), lost)
        self._sweeper = asyncio.create_task(self._sweep())

    def run(self, call_id: str, fingerprint: bytes, begin: Callable[[], Command]) -> Follower:
        """Returns the story of a call id, and begins it if there is none. Whoever has it must `leave` it.

        Args:
            call_id: the key; a plain file name.
            fingerprint: bytes that are the same for the same command, and for no other.
            begin: makes the command; called at most once, in a task with this context.

        Raises:
            Refusal: REQUEST_ID_REUSED, OUTCOME_UNKNOWN, OVER_CAPACITY, SHUTTING_DOWN, or SANDBOX_UNAVAILABLE when the
                call cannot be written down (nothing ran).
        """
        if self._closing:
            raise refusals.stopping()
        digest = hashlib.sha256(fingerprint).digest()
        story = self._stories.get(call_id)
        if story is not None and self._expired(story):
            self._forget(story)
            story = None
        if story is None:
            return self._begin(call_id, digest, begin)
        if story.fingerprint not in (digest, b""):
            raise reused(call_id)
        if story.state == State.UNKNOWN:
            raise unknown(call_id, "how it ended is not known")
        log.info("the command is not run again, call_id=%s", call_id)
        return story.telling.follow() if story.telling is not None else self._tell_again(story)

    async def close(self) -> None:
        """Cancels all commands, waits for their ends, and sends all who follow them away. Later calls are refused."""
        self._closing = True
        for story in self._stories.values():
            if story.telling is not None:
                story.telling.expel(refusals.stopping())
        await asyncio.gather(*self._tasks)
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, *self._freeing, return_exceptions=True)
        self._folder.close()

    # A new story

    def _begin(self, call_id: str, digest: bytes, begin: Callable[[], Command]) -> Follower:
        self._admit()
        header = Header(State.RUNNING, digest)
        try:
            fd = self._folder.create(call_id, header)
        except OSError as error:
            raise unrecorded(error) from error
        story = self._stories[call_id] = Story(call_id, digest, State.RUNNING, BLOCK_BYTES)
        self._used_bytes += BLOCK_BYTES
        telling = story.telling = Telling(call_id, fd, HEADER.size, header, partial(self._may_grow, story))
        follower = telling.follow()
        task = asyncio.create_task(self._tell(story, telling, begin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return follower

    async def _tell(self, story: Story, telling: Telling, begin: Callable[[], Command]) -> None:
        failure = None
        try:
            if not telling.followers:
                raise refusals.stopping()  # the caller was gone before it began
            await self._relay(story, telling, begin)
        except Refusal as refusal:
            failure = refusal
        except Exception as error:  # whatever it was, the story must have an end
            log.error("a command was lost, call_id=%s", story.call_id, exc_info=error)
        if story.telling is not None:
            self._fail(story, telling, failure or broken())

    def _fail(self, story: Story, telling: Telling, failure: Refusal) -> None:
        """Ends a story that has no result. It is forgotten when nothing ran."""
        log.info("no result, call_id=%s: %s", story.call_id, failure)
        ran = not telling.silent or failure.error.reason == Reason.ERROR_REASON_INTERNAL
        telling.fail(failure, ran)
        self._settle(story, telling, State.UNKNOWN)
        if not ran:
            self._forget(story)

    async def _relay(self, story: Story, telling: Telling, begin: Callable[[], Command]) -> None:
        command = begin()
        telling.begun(command)
        async with contextlib.aclosing(command.responses()) as responses:
            async for response in responses:
                if response.HasField("result"):
                    recorded = telling.finish(response)
                    self._settle(story, telling, State.ENDED if recorded else State.UNKNOWN)
                    return
                await telling.add(response)

    def _settle(self, story: Story, telling: Telling, state: State) -> None:
        """Keeps a story that is over. What follows it now goes on by itself."""
        story.telling = None
        story.state = state
        story.ended_ns = _now()
        self._resize(story, telling.file_end)
        self._keep(story)

    # An old one

    def _tell_again(self, story: Story) -> Follower:
        try:
            fd = self._folder.open(story.call_id)
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise too_many_files() from error
            name = errno.errorcode.get(error.errno or 0, "no errno")
            raise unknown(story.call_id, f"the record of it cannot be opened ({name})") from error
        header = Header(story.state, story.fingerprint)
        return Telling(story.call_id, fd, os.fstat(fd).st_size, header, lambda _: False).follow()

    def _expired(self, story: Story) -> bool:
        return story.telling is None and _now() - story.ended_ns >= self._keep_ns

    # Room

    def _admit(self) -> None:
        """Makes room for one more story; the oldest is forgotten for it if need be."""
        full = len(self._stories) >= self._max_stories
        if not full and self._room(BLOCK_BYTES):
            return
        if self._ended:
            self._forget_oldest()
        elif full:
            raise refusals.over_capacity(self._max_stories)

    def _may_grow(self, story: Story, size: int) -> bool:
        """Makes room for a running story of so many bytes. Returns whether there is."""
        more = _on_disk(size) - story.disk_bytes
        spare = self._max_bytes // SPARE
        if more > 0 and (size > self._max_bytes // SHARE or not self._room(more + spare)):
            return False
        self._resize(story, size)
        return True

    def _room(self, more: int) -> bool:
        """Makes stories smaller, oldest first and not too many at once, until so many bytes are free."""
        for _ in range(STRIP_STORIES):
            if self._used_bytes + more <= self._max_bytes or not self._bulky:
                break
            self._strip_oldest()
        return self._used_bytes + more <= self._max_bytes

    def _strip_oldest(self) -> None:
        _, story = self._bulky.popitem(last=False)
        try:
            with self._freed_aside(story):
                self._resize(story, self._folder.strip(story.call_id))
        except (OSError, ValueError) as error:
            log.warning("a story could not be made smaller, call_id=%s: %s", story.call_id, error)

    def _forget_oldest(self) -> None:
        story = next(iter(self._ended.values()))
        self._forgotten += not self._expired(story)
        self._forget(story)

    def _keep(self, story: Story) -> None:
        self._ended[story.call_id] = story
        if story.disk_bytes > BLOCK_BYTES:
            self._bulky[story.call_id] = story

    def _resize(self, story: Story, size: int) -> None:
        self._used_bytes += _on_disk(size) - story.disk_bytes
        story.disk_bytes = _on_disk(size)

    def _forget(self, story: Story) -> None:
        for index in (self._stories, self._ended, self._bulky):
            index.pop(story.call_id, None)
        self._used_bytes -= story.disk_bytes
        try:
            with self._freed_aside(story):
                self._folder.remove(story.call_id)
        except OSError as error:  # a later call of the id is refused, for the file is in its way
            log.error("a story could not be removed, call_id=%s: %s", story.call_id, error)

    @contextlib.contextmanager
    def _freed_aside(self, story: Story) -> Iterator[None]:
        """Keeps a large file open while its name goes, so that a thread frees its space: 0.1 ms and more per MiB."""
        if story.disk_bytes < LARGE_BYTES:
            yield
            return
        fd = self._folder.open(story.call_id)
        try:
            yield
        finally:
            freeing = asyncio.get_running_loop().run_in_executor(None, os.close, fd)
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)

    async def _sweep(self) -> None:
        """Removes what is over its time, or more than there is room for after a start with smaller settings."""
        while True:
            await self._fit()
            if self._forgotten:
                text = "%d calls were forgotten before their time: they would run again. More than %d, or %d bytes."
                log.warning(text, self._forgotten, self._max_stories, self._max_bytes)
                self._forgotten = 0
            await asyncio.sleep(self._sweep_s)

    async def _fit(self) -> None:
        done = 0
        while self._ended:
            if self._expired(next(iter(self._ended.values()))) or len(self._stories) > self._max_stories:
                self._forget_oldest()
            elif self._used_bytes > self._max_bytes and self._bulky:
                self._strip_oldest()
            elif self._used_bytes > self._max_bytes:
                self._forget_oldest()
            else:
                return
            done += 1
            if done % SWEEP_STORIES == 0:
                await asyncio.sleep(0)


def reused(call_id: str) -> Refusal:
    """The id belongs to another command."""
    text = f"call_id {call_id} was used before to run something else: send this under a call_id of its own."
    return Refusal(Reason.ERROR_REASON_REQUEST_ID_REUSED, text, call_id=call_id)


def unrecorded(error: OSError) -> Refusal:
    """The call could not be written down, so nothing ran."""
    if error.errno in TOO_MANY_FILES:
        return too_many_files()
    name = errno.errorcode.get(error.errno or 0, "no errno")
    text = (
        f"The call cannot be written down, so nothing ran: {name}. Point TERMINAL_WORKSPACES at a folder the service "
        "can write to, with space left."
    )
    return Refusal(Reason.ERROR_REASON_SANDBOX_UNAVAILABLE, text, layer="calls", errno=name)


def broken() -> Refusal:
    """The command's story stopped without an end."""
    text = "The command was lost through a fault of the service. Its log has the cause under the call_id."
    return Refusal(Reason.ERROR_REASON_INTERNAL, text)


def too_many_files() -> Refusal:
    """There are no file descriptors left."""
    text = "The service has too many files open to look after this call: try again in a moment."
    return Refusal(Reason.ERROR_REASON_OVER_CAPACITY, text)


def _take_over(path: Path) -> tuple[Folder, list[Story]]:
    """Opens the folder and returns what an earlier process left in it, in the order of its ends. Raises OSError."""
    folder = Folder(path)
    now = Moment.now()
    found = []
    for call_id in folder.call_ids():
        header, size = folder.take_over(call_id)
        ended_ns = now.boot_ns - header.ended.until(now)
        found.append(Story(call_id, header.fingerprint, header.state, _on_disk(size), ended_ns))
    return folder, sorted(found, key=lambda story: story.ended_ns)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
