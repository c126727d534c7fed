"""Attacks by an ordinary process that nothing holds: they must get out, or a sandbox that holds them proves nothing."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from conductor.v1 import terminal_pb2

from tests.attacks.campaign import Verdicts, everything, make_all
from tests.attacks.ground import number
from tests.attacks.settings import SETTINGS, Terminal

WALL_S = 30

# Attacks that a kernel closes to ordinary users, or that need something to be there that a plain process has not.
CLOSED = frozenset(
    [
        "set_user_id_file",
        "listen_tcp_unbound",
        "root_set_user",
        "root_set_user_id_programs",
        "root_capabilities",
        "root_ambient",
        "root_user_namespace_root",
        "read_shadow",
        "read_keys_of_root",
        "read_by_descriptor",
        "read_by_handle",
        "read_by_mount_tree",
        "read_by_chroot",
        "read_watch_many",
        "write_device",
        "write_chown",
        "write_bind_mount",
        "write_in_usr",
        "write_in_etc",
        "write_in_root_folder",
        "device_nodes",
        "victim_join_namespaces",
        "victim_page_out",
        "session_key",
        "inherited_descriptors",
        "standard_input",
        "connect_service",
        "socket_packet",
        "socket_packet_datagram",
        "socket_raw",
        "socket_ping",
        "socket_raw6",
        "socket_vsock_datagram",
        "socket_alg",
        "socket_sctp",
        "socket_others",
        "raise_limits",
        "call_perf_event_open",
        "call_kexec_load",
        "call_init_module",
        "call_finit_module",
        "call_delete_module",
        "call_syslog",
        "call_acct",
        "call_swapon",
        "call_reboot",
        "call_settimeofday",
        "call_sethostname",
        "call_open_tree",
        "call_fsopen",
        "call_pivot_root",
        "call_chroot",
        "call_iopl",
        "call_lookup_dcookie",
        "call_newest",
        "system_proc_sys",
        "system_sys",
        "system_sysrq",
        "system_kernel_memory",
        "system_kernel_log",
        "system_clock",
        "system_hostname",
        "system_terminal_input",
        "system_controlling_terminal",
        "devices",
        "disks",
        "x32_call",
    ]
)
# Attacks that some machine closes to everybody: by Yama, by protected links, by old or bare kernels, by folders on
# devices of their own, by luck in a race.
OPTIONAL = frozenset(
    [
        "victim_trace",
        "victim_seize",
        "victim_take_descriptor",
        "victim_memory_by_proc",
        "victim_memory_by_call",
        "victim_environ",
        "victim_descriptors",
        "victim_root",
        "victim_folder",
        "victim_compare",
        "environ_of_all",
        "read_by_roots_of_all",
        "read_by_folders_of_all",
        "read_by_threads_of_all",
        "write_by_roots_of_all",
        "command_lines_of_all",
        "victim_command_line",
        "read_by_hard_link",
        "write_hard_link_in",
        "write_hard_link_out",
        "write_rename_in",
        "write_rename_out",
        "write_rename_over",
        "write_exchange",
        "read_by_rename",
        "write_xattr",
        "write_remove_xattr",
        "write_file_attributes",
        "write_fchmodat2",
        "write_nameless",
        "write_nameless_out",
        "write_in_var_tmp",
        "write_in_shm",
        "connect_tcp6",
        "connect_tcp4_in_6",
        "connect_fast_open",
        "connect_mptcp",
        "connect_udp_lite",
        "connect_io_uring",
        "connect_io_uring_unix",
        "connect_io_uring_file",
        "connect_tcp_by_shell",
        "socket_vsock",
        "int_80",
        "user_key",
        "posix_queue",
        "message_queue",
        "shared_memory",
        "proc_net",
        "victim_scheduler",
        "victim_io_priority",
        "victim_affinity",
        "victim_move_pages",
        "swap_folder",
        "swap_argument",
    ]
)
OPTIONAL_GROUPS = ("namespace_", "call_")  # what may be configured away


def must_get_out(name: str) -> bool:
    """Whether an attack must get out on any machine when nothing holds it."""
    return name not in CLOSED | OPTIONAL and not name.startswith(OPTIONAL_GROUPS)


class Plain:
    """Runs commands as `Terminal.Run` would, with nothing between them and the machine."""

    def __init__(self, uid: int, folder: Path) -> None:
        self._become = [] if uid == os.geteuid() else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        self._uid = uid
        self._folder = folder

    def Run(self, request: terminal_pb2.RunRequest) -> "_Call":
        """Begins a command; its limits are not held."""
        return _Call(self, request.command)

    async def run(self, command: terminal_pb2.Command) -> list[terminal_pb2.RunResponse]:
        """Runs a command to its end and returns its story."""
        home = Path(tempfile.mkdtemp(dir=self._folder))
        os.chown(home, self._uid, self._uid)
        process = await asyncio.create_subprocess_exec(
            *self._become, *command.argv, env={"PATH": os.environ["PATH"], "HOME": str(home)}, cwd=home,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        stdout, stderr = await asyncio.wait_for(process.communicate(command.stdin), WALL_S)
        chunks = [
            terminal_pb2.OutputChunk(stream=terminal_pb2.OUTPUT_STREAM_STDOUT, data=stdout),
            terminal_pb2.OutputChunk(stream=terminal_pb2.OUTPUT_STREAM_STDERR, data=stderr),
        ]
        result = terminal_pb2.CommandResult(end=terminal_pb2.COMMAND_END_EXITED, exit_code=process.returncode)
        return [terminal_pb2.RunResponse(chunk=c) for c in chunks] + [terminal_pb2.RunResponse(result=result)]


class _Call:
    def __init__(self, plain: Plain, command: terminal_pb2.Command) -> None:
        self._plain, self._command = plain, command
        self._story: list[Any] | None = None

    async def read(self) -> Any:
        if self._story is None:
            self._story = [*await self._plain.run(self._command), grpc.aio.EOF]
        return self._story.pop(0)


def run_plain() -> Verdicts:
    """Makes all attacks that harm nothing but what they aim at. Raises Missing."""
    user = SETTINGS[1]
    uid = user.uid()
    with _folder(uid) as folder, subprocess.Popen(["sleep", "300"]) as service:
        terminal = Terminal(user, "plain", service, 1, uid, folder, number())
        attacks = [attack for attack in everything() if attack.batched or attack.meanwhile]
        try:
            return asyncio.run(make_all(terminal, Plain(uid, folder), attacks))
        finally:
            service.kill()


@contextlib.contextmanager
def _folder(uid: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="attacker-"))
    os.chown(folder, uid, uid)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
