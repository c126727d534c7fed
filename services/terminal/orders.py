"""Turns an order into the task that a supervisor gets: workspace, program, environment, limits."""

import errno
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from services.terminal import outputs, refusals, workspace
from services.terminal.job import Setting, Task
from services.terminal.lookup import View
from services.terminal.policy import Bounds, Order, Policy
from services.terminal.programs import Programs
from services.terminal.rooms import Rooms
from services.terminal.running import Left, Pipes
from services.terminal.spawn import Offer, Spawner
from services.terminal.users import UIDS
from services.terminal.workspace import Workspace

log = logging.getLogger(__name__)

LANG = "C.UTF-8"


@dataclass(frozen=True, slots=True)
class Launched:
    """A command that was handed to a supervisor."""

    pipes: Pipes
    bounds: Bounds
    conclude: Callable[[], Left]  # to be called once, in any thread, when all its processes are gone


class Launcher:
    """Prepares and launches commands. `launch` blocks on the disk, and may be called from several threads.

    Args:
        spawners: by tier.
        path: the PATH of commands.
        folders: of programs, beyond those that every machine has.
    """

    def __init__(
        self, rooms: Rooms, programs: Programs, spawners: Mapping[str, Spawner], path: str, folders: Iterable[Path]
    ) -> None:
        self._rooms = rooms
        self._programs = programs
        self._spawners = spawners
        self._path = path
        self._folders = tuple(map(os.fsencode, folders))

    def launch(self, order: Order, policy: Policy) -> Launched:
        """Starts a command in a tier; without an argv it is the tier's self-test.

        Raises SANDBOX_UNAVAILABLE, OVER_CAPACITY, PROGRAM_REFUSED or COMMAND_NOT_STARTED; then nothing ran.
        """
        try:
            return self._launch(order, policy)
        except ConnectionError:  # who had offered to take it is gone, killed by somebody, and nothing ran
            return self._launch(order, policy)

    def _launch(self, order: Order, policy: Policy) -> Launched:
        layer = "spawner"
        try:
            with ExitStack() as lent, ExitStack() as on_failure:
                offer = self._offer(policy)
                lent.callback(offer.close)
                layer = "workspace"
                room = self._rooms.take(order.workspace, offer.uid)
                on_failure.callback(self._rooms.give_back, room)
                workspace.put_inputs(room, order.inputs)
                task, bounds = self._task(order, room, offer.uid)
                layer = "spawner"
                pipes = offer.launch(task, order.stdin, room.work)
                on_failure.pop_all()
        except OSError as error:
            if isinstance(error, ConnectionError) and layer == "spawner":
                raise
            raise refusals.unavailable(layer, error.errno) from error
        return Launched(pipes, bounds, lambda: self._conclude(room, order.outputs))

    def _offer(self, policy: Policy) -> Offer:
        try:
            return self._spawners[policy.tier].take()
        except OSError as error:
            if error.errno == errno.EUSERS:
                raise refusals.over_capacity(len(UIDS)) from error
            raise

    def _task(self, order: Order, room: Workspace, uid: int) -> tuple[Task, Bounds]:
        home, inputs = (os.fsencode(self._rooms.path / part) for part in (room.work_path, room.inputs_path))
        env = _environment(self._path, home, inputs, order.env)
        executable, bounds = b"", order.bounds
        identity: tuple[int, ...] = ()
        if order.argv:
            view = View(home, room.work, uid, self._folders)
            allowed = self._programs.decide(
                order.argv[0], env[b"PATH"], view, network=order.loopback, script=order.script
            )
            executable, identity = allowed.path, tuple(allowed.identity)
            bounds = order.bounds.within(allowed.ceilings)
        return {
            "argv": [argument.encode() for argument in order.argv],
            "executable": executable,
            "identity": identity,
            "env": env,
            "home": home,
            "inputs": inputs,
            "loopback": order.loopback,
            "wall_s": bounds.wall_time,
            "cpu_s": math.ceil(bounds.cpu_time),
            "memory_bytes": bounds.memory_bytes,
            "processes": bounds.processes,
            "open_files": bounds.open_files,
            "file_size_bytes": bounds.file_size_bytes,
            "workspace_bytes": bounds.workspace_bytes,
            "workspace_entries": bounds.workspace_entries,
        }, bounds

    def _conclude(self, room: Workspace, patterns: tuple[str, ...]) -> Left:
        try:
            files, left_out = outputs.listing(room.work, patterns) if patterns else ([], 0)
            return Left(tuple(files), left_out)
        except OSError as error:
            log.error("the outputs of workspace %s could not be listed: %s", room.name, error)
            return Left((), 1)  # nobody shall take it for complete
        finally:
            self._rooms.give_back(room)


def setting(policy: Policy, programs: Programs) -> Setting:
    """Returns what all commands of a tier have in common."""
    return {
        "tier": policy.tier,
        "separate_uid": policy.separate_uid,
        "minimum_abi": policy.minimum_abi,
        "paths": list(policy.paths),
        "data": list(policy.data),
        "workspace_execute": programs.workspace,
    }


def _environment(path: str, home: bytes, inputs: bytes, asked: dict[str, str]) -> dict[bytes, bytes]:
    """Returns all a command's environment holds; the request's own values win."""
    built = {b"PATH": os.fsencode(path), b"HOME": home, b"TMPDIR": home, b"INPUTS": inputs, b"LANG": LANG.encode()}
    return built | {name.encode(): value.encode() for name, value in asked.items()}
