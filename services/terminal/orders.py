"""Turns an order into the job that the spawner gets: user, workspace, program, environment, limits."""

import logging
import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from services.terminal import outputs, refusals, users, workspace
from services.terminal.job import Job
from services.terminal.lookup import View
from services.terminal.policy import UIDS, Bounds, Order, Policy
from services.terminal.programs import Programs
from services.terminal.rooms import Rooms
from services.terminal.running import Left, Pipes
from services.terminal.spawn import Spawner
from services.terminal.workspace import Workspace

log = logging.getLogger(__name__)

PATH = "/usr/local/bin:/usr/bin:/bin"
LANG = "C.UTF-8"
NO_FD = -1  # filled in later


@dataclass(frozen=True, slots=True)
class Launched:
    """A command that was handed to the spawner."""

    pipes: Pipes
    bounds: Bounds
    conclude: Callable[[], Left]  # to be called once, in any thread, when all its processes are gone


class Launcher:
    """Prepares and launches commands. `launch` blocks on the disk, and may be called from several threads."""

    def __init__(self, rooms: Rooms, programs: Programs, spawners: Mapping[str, Spawner]) -> None:
        self._rooms = rooms
        self._programs = programs
        self._spawners = spawners  # by tier

    def launch(self, order: Order, policy: Policy) -> Launched:
        """Starts a command in a tier; without an argv it is the tier's self-test.

        Raises SANDBOX_UNAVAILABLE, OVER_CAPACITY, PROGRAM_REFUSED or COMMAND_NOT_STARTED; then nothing ran.
        """
        layer = "uid"
        try:
            with ExitStack() as lent:
                uid, lease = _lend(policy)
                if lease is not None:
                    lent.callback(lease.close)
                layer = "workspace"
                with ExitStack() as on_failure:
                    room = self._rooms.take(order.workspace, uid)
                    on_failure.callback(self._rooms.give_back, room)
                    workspace.put_inputs(room, order.inputs)
                    job, bounds = self._job(order, policy, room, uid)
                    job["uid_fd"] = room.work if lease is None else lease.fileno()
                    layer = "spawner"
                    pipes = self._spawners[policy.tier].launch(job, order.stdin)
                    on_failure.pop_all()
        except OSError as error:
            raise refusals.unavailable(layer, error.errno) from error
        return Launched(pipes, bounds, lambda: self._conclude(room, order.outputs))

    def _job(self, order: Order, policy: Policy, room: Workspace, uid: int) -> tuple[Job, Bounds]:
        home, inputs = (os.fsencode(self._rooms.path / part) for part in (room.work_path, room.inputs_path))
        env = _environment(home, inputs, order.env)
        executable, bounds = b"", order.bounds
        identity: tuple[int, ...] = ()
        if order.argv:
            view = View(home, room.work, uid)
            allowed = self._programs.decide(
                order.argv[0], env[b"PATH"], view, network=order.loopback, script=order.script
            )
            executable, identity = allowed.path, tuple(allowed.identity)
            bounds = order.bounds.within(allowed.ceilings)
        return {
            "tier": policy.tier,
            "argv": [argument.encode() for argument in order.argv],
            "executable": executable,
            "identity": identity,
            "env": env,
            "home": home,
            "inputs": inputs,
            "loopback": order.loopback,
            "control_fd": NO_FD,
            "status_fd": NO_FD,
            "stdin_fd": NO_FD,
            "stdout_fd": NO_FD,
            "stderr_fd": NO_FD,
            "workspace_fd": room.work,
            "uid": uid,
            "uid_fd": NO_FD,
            "minimum_abi": policy.minimum_abi,
            "paths": list(policy.paths),
            "workspace_execute": self._programs.workspace,
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


def _lend(policy: Policy) -> tuple[int, socket.socket | None]:
    """Returns a user for the command and the lease on it; 0 and none for the service's own user."""
    if not policy.separate_uid:
        return 0, None
    lent = users.lend()
    if lent is None:
        raise refusals.over_capacity(len(UIDS))
    return lent


def _environment(home: bytes, inputs: bytes, asked: dict[str, str]) -> dict[bytes, bytes]:
    """Returns all a command's environment holds; the request's own values win."""
    built = {b"PATH": PATH.encode(), b"HOME": home, b"TMPDIR": home, b"INPUTS": inputs, b"LANG": LANG.encode()}
    return built | {name.encode(): value.encode() for name, value in asked.items()}
